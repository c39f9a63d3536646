"""Steps 2 and 3 of `prepare`: find near-equal texts, then decide which rows stay and where they go. No text is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.dedup import NODE, SKETCH_BYTES, match
from lspm_ray.corpus.scan import INDEX, ROWS
from lspm_ray.corpus.split import UNASSIGNED, order_keys, partition_of, precedence, split_of
from lspm_ray.corpus.staging import Staging, binary_array, binary_values, split_batches

PAIRS = pa.schema([("left", pa.binary(NODE.itemsize)), ("right", pa.binary(NODE.itemsize))])
"""Near-equal texts."""
SUPERFLUOUS = pa.schema([("id", pa.binary(16)), ("stays", pa.binary(16))])
"""Texts that have a near-equal one that stays, and that one."""
KEPT = pa.schema([("id", pa.binary(32)), ("label", pa.int32()), ("split", pa.int8())])
"""Rows that stay, in the final order; `label` is the class index, `split` the code."""


@dataclass(frozen=True)
class Match:
    """Finds the near-equal pairs in one partition of the band keys (an item is `{"partition": p}`)."""

    staging: Staging
    chunks: Sequence[str]
    similarity: float

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the pairs; returns how many."""
        partition: int = item["partition"]
        done = f"match/{partition:06d}.json"
        return self.staging.read_result(done) or self.staging.write_result(done, self._match(partition))

    def _match(self, partition: int) -> dict[str, Any]:
        batches = [self.staging.read_batch(f"index/{chunk}", partition, INDEX) for chunk in self.chunks]
        keys = np.concatenate([np.asarray(batch["key"]) for batch in batches])
        nodes = np.empty(len(keys), dtype=NODE)
        nodes["rank"] = np.concatenate([np.asarray(batch["rank"]) for batch in batches])
        nodes["id"] = as_bytes(np.concatenate([binary_values(batch["id"]) for batch in batches]))
        sketch = np.concatenate([binary_values(batch["sketch"]) for batch in batches]).reshape(-1, SKETCH_BYTES)
        left, right = match(keys, nodes, sketch, self.similarity)
        pairs = pa.record_batch([_node_array(left), _node_array(right)], schema=PAIRS)
        self.staging.write_batches(f"pairs/{partition:06d}.arrow", [pairs])
        return {"pairs": len(left)}


