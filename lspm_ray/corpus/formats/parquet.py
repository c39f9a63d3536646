"""Parquet. Damage costs the rest of one row group."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import filesystem
from lspm_ray.corpus.arrays import check_type, disarmed, values
from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.rows import Rejected, Row, Rows, check_present, shown
from lspm_ray.corpus.sources import SourceFile, Unit, open_error
from lspm_ray.errors import DataError

_BATCH_ROWS = 8192
_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_SCHEMA = b"ARROW:schema"
_HIDDEN = b"ARROW:hidden"


class Parquet(Format):
    """Tables with typed columns; codecs are told by the file itself."""

    suffixes: ClassVar[tuple[str, ...]] = ("parquet", "pq")
    tabular: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    cut: ClassVar[Literal["anywhere"]] = "anywhere"

    def columns(self, file: SourceFile, config: SourceConfig) -> list[str]:
        """From the footer. The types of the configured ones are checked."""
        try:
            with _open(file) as opened:
                return _check_columns(opened, config, file)
        except pa.ArrowException as error:
            raise DataError(
                f"not a readable Parquet file: {error}", field=f"{file.section}.source", value=file.uri
            ) from None

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """By row group, or in runs of rows where there are fewer groups than units."""
        try:
            file = _open(unit.file)
        except pa.ArrowException as error:
            if unit.part == 0:
                yield Rejected(0, "whole file", "not a readable Parquet file", rows=None, raw=shown(str(error)))
            return
        _check_columns(file, config, unit.file)
        first_row = 0
        with file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                part, parts = _share_of_group(unit, group, file.num_row_groups)
                if part is not None:
                    yield from _row_group(file, group, first_row, rows, config, part, parts)
                first_row += rows


def _check_columns(opened: pq.ParquetFile, config: SourceConfig, file: SourceFile) -> list[str]:
    schema = opened.schema_arrow
    check_present(config, schema.names, file)
    for name in config.columns:
        check_type(schema.field(name), file)
    return list(schema.names)


def _share_of_group(unit: Unit, group: int, groups: int) -> tuple[int | None, int]:
    """Which of how many parts of row group `group` belongs to the unit: no row group is decoded for nothing."""
    if groups >= unit.parts:
        return (0 if group % unit.parts == unit.part else None), 1
    parts = len(range(group, unit.parts, groups))
    return (unit.part // groups if unit.part % groups == group else None), parts


def _row_group(
    file: pq.ParquetFile, group: int, first_row: int, rows: int, config: SourceConfig, part: int, parts: int
) -> Iterator[Row | Rejected]:
    make, start = Rows(config).make, 0
    try:
        for index, batch in enumerate(
            file.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=list(dict.fromkeys(config.columns)), use_threads=False
            )
        ):
            if index % parts == part:
                columns = [values(batch.column(name)) for name in config.columns]
                for offset, found in enumerate(zip(*columns, strict=True), first_row + start):
                    yield make(offset, f"row {offset}", found)
            start += len(batch)
    except (OSError, pa.ArrowException) as error:
        if part == 0:
            place = f"row group {group}, rows {first_row + start} to {first_row + rows - 1}"
            reason = "damaged Parquet row group"
            yield Rejected(first_row + start, place, reason, rows=rows - start, raw=shown(str(error)))


def _open(file: SourceFile) -> pq.ParquetFile:
    fs, path = filesystem(file.uri)
    try:
        stream = fs.open_input_file(path)
        return pq.ParquetFile(stream, metadata=_metadata(stream), page_checksum_verification=True)
    except FileNotFoundError as error:
        raise open_error(file, error) from None
    except OSError as error:
        if error.errno is not None:
            raise open_error(file, error) from None
        raise pa.ArrowInvalid(str(error)) from None


def _metadata(stream: Any) -> pq.FileMetaData:
    """The footer, with extension types disarmed in the Arrow schema that it may hold (see `arrays`)."""
    footer = _footer(stream)
    if _SCHEMA not in footer:
        return _parsed(footer)
    # Without the schema Arrow takes the types of the Parquet columns.
    hidden = _parsed(footer.replace(_SCHEMA, _HIDDEN))
    encoded = (hidden.metadata or {}).get(_HIDDEN)
    if not encoded or footer.count(_SCHEMA) > 1:
        return hidden
    try:
        schema = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return hidden
    return _parsed(footer.replace(encoded, base64.b64encode(disarmed(schema))))


def _footer(stream: Any) -> bytes:
    size = stream.size()
    tail = bytes(stream.read_at(_TAIL_BYTES, size - _TAIL_BYTES)) if size >= _TAIL_BYTES + len(_MAGIC) else b""
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length + _TAIL_BYTES > size:
        raise pa.ArrowInvalid("no Parquet footer at the end")
    return bytes(stream.read_at(length, size - _TAIL_BYTES - length))


def _parsed(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC))
