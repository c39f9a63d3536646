"""Lines out of byte streams that may be compressed, cut short, or hostile."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from lspm_ray.corpus.sources import Compression

MAX_LINE_BYTES = 1 << 24
"""Longer lines are put aside without being held in memory."""

_CHUNK_BYTES = 1 << 18
_KEPT_BYTES = 1000
_BOM = b"\xef\xbb\xbf"
# Text compresses 3- to 20-fold; a bomb a thousandfold.
_BOMB_RATIO = 200
_BOMB_BYTES = 1 << 30
_DAMAGE = (EOFError, zlib.error, OSError, ValueError)
# Ends no text in UTF-8, so that none is taken for what was not written.
_UNWRITTEN = b"\xff"


class BrokenStreamError(Exception):
    """A compressed stream that cannot be read to its end. The message is a reason to count."""


class Readable(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its line end. `complete` is False when it was too long and only its beginning was kept."""

    offset: int
    content: bytes
    complete: bool = True


def lines(stream: Readable, offset: int = 0) -> Iterator[Line]:
    """The lines of `stream`, whose first byte is at `offset` of the file. Memory: one line."""
    buffer, start, skipped = b"", offset, 0
    while True:
        chunk = bytes(stream.read(_CHUNK_BYTES))
        if not chunk:
            break
        buffer += chunk
        if skipped:
            end = buffer.find(b"\n") + 1
            if not end:
                skipped += len(buffer) - _KEPT_BYTES
                buffer = buffer[:_KEPT_BYTES]
                continue
            yield Line(start, buffer[:_KEPT_BYTES], complete=False)
            start, buffer, skipped = start + skipped + end, buffer[end:], 0
        *whole, buffer = buffer.split(b"\n")
        for content in whole:
            yield _line(start, content + b"\n")
            start += len(content) + 1
        if len(buffer) > MAX_LINE_BYTES:
            skipped = len(buffer) - _KEPT_BYTES
            buffer = buffer[:_KEPT_BYTES]
    if buffer:
        yield Line(start, buffer, complete=False) if skipped else _line(start, buffer)


def _line(offset: int, content: bytes) -> Line:
    if len(content) > MAX_LINE_BYTES + 1:
        return Line(offset, content[:_KEPT_BYTES], complete=False)
    return Line(offset, content.removeprefix(_BOM) if offset == 0 else content)


def lines_between(stream: Any, start: int, stop: int) -> Iterator[Line]:
    """The lines whose first byte lies in [start, stop). `stream` is open for random access.

    Neighbouring ranges therefore give every line exactly once.
    """
    stream.seek(max(start - 1, 0))
    for index, line in enumerate(lines(stream, max(start - 1, 0))):
        if line.offset >= stop:
            return
        if index == 0 and start > 0:
            continue  # the tail of a line that began before this range (or just its line end)
        yield line


def decompressed(stream: Any, compression: Compression, bytes_stored: int) -> AbstractContextManager[Readable]:
    """A readable stream of the decompressed content."""
    if compression == "gzip":
        return _Guarded(gzip.GzipFile(fileobj=stream, mode="rb"), _pieces, bytes_stored)
    if compression == "bz2":
        return _Guarded(bz2.BZ2File(stream), _pieces, bytes_stored)
    return _Guarded(pa.CompressedInputStream(stream, compression), _overwritten, bytes_stored)


def _pieces(stream: Any, size: int) -> tuple[bytes, bool]:
    """Up to `size` bytes, and whether damage follows. `read1`, because `read` loses what came before it."""
    parts = []
    try:
        while size and (part := stream.read1(size)):
            parts.append(part)
            size -= len(part)
    except _DAMAGE:
        return b"".join(parts), True
    return b"".join(parts), False


def _overwritten(stream: Any, size: int) -> tuple[bytes, bool]:
    """The same of a stream of Arrow, which writes what it has before it fails, but then does not say how much."""
    buffer = bytearray(_UNWRITTEN) * size
    try:
        count = stream.readinto(buffer)
    except _DAMAGE:
        return bytes(buffer.rstrip(_UNWRITTEN)), True
    return bytes(memoryview(buffer)[:count]), False


class _Guarded(AbstractContextManager[Readable]):
    """Turns the many errors of damaged streams into `BrokenStreamError`, and stops at decompression bombs.

    Args:
        stream: of decompressed content.
        read: gives up to so many bytes of it, and whether damage follows.
        bytes_stored: before decompression.
    """

    def __init__(self, stream: Any, read: Callable[[Any, int], tuple[bytes, bool]], bytes_stored: int) -> None:
        self._stream = stream
        self._next = read
        self._limit = max(_BOMB_BYTES, _BOMB_RATIO * bytes_stored)
        self._read = 0
        self._damaged = False

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes.

        Raises:
            BrokenStreamError: the stream is damaged, cut short, or grows beyond all measure; all that can be read
                before that was returned by the calls before.
        """
        chunk = b""
        if not self._damaged:
            chunk, self._damaged = self._next(self._stream, size)
        if self._damaged and not chunk:
            raise BrokenStreamError("compressed file is damaged or cut short")
        self._read += len(chunk)
        if self._read > self._limit:
            raise BrokenStreamError(f"compressed file expands more than {_BOMB_RATIO}-fold")
        return chunk
