"""Step 4 of `prepare`: fetch the texts of a shard, tokenise them, write the shard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, filesystem, join
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.consolidate import keep_name
from lspm_ray.corpus.staging import Staging, binary_values
from lspm_ray.corpus.stats import Histogram
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.tasks import Encoded, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("label", pa.int64()), ("input_ids", pa.list_(pa.int32()))]
)
"""Columns of a shard. `id` is the hex sha256 of `text`, which is normalised; `label` is the class index."""

_CHARACTER_BIN = 100
_ENCODE_ROWS = 1024


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` of a split within one partition, of which only the first `limit` rows count at all."""

    partition: int
    start: int
    stop: int
    limit: int


def shard_name(split: str, number: int) -> str:
    """Path of a shard inside the artifact."""
    return f"{split}/part-{number:05d}.parquet"


def plan_shards(
    rows: NDArray[np.int64], limits: Sequence[int], rows_per_shard: int, split: str
) -> Iterator[dict[str, Any]]:
    """Cut a split into shards of equal size, give or take one row; at least one, if only an empty one.

    Args:
        rows: of the split in each partition, shape [partitions].
        limits: rows of any split that count in each partition.
        rows_per_shard: at most.
        split: its name.

    Yields:
        Items for `Pack`.
    """
    total = int(rows.sum())
    shards = max(1, math.ceil(total / rows_per_shard))
    ends = np.cumsum(rows)
    for number in range(shards):
        start, stop = total * number // shards, total * (number + 1) // shards
        spans = []
        for partition in range(int(np.searchsorted(ends, start, side="right")), len(rows)):
            begin = int(ends[partition] - rows[partition])
            if begin >= stop:
                break
            low, high = max(start, begin) - begin, min(stop, int(ends[partition])) - begin
            spans.append([partition, low, high, limits[partition]])
        yield {"split": split, "number": number, "spans": spans}


@dataclass(frozen=True)
class Pack:
    """Writes one shard (an item comes from `plan_shards`) and returns histograms of its lengths.

    Attributes:
        staging: where the rows are.
        chunks: names of the staged chunks.
        target: URI of the artifact being written.
        task: says how texts become token ids.
        model: the model directory with the tokenizer.
    """

    staging: Staging
    chunks: Sequence[str]
    target: str
    task: Task
    model: Artifact

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the shard."""
        spans = [Span(*span) for span in item["spans"]]
        columns = [self._rows(span, SPLITS.index(item["split"])) for span in spans]
        ids = [row_id for some, _, _ in columns for row_id in some]
        labels = [int(label) for _, some, _ in columns for label in some]
        texts = [text for _, _, some in columns for text in some]
        encoded = self._encode(texts)
        tokens = np.array([len(row) for row in encoded], dtype=np.int64)
        table = pa.Table.from_arrays(
            [
                pa.array([row_id.hex() for row_id in ids], pa.string()),
                pa.array(texts, pa.string()),
                pa.array(labels, pa.int64()),
                _lists(encoded, tokens),
            ],
            schema=SCHEMA,
        )
        self._write(table, shard_name(item["split"], item["number"]))
        characters = np.array([len(text) for text in texts], dtype=np.int64)
        return {
            "split": item["split"],
            "tokens": Histogram.of(tokens).raw(),
            "characters": Histogram.of(characters, _CHARACTER_BIN).raw(),
        }

    def _rows(self, span: Span, split: int) -> tuple[list[bytes], NDArray[np.int32], list[str]]:
        kept = self.staging.read_batch(keep_name(span.partition), 0).slice(0, span.limit)
        chosen = np.flatnonzero(np.asarray(kept["split"]) == split)[span.start : span.stop]
        ids = [row.tobytes() for row in binary_values(kept["id"])[chosen]]
        texts = self._texts(set(ids), span.partition)
        return ids, np.asarray(kept["label"])[chosen], [texts[row_id] for row_id in ids]

    def _texts(self, wanted: set[bytes], partition: int) -> dict[bytes, str]:
        texts: dict[bytes, str] = {}
        for chunk in self.chunks:
            batch = self.staging.read_batch(f"rows/{chunk}", partition, ("id", "text"))
            ids = batch["id"].to_pylist()
            rows = [index for index, row_id in enumerate(ids) if row_id in wanted]
            found = batch["text"].take(pa.array(rows, pa.int64())).to_pylist()
            texts.update(zip((ids[row] for row in rows), found, strict=True))
        return texts

    def _encode(self, texts: list[str]) -> list[Encoded]:
        if not texts:
            return []
        tokenizer = _tokenizer(self.model)
        encoded: list[Encoded] = []
        for start in range(0, len(texts), _ENCODE_ROWS):
            encoded += self.task.encode(texts[start : start + _ENCODE_ROWS], tokenizer)
        return encoded

    def _write(self, table: pa.Table, name: str) -> None:
        uri = join(self.target, name)
        fs, path = filesystem(uri)
        fs.create_dir(path.rpartition("/")[0], recursive=True)
        with fs.open_output_stream(path) as sink:
            pq.write_table(table, sink, compression="zstd", row_group_size=max(1, len(table)))


def _lists(encoded: list[Encoded], lengths: NDArray[np.int64]) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    values = np.concatenate(encoded).astype(np.int32) if encoded else np.empty(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


_TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {}


def _tokenizer(model: Artifact) -> PreTrainedTokenizerBase:
    """The model's tokenizer; once per process, because to verify and load it takes longer than to use it."""
    if model.digest not in _TOKENIZERS:
        _TOKENIZERS[model.digest] = load_tokenizer(model.local())
    return _TOKENIZERS[model.digest]
