"""CSV. Damage costs one record."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from lspm_ray.corpus.config import CsvFormat, SourceConfig
from lspm_ray.corpus.content import file_lines
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.lines import MAX_LINE_BYTES
from lspm_ray.corpus.rows import Rejected, Row, Rows, check_present, owns, shown
from lspm_ray.corpus.sources import SourceFile, Unit
from lspm_ray.errors import DataError


class Csv(Format):
    """Records of values between delimiters, see `CsvFormat`."""

    suffixes: ClassVar[tuple[str, ...]] = ("csv", "tsv", "tab")
    tabular: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    cut: ClassVar[Literal["scanned"]] = "scanned"

    def columns(self, file: SourceFile, config: SourceConfig) -> list[str]:
        """From the header, or the configuration."""
        return _known(_header(_records(file, config.csv), config.csv), file)

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """In stripes: records can span lines, so they can only be found from the start."""
        make = Rows(config).make
        records = _records(unit.file, config.csv)
        header = _header(records, config.csv)
        if config.label is None and not isinstance(header, list):
            # One file among many documents; labelled data are few, and whoever made them wants to know.
            if header is not None and unit.part == 0:
                yield header
            return
        columns = _known(header, unit.file)
        check_present(config, columns, unit.file)
        indices = [columns.index(name) for name in config.columns]
        for number, record in enumerate(records, start=-config.csv.skip_rows):
            if number < 0 and not isinstance(record, Rejected):
                continue
            if isinstance(record, Rejected):
                if owns(unit, max(number, 0)):
                    yield record
            elif not owns(unit, number):
                continue
            elif len(record.values) != len(columns):
                reason = "wrong number of CSV fields"
                yield Rejected(record.line, record.place, reason, raw=shown(record.values))
            else:
                yield make(record.line, record.place, [record.values[index] or None for index in indices])


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    place: str
    values: list[str]


def _header(records: Iterator[_Record | Rejected], form: CsvFormat) -> list[str] | Rejected | None:
    """The names of the columns, or what is in their place; None in an empty file."""
    if form.columns is not None:
        return form.columns
    first = next(records, None)
    return [name.strip() for name in first.values] if isinstance(first, _Record) else first


def _known(header: list[str] | Rejected | None, file: SourceFile) -> list[str]:
    field = f"{file.section}.source"
    if header is None:
        raise DataError("the file is empty", field=field, value=file.uri)
    if isinstance(header, Rejected):
        raise DataError(f"the header cannot be read: {header.reason}", field=field, value=file.uri)
    return header


def _records(file: SourceFile, form: CsvFormat) -> Iterator[_Record | Rejected]:
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
            yield Rejected(first, place, "malformed CSV", rows=None, raw=shown(str(error)))
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
        for item in file_lines(self._file):
            self.line += 1
            if isinstance(item, Rejected):
                self.rejected.append(Rejected(self.line, f"line {self.line}", item.reason, item.rows, item.raw))
            else:
                yield item.content.decode("utf-8", "surrogateescape")
