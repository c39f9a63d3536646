"""A look at the data before any expensive work: used by `--dry-run` and at the start of `prepare`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lspm_ray.corpus.config import SPLITS, DataConfig, SourceConfig
from lspm_ray.corpus.labels import LabelSet
from lspm_ray.corpus.read import peek
from lspm_ray.corpus.sources import SourceFile, resolve
from lspm_ray.errors import DataError


@dataclass(frozen=True)
class Preview:
    """What a first look found.

    Attributes:
        files: number of input files.
        bytes: their size as stored.
        columns: of the first file.
        rows: how many rows of it were looked at.
        labels: label name -> rows among these.
    """

    files: int
    bytes: int
    columns: list[str]
    rows: int
    labels: dict[str, int]


def check_files(config: SourceConfig) -> list[SourceFile]:
    """The files of a source, once the first of each format is known to be readable; only its beginning is read.

    Raises:
        ConfigError: a library that the format needs is not installed.
        DataError: no data, a column that does not exist (names those that do), or a file that is of another format.
    """
    files = _files(config)
    for name in {file.format: None for file in files}:
        peek(_first([file for file in files if file.format == name]), config)
    return files


def check_columns(config: DataConfig) -> Preview:
    """Check the configured columns and the first labels, reading only the beginning of a file of each source.

    Raises:
        DataError: no data, a column that does not exist (names those that do), a label outside the label set.
    """
    files = _files(config)
    if config.test_source is not None:
        _look(next(file for file in files if file.held_out), config)
    columns, rows, labels = _look(_first(files), config)
    return Preview(len(files), sum(file.bytes for file in files), columns, rows, labels)


def _files(config: SourceConfig) -> list[SourceFile]:
    files = resolve(config)
    if not sum(file.bytes for file in files):
        raise DataError("the data set is empty", field=f"{config.section}.source", value=files[0].uri)
    return files


def _first(files: list[SourceFile]) -> SourceFile:
    return next((file for file in files if file.bytes and not file.held_out), files[0])


def _look(file: SourceFile, config: DataConfig) -> tuple[list[str], int, dict[str, int]]:
    columns, rows = peek(file, config)
    names, labels = LabelSet.of(config.labels), Counter[str]()
    for row in rows:
        where = f"{row.place} of {file.name}"
        if row.label is not None and row.text is not None:
            labels[names.name(row.label, where)] += 1
        if row.split is not None and row.split not in SPLITS:
            raise DataError(
                f"not the name of a split, in {where}", field="data.split_column", value=row.split, valid=SPLITS
            )
    return columns, len(rows), dict(sorted(labels.items()))
