"""Step 1 of `prepare`: read a unit, clean its rows, stage them by partition, and index them for the comparison."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lspm_ray.corpus.clean import normalize, reason_to_drop, text_id
from lspm_ray.corpus.config import SPLITS, DataConfig
from lspm_ray.corpus.dedup import SKETCH_BYTES, Bands, band_keys, signatures, sketches
from lspm_ray.corpus.labels import LabelSet, check_count
from lspm_ray.corpus.read import Rejected, Row, read_unit
from lspm_ray.corpus.sources import Layout, SourceFile, Unit
from lspm_ray.corpus.split import UNASSIGNED, order_keys, partition_of, precedence
from lspm_ray.corpus.staging import Staging, binary_array, split_batches
from lspm_ray.errors import DataError

ROWS = pa.schema([("id", pa.binary(32)), ("label", pa.string()), ("split", pa.int8())])
"""Staged rows without their texts; `label` is the name, `split` the code or `UNASSIGNED`."""
TEXTS = pa.schema([("text", pa.large_string())])
"""Their texts, in the same order."""
INDEX = pa.schema(
    [("key", pa.uint64()), ("rank", pa.uint8()), ("id", pa.binary(16)), ("sketch", pa.binary(SKETCH_BYTES))]
)
"""Entries for the comparison: band key, and the text it belongs to (see `dedup.NODE`)."""


@dataclass
class _Chunk:
    """Cleaned rows that are not staged yet."""

    ids: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    characters: int = 0


@dataclass(frozen=True)
class Scan:
    """Stages the rows of one unit (an item is a `Unit` as JSON) and returns what was found in it.

    Files per chunk: `rows/` holds id, label and split of each row, and `texts/` its text, by partition of the final
    order; `index/` holds one entry per row and band, by partition of the band key. Rejects go to `quarantine/`. A unit
    that is done is not done again.
    """

    config: DataConfig
    staging: Staging
    layout: Layout
    partitions: int

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Scan a unit.

        Raises:
            DataError: the file cannot be used as it is: a missing column, an unknown label or split name.
        """
        unit = Unit.from_dict(item)
        done = f"scan/{unit.number:06d}.json"
        result = self.staging.read_result(done)
        return result or self.staging.write_result(done, self._scan(unit))

    def _scan(self, unit: Unit) -> dict[str, Any]:
        found = _Findings(LabelSet.of(self.config.labels))
        chunks: list[str] = []
        with _Quarantine(self.staging, unit) as quarantine:
            for number, chunk in enumerate(self._chunks(unit, found, quarantine)):
                name = f"{unit.number:06d}-{number:06d}.arrow"
                self._stage(chunk, name)
                chunks.append(name)
        return {
            "chunks": chunks,
            "rows": found.rows,
            "dropped": dict(found.dropped),
            "notes": dict(found.notes),
            "quarantined": dict(quarantine.reasons),
            "labels": dict(found.labels),
            "splits": sorted(found.splits),
        }

    def _chunks(self, unit: Unit, found: _Findings, quarantine: _Quarantine) -> Iterator[_Chunk]:
        chunk = _Chunk()
        for item in read_unit(unit, self.config):
            if isinstance(item, Rejected):
                quarantine.add(item)
                continue
            self._add(item, unit.file, chunk, found)
            full = len(chunk.texts) >= self.layout.chunk_rows or chunk.characters >= self.layout.chunk_characters
            if full:
                yield chunk
                chunk = _Chunk()
        if chunk.texts:
            yield chunk

    def _add(self, row: Row, file: SourceFile, chunk: _Chunk, found: _Findings) -> None:
        found.rows += 1
        text = self._clean(row.text or "", found)
        reason = reason_to_drop(text, row.label, self.config.min_characters)
        if reason is not None or row.label is None:
            found.dropped[reason or "no label"] += 1
            return
        where = f"{row.place} of {file.name}"
        label = found.label_set.name(row.label, where)
        found.labels[label] += 1
        if found.labels[label] == 1:
            check_count(found.labels)
        split = _split_code(row.split, where) if not file.held_out else SPLITS.index("test")
        if split != UNASSIGNED:
            found.splits.add(SPLITS[split])
        chunk.ids.append(text_id(text))
        chunk.texts.append(text)
        chunk.labels.append(label)
        chunk.splits.append(split)
        chunk.characters += len(text)

    def _clean(self, raw: str, found: _Findings) -> str:
        limit = self.config.max_characters
        # Far more than is kept need not be cleaned either: a text of many MiB would take minutes.
        text = normalize(raw[: 8 * limit])
        if len(text) > limit or len(raw) > 8 * limit:
            found.notes["cut to max_characters"] += 1
            text = normalize(text, limit)
        return text

    def _stage(self, chunk: _Chunk, name: str) -> None:
        ids = np.frombuffer(b"".join(chunk.ids), dtype=np.uint8).reshape(-1, 32)
        rows = [binary_array(ids), pa.array(chunk.labels, pa.string()), pa.array(chunk.splits, pa.int8())]
        texts = [pa.array(chunk.texts, pa.large_string())]
        partition = partition_of(order_keys(ids, self.config.seed), self.partitions)
        self._write(f"rows/{name}", pa.record_batch(rows, schema=ROWS), partition)
        self._write(f"texts/{name}", pa.record_batch(texts, schema=TEXTS), partition)
        if not self.config.near_duplicates:
            return
        signature = signatures(chunk.texts)
        keys = band_keys(signature, Bands.for_similarity(self.config.similarity))
        bands = keys.shape[1]
        ranks = np.array([precedence(split) for split in chunk.splits], dtype=np.uint8)
        index = [
            pa.array(keys.ravel()),
            pa.array(ranks.repeat(bands)),
            binary_array(ids[:, :16].repeat(bands, axis=0)),
            binary_array(sketches(signature).repeat(bands, axis=0)),
        ]
        self._write(f"index/{name}", pa.record_batch(index, schema=INDEX), partition_of(keys.ravel(), self.partitions))

    def _write(self, name: str, batch: pa.RecordBatch, partition: NDArray[np.int64]) -> None:
        self.staging.write_batches(name, split_batches(batch, partition, self.partitions))


class _Findings:
    """Counts of one unit."""

    def __init__(self, label_set: LabelSet) -> None:
        self.label_set = label_set
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.splits: set[str] = set()


class _Quarantine(AbstractContextManager["_Quarantine"]):
    """Writes the rejects of one unit as they come; no file without any."""

    def __init__(self, staging: Staging, unit: Unit) -> None:
        self.reasons: Counter[str] = Counter()
        self._staging = staging
        self._unit = unit
        self._sink: Any = None

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()

    def add(self, reject: Rejected) -> None:
        self.reasons[reject.reason] += 1 if reject.rows is None else reject.rows
        if self._sink is None:
            self._sink = self._staging.open_output(quarantine_name(self._unit.number))
        line = json.dumps({"file": self._unit.file.name, **asdict(reject)}, ensure_ascii=True)
        self._sink.write(line.encode() + b"\n")


def quarantine_name(unit: int) -> str:
    """Where the rejects of a unit are staged."""
    return f"quarantine/{unit:06d}.jsonl"


def _split_code(value: str | None, where: str) -> int:
    if value is None:
        return UNASSIGNED
    if value not in SPLITS:
        raise DataError(f"not the name of a split, in {where}", field="data.split_column", value=value, valid=SPLITS)
    return SPLITS.index(value)
