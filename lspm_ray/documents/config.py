"""What a user says about raw text, and how it becomes clean documents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lspm_ray.config import Config
from lspm_ray.corpus.config import CsvFormat, Name
from lspm_ray.documents.rule import Rule
from lspm_ray.errors import ConfigError

SPLITS = ("train", "validation")
"""What the documents are divided into."""


class EvaluationSet(Config):
    """Texts that must not be trained on.

    Attributes:
        source: files, directories, globs or URIs.
        format: `auto` tells by the file name.
        csv: how CSV files are written.
        text: the column with the text, or several, of files that are tables.
        document: what one document of a text file is.
    """

    section: ClassVar[str] = "documents.decontaminate"
    test_source: ClassVar[None] = None
    label: ClassVar[None] = None
    split_column: ClassVar[None] = None

    source: Name | list[Name]
    format: Literal["auto", "parquet", "csv", "jsonl", "arrow", "text", "markdown", "html"] = "auto"
    csv: CsvFormat = CsvFormat()
    text: Name | list[Name] = "text"
    document: Literal["line", "paragraph", "file"] = "paragraph"

    @field_validator("source", "text")
    @classmethod
    def _some_and_unique(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one, and none twice")
        return value

    @property
    def text_columns(self) -> list[str]:
        """The columns of the text."""
        return [self.text] if isinstance(self.text, str) else self.text

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        return self.text_columns


class DocumentsConfig(EvaluationSet):
    """Raw, unlabelled text.

    Attributes:
        source: files, directories (read recursively), globs or URIs of text, Markdown, HTML, JSON Lines, CSV, Parquet
            or Arrow files, and Hugging Face datasets directories, all mixed as you like; `.gz`, `.bz2` and `.zst` are
            read through.
        rules: cleaning rules in order, each `{rule: NAME, field: value, ...}` or just the name. Repair of Unicode and
            white space always comes first.
        near_duplicates: drop all but one of documents that are nearly equal.
        similarity: Jaccard similarity of the sets of three-word shingles from which two documents are nearly equal.
        decontaminate: evaluation set -> where its texts are; documents that share a run of `overlap_words` words with
            one are dropped.
        overlap_words: see there.
        validation: share of the documents that goes to the validation split, by hash of the text.
        quarantine: write dropped documents down, with the reason, and of near duplicates the id of the one that stays;
            what could not be read is written down always.
        top_words: words whose frequency is written down, the most frequent first.
        seed: of the hashes that split and order.
    """

    section: ClassVar[str] = "documents"

    rules: list[dict[str, Any]] = Field(default_factory=list)
    near_duplicates: bool = True
    similarity: float = Field(0.8, ge=0.5, le=0.95)
    decontaminate: dict[str, EvaluationSet] = Field(default_factory=dict)
    overlap_words: int = Field(13, ge=5, le=100)
    validation: float = Field(0.01, gt=0, lt=1)
    quarantine: bool = True
    top_words: int = Field(100_000, ge=100, le=10_000_000)
    seed: int = Field(0, ge=0)

    @field_validator("rules", mode="before")
    @classmethod
    def _known_rules(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("give a list of rules")
        try:
            return [Rule.make(spec).spec() for spec in value]
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _sets_have_names(self) -> DocumentsConfig:
        if any(not name for name in self.decontaminate):
            raise ValueError("an evaluation set has no name")
        return self

    def cleaning(self) -> list[Rule]:
        """The rules as plugins."""
        return [Rule.make(spec) for spec in self.rules]
