"""Step 3 of `documents`: decide which documents of a partition stay, order and divide them, and write its shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import filesystem, join
from lspm_ray.corpus.consolidate import SUPERFLUOUS, as_bytes
from lspm_ray.corpus.pack import staged_texts
from lspm_ray.corpus.split import order_keys, split_of
from lspm_ray.corpus.staging import Staging, binary_values
from lspm_ray.documents.lengths import Lengths
from lspm_ray.documents.scan import IDS
from lspm_ray.documents.words import count_words, stage_counts

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
"""Columns of a shard. `id` is the hex sha256 of `text`, which is normalised and cleaned."""

ROW_GROUP = 1024
_EXCERPT = 200
_MOST_COPIED = 20


def shard_name(split: str, number: int) -> str:
    """Path of a shard inside the artifact."""
    return f"{split}/part-{number:05d}.parquet"


@dataclass(frozen=True)
class WriteDocuments:
    """Writes the shards of one partition of the final order (an item is `{"partition": p}`), one for each split that
    has documents there.

    Attributes:
        staging: where the documents are.
        chunks: names of the staged chunks.
        target: URI of the artifact being written.
        validation: share of the validation split.
        seed: salt of the hashes.
        near_duplicates: whether superfluous documents were written down.
        word_partitions: of the vocabulary.
        shown: ids (32 hex digits) of documents whose beginning is wanted for the report.
        quarantine: whether duplicates are written down, those that are nearly equal with their text.
    """

    staging: Staging
    chunks: Sequence[str]
    target: str
    validation: float
    seed: int
    near_duplicates: bool
    word_partitions: int
    shown: frozenset[str]
    quarantine: bool

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write; returns counts, lengths and excerpts."""
        partition: int = item["partition"]
        ids, copies = self._staged(partition)
        gone, stays = self._superfluous(partition)
        near = np.isin(as_bytes(ids[:, :16]), gone)
        # The documents with most copies; of them all, not only of those that stay: a copied one may have a near twin.
        most = np.argsort(-copies, kind="stable")[:_MOST_COPIED]
        copied = [[ids[place].tobytes().hex(), int(copies[place])] for place in most if copies[place] > 1]
        exact = int(copies.sum()) - len(ids)
        if self.quarantine:
            self._put_aside(partition, ids, copies, near, dict(zip(gone.tolist(), stays.tolist(), strict=True)))
        ids = ids[~near]
        ids = ids[np.lexsort((as_bytes(ids), order_keys(ids, self.seed)))]
        texts = staged_texts(self.staging, self.chunks, as_bytes(ids), partition) if len(ids) else []
        wanted = self.shown | {document for document, _ in copied}
        written = {split: self._write(split, partition, ids, texts) for split in ("train", "validation")}
        stage_counts(self.staging, f"{partition:06d}.arrow", count_words(texts), self.word_partitions)
        return {
            "exact": exact,
            "near": int(near.sum()),
            "copied": copied,
            "excerpts": {h: t[:_EXCERPT] for h, t in self._find(ids, texts, wanted)},
            "splits": written,
        }

    def _staged(self, partition: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The different documents of the partition, shape [documents, 32], and how often each came."""
        batches = [self.staging.read_batch(f"rows/{chunk}", partition, IDS) for chunk in self.chunks]
        found = [binary_values(batch["id"]).reshape(-1, 32) for batch in batches]
        ids = np.concatenate([np.empty((0, 32), dtype=np.uint8), *found])
        different, copies = np.unique(ids, axis=0, return_counts=True)
        return different, copies.astype(np.int64)

    def _superfluous(self, partition: int) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
        if not self.near_duplicates:
            return np.empty(0, dtype="S16"), np.empty(0, dtype="S16")
        batch = self.staging.read_batch("superfluous.arrow", partition, SUPERFLUOUS)
        return as_bytes(binary_values(batch["id"])), as_bytes(binary_values(batch["stays"]))

    def _put_aside(
        self,
        partition: int,
        ids: NDArray[np.uint8],
        copies: NDArray[np.int64],
        near: NDArray[np.bool_],
        stays: dict[bytes, bytes],
    ) -> None:
        """Write the duplicates down; the text of an exact one is that of the document with the same id."""
        lines = [
            {"reason": "exact duplicate", "id": ids[place].tobytes().hex(), "rows": int(copies[place]) - 1}
            for place in np.flatnonzero(copies > 1)
        ]
        gone = ids[near]
        texts = staged_texts(self.staging, self.chunks, as_bytes(gone), partition) if len(gone) else []
        for row, text in zip(gone, texts, strict=True):
            kept = stays[as_bytes(row[None, :16])[0]].ljust(16, b"\0")
            lines.append({"reason": "near duplicate", "id": row.tobytes().hex(), "of": kept.hex(), "raw": text})
        if lines:
            with _created(join(self.target, f"quarantine/duplicates-{partition:05d}.jsonl")) as sink:
                sink.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def _find(self, ids: NDArray[np.uint8], texts: list[str], wanted: frozenset[str]) -> list[tuple[str, str]]:
        if not wanted:
            return []
        short = {name[:32]: name for name in wanted}
        names = (ids[place].tobytes().hex() for place in range(len(ids)))
        return [(short[name[:32]], texts[place]) for place, name in enumerate(names) if name[:32] in short]

    def _write(self, split: str, partition: int, ids: NDArray[np.uint8], texts: list[str]) -> dict[str, Any]:
        shares = {"validation": self.validation, "train": 1 - self.validation}
        mine = [place for place in range(len(ids)) if split_of(ids[place].tobytes(), shares, self.seed) == split]
        some = [texts[place] for place in mine]
        if mine:
            names = [ids[place].tobytes().hex() for place in mine]
            table = pa.Table.from_arrays([pa.array(names, pa.string()), pa.array(some, pa.string())], schema=SCHEMA)
            write_table(table, join(self.target, shard_name(split, partition)), ROW_GROUP)
        return {
            "documents": len(some),
            "bytes": sum(len(text.encode()) for text in some),
            "characters": Lengths.of(np.array([len(text) for text in some], dtype=np.int64)).raw(),
        }


def write_table(table: pa.Table, uri: str, row_group: int) -> None:
    """Write a Parquet file with checksums of its pages; its directory is made."""
    with _created(uri) as sink:
        pq.write_table(table, sink, compression="zstd", row_group_size=row_group, write_page_checksum=True)


def _created(uri: str) -> Any:
    fs, path = filesystem(uri)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    return fs.open_output_stream(path, compression=None)
