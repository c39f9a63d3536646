"""Arrow IPC streams and files, among them the directories that the Hugging Face datasets library saves.

An IPC file is a stream with a footer, and is read as one. Damage costs the rows of one batch that a unit reads, or the
rest of the file where it is cut short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import pyarrow as pa

from lspm_ray.corpus.arrays import check_type, disarmed, values
from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.content import open_content
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.lines import BrokenStreamError, Readable
from lspm_ray.corpus.rows import STRIPE_ROWS, Rejected, Row, Rows, check_present, shown
from lspm_ray.corpus.sources import SourceFile, Unit
from lspm_ray.errors import DataError

_FILE_MAGIC = b"ARROW1\0\0"
_CONTINUATION = b"\xff\xff\xff\xff"
_MAX_SCHEMA_BYTES = 1 << 26
_BROKEN = (pa.ArrowException, OSError, BrokenStreamError)


class Arrow(Format):
    """Tables with typed columns."""

    suffixes: ClassVar[tuple[str, ...]] = ("arrow",)
    tabular: ClassVar[bool] = True
    cut: ClassVar[Literal["scanned"]] = "scanned"

    def columns(self, file: SourceFile, config: SourceConfig) -> list[str]:
        """From the schema. The types of the configured ones are checked."""
        with open_content(file) as stream:
            try:
                schema = pa.ipc.read_schema(pa.py_buffer(_schema_message(stream)))
            except _BROKEN as error:
                raise DataError(
                    f"not a readable Arrow file: {error}", field=f"{file.section}.source", value=file.uri
                ) from None
        return _check_columns(schema, config, file)

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """In stripes of rows. Memory: one batch as the file has it."""
        with open_content(unit.file) as stream:
            try:
                message = _schema_message(stream)
                schema = pa.ipc.read_schema(pa.py_buffer(message))
            except _BROKEN as error:
                if unit.part == 0:
                    yield Rejected(0, "whole file", "not a readable Arrow file", rows=None, raw=shown(str(error)))
                return
            names = _check_columns(schema, config, unit.file)
            wanted = sorted({names.index(name) for name in config.columns})
            options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
            yield from _rows(_Joined(message, stream), options, unit, config)


def _check_columns(schema: pa.Schema, config: SourceConfig, file: SourceFile) -> list[str]:
    check_present(config, schema.names, file)
    for name in config.columns:
        check_type(schema.field(name), file)
    return list(schema.names)


def _rows(
    stream: _Joined, options: pa.ipc.IpcReadOptions, unit: Unit, config: SourceConfig
) -> Iterator[Row | Rejected]:
    first = 0
    try:
        for batch in pa.ipc.open_stream(pa.PythonFile(stream, mode="r"), options=options):
            for start, stop in _stripes(unit, first, first + len(batch)):
                yield from _stripe(batch.slice(start - first, stop - start), start, config)
            first += len(batch)
    except _BROKEN as error:
        if unit.part == 0:
            reason = str(error) if isinstance(error, BrokenStreamError) else "Arrow file is damaged or cut short"
            yield Rejected(first, f"row {first} to the end", reason, rows=None, raw=shown(str(error)))


def _stripes(unit: Unit, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The ranges of rows of the unit in [start, stop)."""
    for stripe in range(start // STRIPE_ROWS, -(-stop // STRIPE_ROWS)):
        if stripe % unit.parts == unit.part:
            yield max(start, stripe * STRIPE_ROWS), min(stop, (stripe + 1) * STRIPE_ROWS)


def _stripe(rows: pa.RecordBatch, first: int, config: SourceConfig) -> Iterator[Row | Rejected]:
    make = Rows(config).make
    try:
        columns = [values(rows.column(name)) for name in config.columns]
    except pa.ArrowException as error:
        place = f"rows {first} to {first + len(rows) - 1}"
        yield Rejected(first, place, "damaged Arrow batch", rows=len(rows), raw=shown(str(error)))
        return
    for offset, found in enumerate(zip(*columns, strict=True), first):
        yield make(offset, f"row {offset}", found)


def _schema_message(stream: Readable) -> bytes:
    """The first message, with extension types disarmed (see `arrays`)."""
    start = _exactly(stream, 8)
    if start == _FILE_MAGIC:
        start = _exactly(stream, 8)
    # Before version 0.15 of Arrow, a message began with its length.
    old = start[:4] != _CONTINUATION
    length = int.from_bytes(start[:4] if old else start[4:], "little") - (4 if old else 0)
    if not 0 < length <= _MAX_SCHEMA_BYTES:
        raise pa.ArrowInvalid("no Arrow schema at the beginning")
    return disarmed(start + _exactly(stream, length))


def _exactly(stream: Readable, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := bytes(stream.read(size))):
        parts.append(part)
        size -= len(part)
    if size:
        raise pa.ArrowInvalid("the file is cut short")
    return b"".join(parts)


class _Joined:
    """A file object: some bytes, then the rest of a stream."""

    closed = False

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        head, self._head = self._head[:size], self._head[size:]
        parts, missing = [head], size - len(head)
        while missing and (part := bytes(self._rest.read(min(missing, 1 << 26)))):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Whoever opened the rest closes it."""
