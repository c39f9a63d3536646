"""Documents out of plain text: its lines, or its paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lspm_ray.corpus import lines as limits
from lspm_ray.corpus.lines import Readable

Piece = tuple[int, bytes, bool]
"""Offset of the first byte, content without white space around it, and whether that is all of it: of a piece that is
too long only the beginning is kept. A plain tuple, because there are millions."""

LINE = re.compile(rb"\n\s*")
PARAGRAPH = re.compile(rb"\n[ \t\r\f\v]*\n\s*")
"""What lies between two lines that are not blank; between two paragraphs."""

_CHUNK_BYTES = 1 << 20
_KEPT_BYTES = 1000
_BACK_BYTES = 1 << 12
_BLANK = b" \t\r\f\v"
_BOM = b"\xef\xbb\xbf"


def pieces(stream: Readable, between: re.Pattern[bytes]) -> Iterator[Piece]:
    """The pieces of a whole stream. Memory: one piece, at most `MAX_LINE_BYTES` or so."""
    return _pieces(stream, between, 0, None, inside=False)


def pieces_between(stream: Any, between: re.Pattern[bytes], start: int, stop: int) -> Iterator[Piece]:
    """The pieces whose first byte lies in [start, stop). `stream` is open for random access.

    Neighbouring ranges therefore give every piece exactly once.
    """
    offset = _gap_before(stream, start)
    stream.seek(offset)
    # Unless the file begins with the gap, a piece ends before it, or goes on after it if the gap is no separator.
    return _pieces(stream, between, offset, stop, inside=offset > 0)


def _gap_before(stream: Any, end: int) -> int:
    """Where the white space begins that ends at `end`."""
    while end > 0:
        begin = max(0, end - _BACK_BYTES)
        stream.seek(begin)
        kept = len(bytes(stream.read(end - begin)).rstrip())
        if kept:
            return begin + kept
        end = begin
    return 0


def _pieces(
    stream: Readable, between: re.Pattern[bytes], offset: int, stop: int | None, *, inside: bool
) -> Iterator[Piece]:
    """`inside`: what comes before the first separator is the rest of a piece that is not wanted."""
    buffer, searched, longest = b"", 0, limits.MAX_LINE_BYTES
    while chunk := bytes(stream.read(_CHUNK_BYTES)):
        if not buffer and not inside:
            offset += len(chunk)
            chunk = chunk.lstrip()
            offset -= len(chunk)
        buffer += chunk
        first = 0
        for gap in between.finditer(buffer, searched):
            if stop is not None and offset + first >= stop:
                return
            if not inside:
                yield _piece(offset + first, buffer[first : gap.start()])
            first, inside = gap.end(), False
        buffer, offset = buffer[first:], offset + first
        searched = _searched(buffer)
        if not inside and (searched > longest or len(buffer) > 3 * longest):
            if stop is None or offset < stop:
                yield offset, buffer[:_KEPT_BYTES], False
            inside = True
        if inside:
            # Of blanks after a line end, which may yet turn out to be a separator, the line end is enough.
            rest = b"\n" if searched < len(buffer) else b""
            buffer, offset, searched = rest, offset + len(buffer) - len(rest), 0
        if stop is not None and offset >= stop:
            return
    if buffer and not inside and (stop is None or offset < stop):
        yield _piece(offset, buffer[:searched])


def _searched(buffer: bytes) -> int:
    """Up to where there is no separator, whatever follows."""
    end = len(buffer.rstrip(_BLANK))
    return end - 1 if buffer.endswith(b"\n", 0, end) else len(buffer)


def _piece(offset: int, content: bytes) -> Piece:
    if len(content) > limits.MAX_LINE_BYTES:
        return offset, content[:_KEPT_BYTES], False
    if offset == 0:
        content = content.removeprefix(_BOM).lstrip()
    return offset, content.rstrip(), True
