"""What a user says about the data."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from lspm_ray.config import Config
from lspm_ray.corpus.labels import canonical

SPLITS = ("train", "validation", "selection", "calibration", "test")
"""Every split, in the order in which they are reported. `test` is only ever reported, never chosen on."""

Name = Annotated[str, Field(min_length=1)]


class Splits(Config):
    """Share of the rows that goes to each split. The five shares sum to 1.

    A share may be 0 only where the rows of the split are given: by `split_column`, or those of `test` by `test_source`.
    """

    train: float = Field(0.6, gt=0, le=1)
    validation: float = Field(0.1, ge=0, lt=1)
    selection: float = Field(0.1, ge=0, lt=1)
    calibration: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Splits:
        total = math.fsum(self.shares().values())
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the shares of {', '.join(SPLITS)} must sum to 1, not {total:.6g}")
        return self

    def shares(self) -> dict[str, float]:
        """Split -> share, in the order of `SPLITS`."""
        return {name: getattr(self, name) for name in SPLITS}


class CsvFormat(Config):
    """How a CSV file is written.

    Attributes:
        delimiter: one character; None takes a tab for `.tsv` and `.tab` files and a comma for all others.
        quote: the character around values that hold delimiters or line ends; None: no value is quoted.
        columns: names of the columns of files without a header line; None: the first line holds the names.
        skip_rows: rows to pass over after the header (some tools write column types there).
    """

    delimiter: str | None = Field(None, min_length=1, max_length=1)
    quote: str | None = Field('"', min_length=1, max_length=1)
    columns: list[Name] | None = Field(None, min_length=2)
    skip_rows: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> CsvFormat:
        if self.delimiter is not None and (self.delimiter == self.quote or self.delimiter in "\r\n"):
            raise ValueError("the delimiter can be neither the quote character nor a line end")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("column names must be unique")
        return self


class SourceConfig(Protocol):
    """How texts are read from files: what `DataConfig` and the sections about documents have in common."""

    @property
    def section(self) -> str:
        """The section of the settings, for error messages."""

    @property
    def source(self) -> str | list[str]:
        """Files, directories, globs or URIs."""

    @property
    def test_source(self) -> str | list[str] | None:
        """The same, of the rows that are held out."""

    @property
    def format(self) -> str:
        """The name of a format, or `auto`."""

    @property
    def csv(self) -> CsvFormat:
        """How CSV files are written."""

    @property
    def document(self) -> Literal["line", "paragraph", "file"]:
        """What one document of a plain text file is."""

    @property
    def text_columns(self) -> list[str]:
        """The columns of the text, of files that are tables."""

    @property
    def label(self) -> str | None:
        """The column with the label; None: the texts have none."""

    @property
    def split_column(self) -> str | None:
        """The column that names the split."""

    @property
    def columns(self) -> list[str]:
        """Every column that is read: those of the text, then the label and the split where there are any."""


class DataConfig(Config):
    """A labelled corpus of texts.

    Attributes:
        source: files, directories (read recursively), globs or URIs of Parquet, CSV or JSON Lines files; `.gz`, `.bz2`
            and `.zst` are read through. All files of one source have one format.
        test_source: files whose rows all belong to the test split (a published test set). The other splits are made
            from `source`, their shares scaled up.
        format: `auto` tells by the file name.
        csv: how CSV files are written.
        text: the column with the text, or several, joined by line ends; missing parts are left out.
        label: the column with the label.
        labels: the label set. A list of the column's values in the order of the model's outputs; a mapping from the
            column's values to names (several values may share a name); or None for every value found, sorted.
        split_column: a column that names the split of a row. Rows without a value, and the rows of `train` while some
            other split with a share is named by no row, are divided by hash among train and those splits.
        splits: shares of the splits.
        max_rows: keep this many rows, a pseudo-random but always equal choice; None keeps all.
        near_duplicates: drop all but one of texts that are nearly equal.
        similarity: Jaccard similarity of the sets of three-word shingles from which two texts are nearly equal.
        min_characters: shorter texts are dropped.
        max_characters: longer texts are cut (not dropped), before they are compared and hashed.
        rows_per_shard: rows of an output file, at most. More shards let more machines work at once.
        seed: of the hashes that split, order and choose rows.
    """

    section: ClassVar[str] = "data"
    # Never looked at: only tables hold labels, and a row of one is a document.
    document: ClassVar[Literal["line"]] = "line"

    source: Name | list[Name]
    test_source: Name | list[Name] | None = None
    format: Literal["auto", "parquet", "csv", "jsonl"] = "auto"
    csv: CsvFormat = CsvFormat()
    text: Name | list[Name]
    label: Name
    labels: list[str] | dict[str, str] | None = None
    split_column: Name | None = None
    splits: Splits = Splits()
    max_rows: int | None = Field(None, ge=10)
    near_duplicates: bool = True
    similarity: float = Field(0.8, ge=0.5, le=0.95)
    min_characters: int = Field(1, ge=1)
    max_characters: int = Field(20_000, ge=1)
    rows_per_shard: int = Field(4096, ge=1)
    seed: int = Field(0, ge=0)

    @field_validator("source", "test_source", "text")
    @classmethod
    def _some_and_unique(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one, and none twice")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _scalars_as_text(cls, value: Any) -> Any:
        # YAML reads 0, 1 and true as numbers and booleans; the column's values are compared as text.
        if isinstance(value, list):
            if any(isinstance(item, bool) for item in value):
                raise ValueError("YAML reads yes, no, on, off, true and false as booleans: put such labels in quotes")
            return [canonical(item) if isinstance(item, str | int | float) else item for item in value]
        if isinstance(value, dict):
            if any(isinstance(item, bool) for item in value.values()):
                raise ValueError("YAML reads yes, no, on, off, true and false as booleans: put such names in quotes")
            scalar = str | int | float
            return {canonical(k): str(v) if isinstance(v, scalar) else v for k, v in value.items()}
        return value

    @field_validator("labels")
    @classmethod
    def _at_least_two(cls, value: list[str] | dict[str, str] | None) -> list[str] | dict[str, str] | None:
        if value is None:
            return value
        names = list(value.values()) if isinstance(value, dict) else value
        if isinstance(value, list) and len(set(names)) < len(names):
            raise ValueError("a label is listed twice")
        if len(set(names)) < 2:
            raise ValueError("a classifier needs at least two labels")
        if any(not name for name in names):
            raise ValueError("a label has no name")
        return value

    @model_validator(mode="after")
    def _limits_in_order(self) -> DataConfig:
        if self.max_characters < self.min_characters:
            raise ValueError("max_characters must not be smaller than min_characters")
        if self.test_source is not None and self.split_column is not None:
            raise ValueError("give test_source or split_column, not both")
        return self

    @model_validator(mode="after")
    def _rows_for_every_split(self) -> DataConfig:
        given = {"test"} if self.test_source is not None else set()
        empty = [name for name, share in self.splits.shares().items() if not share and name not in given]
        if empty and self.split_column is None:
            raise ValueError(f"every split needs rows: give splits.{' and splits.'.join(empty)} a share above 0")
        return self

    @property
    def text_columns(self) -> list[str]:
        """The columns of the text."""
        return [self.text] if isinstance(self.text, str) else self.text

    @property
    def columns(self) -> list[str]:
        """Every column that is read: those of the text, the label, and the split where there is one."""
        return [*self.text_columns, self.label, *([self.split_column] if self.split_column else [])]
