"""Altered copies of the training rows that students learn from as well: the full model says what the answers are.

    training rows --Alter--> copies without labels --teach--> logits --mix--> training rows

An alteration may change what is right, so copies have no label. Held-out rows are not touched.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, filesystem, join
from lspm_ray.compression.unlabelled import write_rows
from lspm_ray.config import Config
from lspm_ray.corpus.execute import Execute, Item, run_on_ray, write_error
from lspm_ray.corpus.shards import split_files
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.progress import Report

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGE = "augment"


class AugmentConfig(Config):
    """Copies of each training row, altered at random (Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT
    into Simple Neural Networks", section 3.2; without the replacement of words by others of the same part of speech).

    Attributes:
        copies: of each row.
        mask: chance that a token of a copy is hidden: the tokenizer's mask token takes its place, or the unknown one.
        run: chance that of a copy only a run of tokens stays.
        shortest: least share of the tokens in such a run.
        seed: of the alterations.
    """

    copies: int = Field(2, ge=1, le=100)
    mask: float = Field(0.1, ge=0, lt=1)
    run: float = Field(0.25, ge=0, le=1)
    shortest: float = Field(0.25, gt=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _alters_something(self) -> Self:
        if not self.mask and not self.run:
            raise ValueError("nothing would be altered: set mask or run to more than 0")
        return self


def augmented_rows(
    config: AugmentConfig,
    full: Artifact,
    data: Artifact,
    store: ArtifactStore,
    report: Report,
    execute: Execute | None = None,
) -> Artifact:
    """The copies.

    Args:
        config: how many, and how they are altered.
        full: the model whose tokenizer is used.
        data: the prepared corpus.
        store: where the artifact goes.
        report: progress.
        execute: runs the steps; by default Ray Data on the connected cluster.

    Returns:
        An artifact with `train/part-*.parquet`: input_ids, and label, which is `NO_LABEL`. `rows` of its summary says
        how many there are.

    Raises:
        ModelError: the tokenizer has nothing to hide tokens with.
        ResourceError: the cluster has no CPU to give, or the disk is full.
    """
    alter = Alter.of(config, load_tokenizer(full.local()))

    def build(draft: Draft) -> None:
        files = split_files(data, "train", execute)
        items: list[Item] = [{"uri": uri, "number": number} for number, uri in enumerate(files)]
        done = 0
        for _, result in (execute or run_on_ray)(_AlterFile(alter, draft.uri), items):
            done += result["rows"]
            report(f"augment: {done:,} altered rows")
        draft.summary |= {"rows": done}

    try:
        parents = {"data": data.digest, "model": full.digest}
        return store.make(STAGE, {"augment": config.model_dump(mode="json")}, parents, build)
    except OSError as error:
        raise write_error(error) from None


@dataclass(frozen=True)
class Alter:
    """Alters rows.

    Attributes:
        config: how.
        hidden: id of the token that stands for hidden ones.
        special: ids that stay where they are.
    """

    config: AugmentConfig
    hidden: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, config: AugmentConfig, tokenizer: PreTrainedTokenizerBase) -> Self:
        """For the rows of this tokenizer.

        Raises:
            ModelError: it has neither a mask token nor an unknown one.
        """
        hidden = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.unk_token_id
        if hidden is None:
            raise ModelError(
                "the tokenizer has neither a mask token nor an unknown one to hide others with",
                field="compress.augment.mask",
                value=config.mask,
            )
        return cls(config, int(hidden), tuple(sorted(tokenizer.all_special_ids)))

    def __call__(self, ids: NDArray[np.int32], random: np.random.Generator) -> NDArray[np.int32]:
        """A copy of one row [tokens], as long or shorter."""
        words = ~np.isin(ids, self.special)
        kept = np.ones(len(ids), dtype=bool)
        if random.random() < self.config.run:
            kept[words] = self._run(int(words.sum()), random)
        hide = words & (random.random(len(ids)) < self.config.mask)
        return np.where(hide, np.int32(self.hidden), ids)[kept]

    def _run(self, count: int, random: np.random.Generator) -> NDArray[np.bool_]:
        """bool [count]: a run of random length in a random place."""
        least = min(count, max(1, round(self.config.shortest * count)))
        length = int(random.integers(least, count + 1))
        start = int(random.integers(0, count - length + 1))
        return (np.arange(count) >= start) & (np.arange(count) < start + length)


@dataclass(frozen=True)
class _AlterFile:
    """Writes the copies of a shard's rows (an item is `{"uri", "number"}`), a row's copies side by side."""

    alter: Alter
    target: str

    def __call__(self, item: Item) -> dict[str, Any]:
        """Write; returns how many rows."""
        fs, path = filesystem(item["uri"])
        with fs.open_input_file(path) as source:
            column = pq.read_table(source, columns=["input_ids"])["input_ids"].to_numpy()
        config = self.alter.config
        random = np.random.default_rng([config.seed, zlib.crc32(b"augment"), item["number"]])
        rows = [self.alter(ids.astype(np.int32), random) for ids in column for _ in range(config.copies)]
        write_rows(pa.array(rows, pa.list_(pa.int32())), join(self.target, f"train/part-{item['number']:05d}.parquet"))
        return {"rows": len(rows)}