def read_pairs(staging: Staging, partition: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """What `Match` wrote for a partition."""
    batch = staging.read_batch(f"pairs/{partition:06d}.arrow", 0, PAIRS)
    return _nodes(batch["left"]), _nodes(batch["right"])


def write_superfluous(
    staging: Staging, gone: NDArray[np.bytes_], stays: NDArray[np.bytes_], seed: int, partitions: int
) -> None:
    """Hand what `superfluous` returns to the partitions of the final order."""
    ids, kept = (
        np.frombuffer(column.astype("S16").tobytes(), dtype=np.uint8).reshape(-1, 16) for column in (gone, stays)
    )
    partition = partition_of(order_keys(ids, seed), partitions)
    batch = pa.record_batch([binary_array(ids), binary_array(kept)], schema=SUPERFLUOUS)
    staging.write_batches("superfluous.arrow", split_batches(batch, partition, partitions))


@dataclass(frozen=True)
class Keep:
    """Decides about the rows of one partition of the final order (an item is `{"partition": p}`).

    Of rows with equal text one stays: of the split that comes last in the list of splits, with the label that most of
    them have there (the first in the label order, if several do).

    Attributes:
        staging: where the rows are.
        chunks: names of the staged chunks.
        labels: label names in the order of the class indices.
        shares: the splits that rows are divided among by hash, with their shares.
        seed: salt of the hashes.
        near_duplicates: whether superfluous texts were written.
    """

    staging: Staging
    chunks: Sequence[str]
    labels: Sequence[str]
    shares: dict[str, float]
    seed: int
    near_duplicates: bool

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the rows that stay, in the final order; returns counts."""
        partition: int = item["partition"]
        done = f"keep/{partition:06d}.json"
        return self.staging.read_result(done) or self.staging.write_result(done, self._keep(partition))

    def _keep(self, partition: int) -> dict[str, Any]:
        batches = [self.staging.read_batch(f"rows/{c}", partition, ROWS) for c in self.chunks]
        ids = np.concatenate([binary_values(batch["id"]) for batch in batches]).reshape(-1, 32)
        number = {name: index for index, name in enumerate(self.labels)}
        labels = np.array([number[name] for batch in batches for name in batch["label"].to_pylist()], dtype=np.int32)
        splits = np.concatenate([np.asarray(batch["split"]) for batch in batches])
        first, labels, splits, conflicts = unique_rows(ids, labels, splits)
        exact = len(ids) - len(first)
        ids = ids[first]
        stays = ~np.isin(as_bytes(ids[:, :16]), self._superfluous(partition))
        near = len(ids) - int(stays.sum())
        ids, labels, splits = ids[stays], labels[stays], splits[stays]
        splits = self._assign(ids, splits)
        order = np.lexsort((as_bytes(ids), order_keys(ids, self.seed)))
        rows = [binary_array(ids[order]), pa.array(labels[order]), pa.array(splits[order])]
        self.staging.write_batches(_kept_name(partition), [pa.record_batch(rows, schema=KEPT)])
        counts = count_classes(splits, labels, len(self.labels))
        return {"exact": exact, "near": near, "conflicts": conflicts, "counts": counts.tolist()}

    def _superfluous(self, partition: int) -> NDArray[np.bytes_]:
        if not self.near_duplicates:
            return np.empty(0, dtype="S16")
        return as_bytes(binary_values(self.staging.read_batch("superfluous.arrow", partition, SUPERFLUOUS)["id"]))

    def _assign(self, ids: NDArray[np.uint8], given: NDArray[np.int8]) -> NDArray[np.int8]:
        codes = given.copy()
        by_hash = np.flatnonzero((given == UNASSIGNED) | (given == SPLITS.index("train")))
        for index in by_hash:
            codes[index] = SPLITS.index(split_of(ids[index].tobytes(), self.shares, self.seed))
        return codes


def _kept_name(partition: int) -> str:
    return f"keep/{partition:06d}.arrow"


def read_kept(
    staging: Staging, partition: int, limit: int
) -> tuple[NDArray[np.bytes_], NDArray[np.int32], NDArray[np.int8]]:
    """The first `limit` rows that stay in a partition: ids (32 bytes), class indices, split codes."""
    batch = staging.read_batch(_kept_name(partition), 0, KEPT).slice(0, limit)
    return as_bytes(binary_values(batch["id"])), np.asarray(batch["label"]), np.asarray(batch["split"])


def unique_rows(
    ids: NDArray[np.uint8], labels: NDArray[np.int32], splits: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int8], int]:
    """One row per text, whatever the order of the rows.

    Args:
        ids: sha256 of the texts, shape [rows, 32].
        labels: class indices, shape [rows].
        splits: split codes, shape [rows].

    Returns:
        Index of some row of each text, its label and split as described for `Keep`, and how many texts came with
        different labels.
    """
    order = np.argsort(as_bytes(ids), kind="stable")
    sorted_ids = ids[order]
    fresh = np.ones(len(ids), dtype=bool)
    fresh[1:] = (sorted_ids[1:] != sorted_ids[:-1]).any(axis=1)
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(starts, len(ids)))
    first = order[starts]
    chosen_labels, chosen_splits, conflicts = labels[first], splits[first], 0
    for group in np.flatnonzero(sizes > 1):
        members = order[starts[group] : starts[group] + sizes[group]]
        best = min(precedence(int(code)) for code in splits[members])
        inner = [int(m) for m in members if precedence(int(splits[m])) == best]
        votes = Counter(int(labels[m]) for m in inner)
        chosen_labels[group] = min(votes, key=lambda label: (-votes[label], label))
        # Rows of `train` and rows without a split rank alike and are treated alike.
        chosen_splits[group] = min(splits[m] for m in inner)
        conflicts += len(set(labels[members].tolist())) > 1
    return first, chosen_labels, chosen_splits, conflicts


def count_classes(splits: NDArray[np.int8], labels: NDArray[np.int32], classes: int) -> NDArray[np.int64]:
    """Rows of each split and class, shape [splits, classes]."""
    flat = splits.astype(np.int64) * classes + labels
    return np.bincount(flat, minlength=len(SPLITS) * classes).reshape(len(SPLITS), classes)


def as_bytes(values: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Rows of bytes as one bytes value each, which sort and compare as a whole."""
    width = values.shape[1]
    return np.ascontiguousarray(values).view(f"S{width}").reshape(-1)


def _node_array(nodes: NDArray[np.void]) -> pa.Array:
    return binary_array(np.frombuffer(nodes.tobytes(), dtype=np.uint8).reshape(-1, NODE.itemsize))


def _nodes(array: pa.Array) -> NDArray[np.void]:
    return np.frombuffer(binary_values(array).tobytes(), dtype=NODE)
