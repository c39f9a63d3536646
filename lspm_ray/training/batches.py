"""From table rows to training batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lspm_ray.inference.batching import pad

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

CHUNK_BATCHES = 32
"""Batches that are shuffled and sorted by length together; the rows on disk are already in random order."""

TRAIN_COLUMNS = ["input_ids", "label"]
TEACHER_COLUMN = "teacher_logits"
NO_LABEL = -1
"""Label of a row that has none: only a teacher can say anything about it."""


def chunk_rows(batch_size: int) -> int:
    """Rows per chunk."""
    return batch_size * CHUNK_BATCHES


def batches_in(rows: int, batch_size: int) -> int:
    """Batches that `rows` rows give when they arrive in chunks."""
    chunk = chunk_rows(batch_size)
    return rows // chunk * CHUNK_BATCHES + -(-(rows % chunk) // batch_size)


def batches(
    chunks: Iterable[pa.Table], batch_size: int, pad_id: int, seed: int, epoch: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches: rows of similar length together, batches in random order.

    Args:
        chunks: tables of `chunk_rows(batch_size)` rows (the last may be shorter).
        batch_size: rows per batch.
        pad_id: token id used for padding.
        seed: together with `epoch` decides the order.
        epoch: number of the pass over the data.

    Yields:
        `input_ids`, `attention_mask` [rows, tokens], `labels` [rows] (`NO_LABEL` where there is none) and, if the
        table has them, `teacher_logits` [rows, labels].
    """
    for number, chunk in enumerate(chunks):
        random = np.random.default_rng([seed, epoch, number])
        examples = [np.asarray(row, dtype=np.int64) for row in chunk["input_ids"].to_numpy()]
        for rows in _plan([len(e) for e in examples], batch_size, random):
            yield _collate(chunk.take(rows), [examples[row] for row in rows], pad_id)


def _plan(lengths: list[int], batch_size: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    shuffled = random.permutation(len(lengths))
    by_length = shuffled[np.argsort(np.asarray(lengths)[shuffled], kind="stable")]
    parts = [by_length[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return [parts[index] for index in random.permutation(len(parts))]


def _collate(table: pa.Table, examples: list[NDArray[np.int64]], pad_id: int) -> dict[str, torch.Tensor]:
    import torch

    ids, mask = pad(examples, pad_id)
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
    }
    if TEACHER_COLUMN in table.column_names:
        batch[TEACHER_COLUMN] = torch.from_numpy(np.stack(table[TEACHER_COLUMN].to_numpy()).astype(np.float32))
    return batch
