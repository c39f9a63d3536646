"""Rows out of files. What cannot be read is reported row by row, never passed over.

Damage costs as little as the format allows: one line of JSON Lines, one record of CSV, the rest of one row group of
Parquet. Nothing found in a file is ever executed: only plain column types are read.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import filesystem
from lspm_ray.corpus.config import CsvFormat, DataConfig
from lspm_ray.corpus.labels import canonical
from lspm_ray.corpus.lines import MAX_LINE_BYTES, BrokenStreamError, Line, decompressed, lines, lines_between
from lspm_ray.corpus.sources import SourceFile, Unit, open_error
from lspm_ray.errors import DataError

_STRIPE_ROWS = 1024
_BATCH_ROWS = 8192
_RAW_CHARACTERS = 200
_PEEK_ROWS = 1000
# Bytes that are no UTF-8 come out of a surrogateescape decoder as these.
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `place` says where it stands in its file; `text`, `label` and `split` are None where missing."""

    place: str
    text: str | None
    label: str | None
    split: str | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something in a file that is no usable row.

    Attributes:
        position: sorts the rejects of one file.
        place: the same for people.
        reason: short, the same for every case of its kind: rejects are counted by it.
        rows: how many rows were lost; None if it cannot be known.
        raw: the beginning of the content.
    """

    position: int
    place: str
    reason: str
    rows: int | None = 1
    raw: str = ""


def read_unit(unit: Unit, config: DataConfig) -> Iterator[Row | Rejected]:
    """The rows of one unit, in file order.

    Raises:
        DataError: the file cannot be opened or lacks a column.
    """
    reader = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[unit.file.format]
    return reader(unit, config)


def peek(file: SourceFile, config: DataConfig) -> tuple[list[str], list[Row]]:
    """The columns of a file and some of its first rows, read without reading the file.

    Raises:
        DataError: the file cannot be opened, or has no readable row.
    """
    columns = {"parquet": _parquet_columns, "csv": _csv_columns, "jsonl": _jsonl_columns}[file.format](file, config)
    check_present(config, columns, file)
    rows: list[Row] = []
    for index, item in enumerate(read_unit(Unit(0, file, 0, 1), config)):
        if isinstance(item, Row):
            rows.append(item)
        if index + 1 >= _PEEK_ROWS:
            break
    return columns, rows


def check_present(config: DataConfig, columns: Sequence[str], file: SourceFile) -> None:
    """Raise the error for a configured column that is not among `columns`.

    Raises:
        DataError: names the setting, the missing column and the columns that there are.
    """
    wanted = [("data.text", name) for name in config.text_columns] + [("data.label", config.label)]
    if config.split_column is not None:
        wanted.append(("data.split_column", config.split_column))
    for field, name in wanted:
        if name not in columns:
            raise DataError(f"no such column in {file.name}", field=field, value=name, valid=columns)
        if columns.count(name) > 1:
            raise DataError(f"several columns of {file.name} have this name", field=field, value=name)


class _Rows:
    """Turns the values of the configured columns into rows."""

    def __init__(self, config: DataConfig) -> None:
        self._texts = len(config.text_columns)
        self._has_split = config.split_column is not None

    def make(self, position: int, place: str, values: Sequence[object]) -> Row | Rejected:
        """`values` are in the order of `DataConfig.columns`."""
        try:
            parts = [_as_text(value) for value in values[: self._texts]]
            label = canonical(_decoded(values[self._texts]))
            split = canonical(_decoded(values[-1])) if self._has_split else None
        except UnicodeError:
            return Rejected(position, place, "invalid UTF-8", raw=_shown(values))
        except TypeError:
            return Rejected(position, place, "text or label is not a single value", raw=_shown(values))
        text = "\n".join(part for part in parts if part is not None and part.strip())
        return Row(place, text or None, label, split)


def _as_text(value: object) -> str | None:
    value = _decoded(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(type(value).__name__)


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str) and not value.isascii() and _UNDECODED.search(value):
        value.encode()
    return value


def _shown(raw: object) -> str:
    text = raw.rstrip(b"\r\n").decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else repr(raw)
    return text[:_RAW_CHARACTERS]


def _owns(unit: Unit, index: int, size: int = _STRIPE_ROWS) -> bool:
    return index // size % unit.parts == unit.part


# Parquet


def _parquet(unit: Unit, config: DataConfig) -> Iterator[Row | Rejected]:
    try:
        file = _open_parquet(unit.file)
    except pa.ArrowException as error:
        if unit.part == 0:
            yield Rejected(0, "whole file", "not a readable Parquet file", rows=None, raw=_shown(str(error)))
        return
    check_present(config, file.schema_arrow.names, unit.file)
    for name in config.columns:
        _check_type(file.schema_arrow.field(name), unit.file)
    first_row = 0
    with file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            part, parts = _share_of_group(unit, group, file.num_row_groups)
            if part is not None:
                yield from _row_group(file, group, first_row, rows, config, part, parts)
            first_row += rows


def _share_of_group(unit: Unit, group: int, groups: int) -> tuple[int | None, int]:
    """Which of how many parts of row group `group` belongs to the unit: no row group is decoded for nothing."""
    if groups >= unit.parts:
        return (0 if group % unit.parts == unit.part else None), 1
    parts = len(range(group, unit.parts, groups))
    return (unit.part // groups if unit.part % groups == group else None), parts


def _row_group(
    file: pq.ParquetFile, group: int, first_row: int, rows: int, config: DataConfig, part: int, parts: int
) -> Iterator[Row | Rejected]:
    make, start = _Rows(config).make, 0
    try:
        for index, batch in enumerate(
            file.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=list(dict.fromkeys(config.columns)), use_threads=False
            )
        ):
            if index % parts == part:
                columns = [_values(batch.column(name)) for name in config.columns]
                for offset, values in enumerate(zip(*columns, strict=True), first_row + start):
                    yield make(offset, f"row {offset}", values)
            start += len(batch)
    except (OSError, pa.ArrowException) as error:
        if part == 0:
            place = f"row group {group}, rows {first_row + start} to {first_row + rows - 1}"
            reason = "damaged Parquet row group"
            yield Rejected(first_row + start, place, reason, rows=rows - start, raw=_shown(str(error)))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # As bytes, because one string that is not UTF-8 must not cost the others.
        column = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    return list(column.to_pylist())


def _open_parquet(file: SourceFile) -> pq.ParquetFile:
    fs, path = filesystem(file.uri)
    try:
        return pq.ParquetFile(fs.open_input_file(path), page_checksum_verification=True)
    except FileNotFoundError as error:
        raise open_error(file, error) from None
    except OSError as error:
        if error.errno is not None:
            raise open_error(file, error) from None
        raise pa.ArrowInvalid(str(error)) from None


def _parquet_columns(file: SourceFile, config: DataConfig) -> list[str]:
    try:
        with _open_parquet(file) as opened:
            columns = list(opened.schema_arrow.names)
            check_present(config, columns, file)
            for name in config.columns:
                _check_type(opened.schema_arrow.field(name), file)
            return columns
    except pa.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {error}", field="data.source", value=file.uri) from None


def _check_type(field: pa.Field, file: SourceFile) -> None:
    extension = isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {})
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    t = pa.types
    plain = (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary, t.is_boolean, t.is_integer, t.is_floating)
    if extension or not (t.is_null(kind) or any(is_kind(kind) for is_kind in plain)):
        # Extension types can carry pickled objects, which would run code when read.
        raise DataError(
            f"column {field.name!r} of {file.name} has a type that is not read",
            field="data",
            value=str(field.type),
            valid=["string", "binary (UTF-8)", "integer", "floating point", "boolean"],
        )


# CSV


def _csv(unit: Unit, config: DataConfig) -> Iterator[Row | Rejected]:
    make = _Rows(config).make
    records = _records(unit.file, config.csv)
    columns = _header(records, unit.file, config.csv)
    check_present(config, columns, unit.file)
    indices = [columns.index(name) for name in config.columns]
    for number, record in enumerate(records, start=-config.csv.skip_rows):
        if number < 0 and not isinstance(record, Rejected):
            continue
        if isinstance(record, Rejected):
            if _owns(unit, max(number, 0)):
                yield record
        elif not _owns(unit, number):
            continue
        elif len(record.values) != len(columns):
            reason = "wrong number of CSV fields"
            yield Rejected(record.line, record.place, reason, raw=_shown(record.values))
        else:
            yield make(record.line, record.place, [record.values[index] or None for index in indices])


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    place: str
    values: list[str]


def _header(records: Iterator[_Record | Rejected], file: SourceFile, form: CsvFormat) -> list[str]:
    if form.columns is not None:
        return form.columns
    first = next(records, None)
    if first is None:
        raise DataError("the file is empty", field="data.source", value=file.uri)
    if isinstance(first, Rejected):
        raise DataError(f"the header cannot be read: {first.reason}", field="data.source", value=file.uri)
    return [name.strip() for name in first.values]


def _csv_columns(file: SourceFile, config: DataConfig) -> list[str]:
    return _header(_records(file, config.csv), file, config.csv)


def _records(file: SourceFile, form: CsvFormat) -> Iterator[_Record | Rejected]:
    """Every record of a CSV file; records can span lines, so they can only be found from the start."""
    feed = _Feed(file)
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = form.delimiter or ("\t" if ".tsv" in file.name.lower() or ".tab" in file.name.lower() else ",")
    quoting = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(feed, delimiter=delimiter, **quoting)
    while True:
        first = feed.line + 1
        try:
            values = next(reader)
        except StopIteration:
            yield from feed.rejected
            return
        except csv.Error as error:
            place = _line_range(first, feed.line)
            yield Rejected(first, place, "malformed CSV", rows=None, raw=_shown(str(error)))
            continue
        if values:
            yield _Record(first, _line_range(first, feed.line), values)
        yield from feed.rejected
        feed.rejected.clear()


def _line_range(first: int, last: int) -> str:
    return f"line {first}" if last <= first else f"lines {first} to {last}"


class _Feed(Iterable[str]):
    """Lines for `csv.reader`, which must not see damage: it is put aside in `rejected`."""

    def __init__(self, file: SourceFile) -> None:
        self.line = 0
        self.rejected: list[Rejected] = []
        self._file = file

    def __iter__(self) -> Iterator[str]:
        for item in _file_lines(self._file):
            self.line += 1
            if isinstance(item, Rejected):
                self.rejected.append(Rejected(self.line, f"line {self.line}", item.reason, item.rows, item.raw))
            else:
                yield item.content.decode("utf-8", "surrogateescape")


# JSON Lines


def _jsonl(unit: Unit, config: DataConfig) -> Iterator[Row | Rejected]:
    make = _Rows(config).make
    for item in _jsonl_lines(unit):
        if isinstance(item, Rejected):
            yield item
            continue
        place = f"byte {item.offset}"
        try:
            value = json.loads(item.content.decode())
        except UnicodeDecodeError:
            yield Rejected(item.offset, place, "invalid UTF-8", raw=_shown(item.content))
        except (ValueError, RecursionError):
            yield Rejected(item.offset, place, "invalid JSON", raw=_shown(item.content))
        else:
            if isinstance(value, dict):
                yield make(item.offset, place, [value.get(name) for name in config.columns])
            else:
                yield Rejected(item.offset, place, "line is not a JSON object", raw=_shown(item.content))


def _jsonl_lines(unit: Unit) -> Iterator[Line | Rejected]:
    if unit.file.compression is None:
        start = unit.file.bytes * unit.part // unit.parts
        stop = unit.file.bytes * (unit.part + 1) // unit.parts
        found = _file_lines(unit.file, start, stop)
        yield from (item for item in found if isinstance(item, Rejected) or item.content.strip())
        return
    for number, item in enumerate(_file_lines(unit.file)):
        if _owns(unit, number) and (isinstance(item, Rejected) or item.content.strip()):
            yield item


def _jsonl_columns(file: SourceFile, config: DataConfig) -> list[str]:
    keys: dict[str, None] = {}
    array = False
    for index, item in enumerate(_jsonl_lines(Unit(0, file, 0, 1))):
        if isinstance(item, Line):
            array = array or (index == 0 and item.content.startswith(b"["))
            try:
                value = json.loads(item.content)
            except (ValueError, RecursionError):
                value = None
            keys.update(dict.fromkeys(value) if isinstance(value, dict) else {})
        if index >= _PEEK_ROWS:
            break
    if array or not keys:
        raise DataError(
            "the file holds one JSON array" if array else "none of its first lines is a JSON object",
            field="data.source",
            value=file.uri,
            hint="JSON Lines has one object per line",
        )
    return list(keys)


def _file_lines(file: SourceFile, start: int = 0, stop: int | None = None) -> Iterator[Line | Rejected]:
    """Lines of a text file, with what is damaged or too long in their place."""
    fs, path = filesystem(file.uri)
    offset = start
    try:
        if file.compression is None:
            with fs.open_input_file(path) as stream:
                found = lines_between(stream, start, file.bytes if stop is None else stop)
                yield from (_checked(item) for item in found)
            return
        with fs.open_input_file(path) as raw, decompressed(raw, file.compression, file.bytes) as stream:
            for item in lines(stream):
                offset = item.offset + len(item.content)
                yield _checked(item)
    except BrokenStreamError as error:
        yield Rejected(offset, f"byte {offset} to the end", str(error), rows=None)
    except OSError as error:
        raise open_error(file, error) from None


def _checked(line: Line) -> Line | Rejected:
    if not line.complete:
        reason = f"line is longer than {MAX_LINE_BYTES >> 20} MiB"
        return Rejected(line.offset, f"byte {line.offset}", reason, raw=_shown(line.content[:_RAW_CHARACTERS]))
    return line
