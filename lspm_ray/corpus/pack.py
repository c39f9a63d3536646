"""Step 4 of `prepare`: fetch the texts of a shard, tokenise them, write the shard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, filesystem, join
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.consolidate import as_bytes, read_kept
from lspm_ray.corpus.scan import ROWS, TEXTS
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


def shard_name(split: str, number: int) -> str:
    """Path of a shard inside the artifact."""
    return f"{split}/part-{number:05d}.parquet"


class Shard(TypedDict):
    """A shard to write (JSON types).

    Attributes:
        number: its place in the split.
        spans: [partition, start, stop, limit]: rows `start` to `stop` of the split within a partition, of which only
            the first `limit` rows of any split count.
    """

    number: int
    spans: list[list[int]]


def plan_shards(rows: NDArray[np.int64], limits: Sequence[int], rows_per_shard: int) -> list[Shard]:
    """Cut a split into shards of equal size, give or take one row; at least one, if only an empty one.

    Args:
        rows: of the split in each partition, shape [partitions].
        limits: rows of any split that count in each partition.
        rows_per_shard: at most.
    """
    total = int(rows.sum())
    count = max(1, math.ceil(total / rows_per_shard))
    ends = np.cumsum(rows)
    shards: list[Shard] = []
    for number in range(count):
        start, stop = total * number // count, total * (number + 1) // count
        spans = []
        for partition in range(int(np.searchsorted(ends, start, side="right")), len(rows)):
            begin = int(ends[partition] - rows[partition])
            if begin >= stop:
                break
            if rows[partition]:
                low, high = max(start, begin) - begin, min(stop, int(ends[partition])) - begin
                spans.append([partition, low, high, limits[partition]])
        shards.append({"number": number, "spans": spans})
    return shards


def group_shards(shards: Sequence[Shard], rows_per_task: int) -> Iterator[list[Shard]]:
    """Put neighbouring shards together, as long as they hold no more than `rows_per_task` rows."""
    group: list[Shard] = []
    rows = 0
    for shard in shards:
        size = sum(stop - start for _, start, stop, _ in shard["spans"])
        if group and rows + size > rows_per_task:
            yield group
            group, rows = [], 0
        group.append(shard)
        rows += size
    yield group


class _Rows(NamedTuple):
    """Rows of one split in the final order."""

    ids: list[bytes]
    texts: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Pack:
    """Writes neighbouring shards of one split (an item is `{"split": name, "shards": [Shard, ...]}`) and returns
    histograms of the lengths of their texts.

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
        """Write the shards."""
        split, shards = item["split"], item["shards"]
        rows = self._rows([span for shard in shards for span in shard["spans"]], SPLITS.index(split))
        encoded = self._encode(rows.texts)
        tokens = np.array([len(ids) for ids in encoded], dtype=np.int64)
        characters = np.array([len(text) for text in rows.texts], dtype=np.int64)
        table = pa.Table.from_arrays(
            [
                pa.array([row_id.hex() for row_id in rows.ids], pa.string()),
                pa.array(rows.texts, pa.string()),
                pa.array(rows.labels, pa.int64()),
                _lists(encoded, tokens),
            ],
            schema=SCHEMA,
        )
        start = 0
        for shard in shards:
            size = sum(stop - start for _, start, stop, _ in shard["spans"])
            self._write(table.slice(start, size), shard_name(split, shard["number"]))
            start += size
        return {
            "split": split,
            "tokens": Histogram.of(tokens).raw(),
            "characters": Histogram.of(characters, _CHARACTER_BIN).raw(),
        }

    def _rows(self, spans: list[list[int]], split: int) -> _Rows:
        """The rows of consecutive spans; every partition is read once."""
        rows = _Rows([], [], [])
        for partition, group in groupby(spans, key=lambda span: span[0]):
            some = list(group)
            ids, labels, splits = read_kept(self.staging, partition, some[0][3])
            chosen = np.flatnonzero(splits == split)[some[0][1] : some[-1][2]]
            texts = staged_texts(self.staging, self.chunks, ids[chosen], partition)
            rows.ids.extend(_whole(row_id) for row_id in ids[chosen].tolist())
            rows.texts.extend(texts)
            rows.labels.extend(labels[chosen].tolist())
        return rows

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


def staged_texts(staging: Staging, chunks: Sequence[str], ids: NDArray[np.bytes_], partition: int) -> list[str]:
    """The text of each of the different `ids` (32 bytes), which all lie in one partition of the final order."""
    order = np.argsort(ids)
    ordered = ids[order]
    found = [""] * len(ids)
    for chunk in chunks:
        staged = as_bytes(binary_values(staging.read_batch(f"rows/{chunk}", partition, ROWS)["id"]))
        place = np.minimum(np.searchsorted(ordered, staged), len(ids) - 1)
        hits = np.flatnonzero(ordered[place] == staged)
        if len(hits):
            texts = staging.read_batch(f"texts/{chunk}", partition, TEXTS)["text"].take(pa.array(hits))
            for position, text in zip(order[place[hits]].tolist(), texts.to_pylist(), strict=True):
                found[position] = text
    return found


def _whole(row_id: bytes) -> bytes:
    return row_id.ljust(32, b"\0")  # numpy cuts zero bytes at the end


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
