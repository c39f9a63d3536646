"""Rows out of files. What cannot be read is reported row by row, never passed over.

Damage costs as little as the format allows: one line of JSON Lines, one record of CSV, the rest of one row group of
Parquet. Nothing found in a file is ever executed: only plain column types are read. The formats are in `formats/`.
"""

from __future__ import annotations

from collections.abc import Iterator

from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.rows import Rejected, Row, check_present
from lspm_ray.corpus.sources import SourceFile, Unit

__all__ = ["Rejected", "Row", "check_format", "check_present", "peek", "read_unit"]

_PEEK_ROWS = 1000


def check_format(name: str) -> None:
    """Make sure that files of a format can be read here.

    Raises:
        ConfigError: unknown format, or a library that it needs is not installed; says which.
    """
    Format.find(name)().prepare()


def read_unit(unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
    """The rows of one unit, in file order. A file of documents may be empty.

    Raises:
        DataError: the file cannot be opened or lacks a column.
        ConfigError: a library that the format needs is not installed.
    """
    if config.label is None and not unit.file.bytes:
        return iter(())
    reader = Format.find(unit.file.format)()
    reader.prepare()
    return reader.read(unit, config)


def peek(file: SourceFile, config: SourceConfig) -> tuple[list[str], list[Row]]:
    """The columns of a file (none unless it is a table) and some of its first rows, read without reading the file.

    Raises:
        DataError: the file cannot be opened, or has no readable row.
        ConfigError: a library that the format needs is not installed.
    """
    kind = Format.find(file.format)()
    columns = kind.columns(file, config)
    if kind.tabular:
        check_present(config, columns, file)
    rows: list[Row] = []
    for index, item in enumerate(read_unit(Unit(0, file, 0, 1), config)):
        if isinstance(item, Row):
            rows.append(item)
        if index + 1 >= _PEEK_ROWS:
            break
    return columns, rows
