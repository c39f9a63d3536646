"""What the page about text and pretraining says, as data: `report.json` is exactly this."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lspm_ray.config import Config
from lspm_ray.report.findings import Source


class Size(Config):
    """What a split of the documents holds; `bytes` are those of the texts in UTF-8."""

    documents: int
    bytes: int


class Characters(Config):
    """Lengths of documents in characters; each of `bins` is [where it begins, documents], 2 ** 0.25 times as wide."""

    total: int
    mean: float
    p50: int
    p95: int
    p99: int
    max: int
    bins: list[tuple[float, int]]


class Words(Config):
    """Words of the documents that are kept, case folded.

    Attributes:
        different: words.
        occurrences: of all words together.
        coverage: number of most frequent words -> their share of all occurrences.
        most_frequent: the first few with their counts.
    """

    different: int
    occurrences: int
    coverage: dict[str, float]
    most_frequent: list[tuple[str, int]]


class Cluster(Config):
    """Documents that are the same; `excerpt` is how the one begins that is kept, empty where none of them is."""

    documents: int
    excerpt: str


class Documents(Config):
    """What became of the raw text.

    Attributes:
        files: that were read.
        file_bytes: their size on disk.
        documents_read: documents found in them; what could not be read is not among them.
        characters_read: of these, before cleaning.
        dropped: reason -> documents.
        quarantined: reason -> pieces that could not be read.
        near_clusters: groups of near-equal documents.
        exact: the most often copied documents.
        near: the largest groups of near-equal documents.
        settings: of the stage.
    """

    files: int
    file_bytes: int
    documents_read: int
    characters_read: int
    dropped: dict[str, int]
    quarantined: dict[str, int]
    near_clusters: int
    splits: dict[str, Size]
    characters: dict[str, Characters]
    words: Words
    exact: list[Cluster]
    near: list[Cluster]
    settings: dict[str, Any]

    @property
    def kept(self) -> int:
        """Documents of all splits."""
        return sum(split.documents for split in self.splits.values())

    @property
    def losses(self) -> list[tuple[str, int]]:
        """The reasons for dropping documents, most frequent first."""
        return sorted(self.dropped.items(), key=lambda entry: (-entry[1], entry[0]))


class BlockSplit(Config):
    """What a split of the blocks holds; `tokens` without padding and without the marks at the start of blocks."""

    blocks: int
    documents: int
    tokens: int
    bytes: int
    characters: int


class Blocks(Config):
    """The documents as tokens.

    Attributes:
        length: tokens of a block.
        vocabulary: entries of the tokenizer.
        bytes_per_token: of the training text, tokens that are no marks.
        unknown_share: of the tokens.
        vocabulary_used: share of the ordinary entries that occur in the training text.
        padding_share: of the places in training blocks.
        unigram_loss: nats per token of somebody who knows only how frequent each token is.
        rare: entries that occur fewer than `RARE` times in the training text.
        most_frequent: [id, token, count] of the first few.
        settings: of the stage.
    """

    length: int
    vocabulary: int
    splits: dict[str, BlockSplit]
    bytes_per_token: float
    unknown_share: float
    vocabulary_used: float
    padding_share: float
    unigram_loss: float
    rare: int
    most_frequent: list[tuple[int, str, int]]
    settings: dict[str, Any]


RARE = 100
"""Occurrences below which next to nothing can be learnt about a token."""


class Point(Config):
    """One validation: losses in nats per predicted token, the others as measured since the validation before.

    Attributes:
        tokens: trained on so far, padding included.
        gradient_norm: of the last step before clipping; None if it was not finite.
        seconds: of training so far, without validation.
        mfu: share of the peak arithmetic of the hardware that the model itself needs.
        data_wait_share: of the time.
        checkpoint_share: of the time.
    """

    step: int
    tokens: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    gradient_norm: float | None
    seconds: float
    tokens_per_s: float
    mfu: float
    data_wait_share: float
    checkpoint_share: float


class Pretraining(Config):
    """How the model was pretrained.

    Attributes:
        best: index of the point whose weights were kept.
        perplexity: at that point, on the validation blocks.
        unigram_perplexity: of somebody who knows only how frequent each token is.
        hardware: of the machine that the run was started on.
        settings: of the stage.
    """

    objective: str
    parameters: int
    points: list[Point] = Field(min_length=1)
    best: int = Field(ge=0)
    perplexity: float
    unigram_perplexity: float
    hardware: dict[str, Any]
    settings: dict[str, Any]

    @property
    def kept(self) -> Point:
        """The point whose weights were kept."""
        return self.points[self.best]

    @property
    def last(self) -> Point:
        """The end of the run."""
        return self.points[-1]

    def thinned(self, most: int) -> list[Point]:
        """At most about `most` points at even distances, with the best and the last."""
        stride = -(-len(self.points) // most)
        wanted = {*range(0, len(self.points), stride), self.best, len(self.points) - 1}
        return [self.points[index] for index in sorted(wanted)]


class TextFindings(Config):
    """Everything on the page; `blocks` and `pretraining` are None where the run has no such stage."""

    date: str
    code_version: str
    documents: Documents
    blocks: Blocks | None
    pretraining: Pretraining | None
    lineage: list[Source]
