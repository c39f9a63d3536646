"""Plain text in UTF-8. Damage costs one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.content import INVALID, open_content, utf8, whole_document
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.lines import BrokenStreamError
from lspm_ray.corpus.pieces import LINE, PARAGRAPH, Piece, pieces, pieces_between
from lspm_ray.corpus.rows import TOO_LONG, Rejected, Row, owns, shown
from lspm_ray.corpus.sources import Unit


class Text(Format):
    """A document is a line, a paragraph (blank lines lie between them) or a file, as configured."""

    suffixes: ClassVar[tuple[str, ...]] = ("txt", "text")
    cut: ClassVar[Literal["anywhere"]] = "anywhere"

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """By byte range, or in stripes of documents if the file is compressed. Blank documents are none."""
        if config.document == "file":
            for item in whole_document(unit, utf8):
                if isinstance(item, Rejected) or (item.text or "").strip():
                    yield item
            return
        offset = 0
        striped = unit.file.compression is not None
        try:
            for number, (offset, content, complete) in enumerate(_pieces(unit, config.document)):
                if striped and not owns(unit, number):
                    continue
                if not complete:
                    yield Rejected(offset, f"byte {offset}", TOO_LONG, raw=shown(content))
                elif content:
                    place = f"byte {offset}"
                    try:
                        yield Row(place, content.decode())
                    except UnicodeDecodeError:
                        yield Rejected(offset, place, INVALID, raw=shown(content))
        except BrokenStreamError as error:
            if unit.part == 0:
                yield Rejected(offset, f"after byte {offset} to the end", str(error), rows=None)


def _pieces(unit: Unit, document: str) -> Iterator[Piece]:
    between = LINE if document == "line" else PARAGRAPH
    with open_content(unit.file) as stream:
        if unit.file.compression is None:
            yield from pieces_between(stream, between, *unit.byte_range())
        else:
            yield from pieces(stream, between)
