"""Bytes, lines and whole documents out of files, decompressed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lspm_ray.artifact import filesystem
from lspm_ray.corpus import lines as limits
from lspm_ray.corpus.lines import MAX_LINE_BYTES, BrokenStreamError, Line, Readable, decompressed, lines, lines_between
from lspm_ray.corpus.rows import TOO_LONG, Rejected, Row, shown
from lspm_ray.corpus.sources import SourceFile, Unit, open_error

WHOLE = "whole file"
"""Place of a document that is all of a file."""
INVALID = "invalid UTF-8"
"""Reasons."""

_CHUNK_BYTES = 1 << 20


class UnusableError(Exception):
    """There is no document in a content. The message is a reason to count."""


@contextmanager
def open_content(file: SourceFile) -> Iterator[Readable]:
    """The decompressed content of a file, from its beginning.

    Raises:
        DataError: the file cannot be opened or read.
        BrokenStreamError: while reading: the compressed stream is damaged.
    """
    fs, path = filesystem(file.uri)
    try:
        with fs.open_input_file(path) as raw:
            if file.compression is None:
                yield raw
                return
            with decompressed(raw, file.compression, file.bytes) as stream:
                yield stream
    except OSError as error:
        raise open_error(file, error) from None


def file_lines(file: SourceFile, start: int = 0, stop: int | None = None) -> Iterator[Line | Rejected]:
    """Lines of a text file, with what is damaged or too long in their place.

    Args:
        file: to be read.
        start: lines whose first byte lies before this are left out; only for files that are not compressed.
        stop: so are those whose first byte does not lie before this; None: the end.

    Raises:
        DataError: the file cannot be opened or read.
    """
    offset = start
    try:
        with open_content(file) as stream:
            if file.compression is None:
                found = lines_between(stream, start, file.bytes if stop is None else stop)
                yield from (_checked(item) for item in found)
                return
            for item in lines(stream):
                offset = item.offset + len(item.content)
                yield _checked(item)
    except BrokenStreamError as error:
        yield Rejected(offset, f"byte {offset} to the end", str(error), rows=None)


def whole_document(unit: Unit, extract: Callable[[bytes], str | None]) -> Iterator[Row | Rejected]:
    """The one document of a file. It belongs to the first unit.

    Args:
        unit: of the file.
        extract: gives the text of the content (None: there is none), or raises `UnusableError`.

    Raises:
        DataError: the file cannot be opened or read.
    """
    if unit.part != 0:
        return
    content = b""
    try:
        content = _limited(unit.file)
        text = extract(content)
    except (UnusableError, BrokenStreamError) as error:
        yield Rejected(0, WHOLE, str(error), raw=shown(content))
    else:
        yield Row(WHOLE, text or None)


def utf8(content: bytes) -> str:
    """The text of a content, without a byte order mark.

    Raises:
        UnusableError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnusableError(INVALID) from None


def _limited(file: SourceFile) -> bytes:
    parts, size = [], 0
    with open_content(file) as stream:
        while chunk := bytes(stream.read(_CHUNK_BYTES)):
            parts.append(chunk)
            size += len(chunk)
            if size > limits.MAX_LINE_BYTES:
                raise UnusableError(TOO_LONG)
    return b"".join(parts)


def _checked(line: Line) -> Line | Rejected:
    if not line.complete:
        reason = f"line is longer than {MAX_LINE_BYTES >> 20} MiB"
        return Rejected(line.offset, f"byte {line.offset}", reason, raw=shown(line.content))
    return line
