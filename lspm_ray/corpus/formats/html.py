"""HTML: one document per file, its main text."""

from __future__ import annotations

import codecs
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import ClassVar, Literal

from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.content import UnusableError, whole_document
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.formats import _page
from lspm_ray.corpus.rows import Rejected, Row
from lspm_ray.corpus.sources import Unit
from lspm_ray.errors import ConfigError

# The time and memory that a page takes can grow with the square of its size, so large ones are kept apart.
_LARGE_CHARACTERS = 1 << 20
_LARGE_SECONDS = 120.0
_DECLARATION_BYTES = 4096
_DETECTION_BYTES = 1 << 16
_DECLARED = re.compile(rb"""(?:charset|<\?xml[^>]{0,99}encoding)\s{0,9}=\s{0,9}["']?([A-Za-z0-9_:.-]{1,40})""", re.I)
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# Codecs of Python that are no encoding of pages, some of them slow.
_NO_ENCODING = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"}
_BROKEN = "the page cannot be parsed"


class Html(Format):
    """Web pages, in the encoding that they declare, or that is detected. Needs the extra `html`."""

    suffixes: ClassVar[tuple[str, ...]] = ("html", "htm")
    cut: ClassVar[Literal["whole"]] = "whole"

    def prepare(self) -> None:
        """Check that the extractor is installed."""
        if importlib.util.find_spec("trafilatura") is None:
            raise ConfigError("reading HTML needs a library", value="trafilatura", hint="pip install 'lspm-ray[html]'")

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """The document."""
        return whole_document(unit, lambda content: _main_text(decode(content)))


def decode(content: bytes) -> str:
    """The source text of a page.

    Raises:
        UnusableError: its encoding can neither be told from a declaration nor detected.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _decoded(content, [encoding])
    declared = _DECLARED.search(content[:_DECLARATION_BYTES])
    names = [declared[1].decode()] if declared else []
    try:
        return _decoded(content, [*filter(_is_encoding, names), "utf-8"])
    except UnusableError:
        return _decoded(content, _detected(content))


def _is_encoding(name: str) -> bool:
    try:
        found = codecs.lookup(name).name.replace("-", "_")
    except LookupError:
        return False
    # A declaration that could be read as ASCII is not in UTF-16.
    return found not in _NO_ENCODING and not found.startswith(("utf_16", "utf_32"))


def _decoded(content: bytes, encodings: list[str]) -> str:
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    raise UnusableError("the encoding of the page cannot be told")


def _detected(content: bytes) -> list[str]:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:_DETECTION_BYTES]).best()
    return [best.encoding] if best is not None else []


def _main_text(page: str) -> str:
    text = _page_apart(page) if len(page) > _LARGE_CHARACTERS else _page_here(page)
    if not (text or "").strip():
        raise UnusableError("no text in the page")
    return text or ""


def _page_here(page: str) -> str | None:
    try:
        return _page.main_text(page)
    except Exception:  # a hostile page can raise anything; its contents say nothing about the next one
        raise UnusableError(_BROKEN) from None


def _page_apart(page: str) -> str:
    """In a process of its own, which may run out of memory, time or stack."""
    command = [sys.executable, "-m", _page.__name__]
    try:
        done = subprocess.run(  # noqa: S603, it starts this package itself
            command, input=page.encode("utf-8", "surrogatepass"), capture_output=True, timeout=_LARGE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UnusableError("the page takes too long to parse") from None
    if done.returncode:
        raise UnusableError(_BROKEN)
    return done.stdout.decode("utf-8", "surrogatepass")
