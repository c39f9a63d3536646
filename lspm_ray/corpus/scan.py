"""Step 1 of `prepare`: read a unit, clean its rows, stage them by partition, and index them for the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lspm_ray.corpus.clean import cut, reason_to_drop, text_id
from lspm_ray.corpus.config import SPLITS, DataConfig
from lspm_ray.corpus.dedup import SKETCH_BYTES, Bands, band_keys, signatures, sketches
from lspm_ray.corpus.labels import LabelSet, check_count
from lspm_ray.corpus.quarantine import Quarantine
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
        with Quarantine(self.staging, unit.number) as quarantine:
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

    def _chunks(self, unit: Unit, found: _Findings, quarantine: Quarantine) -> Iterator[_Chunk]:
        chunk = _Chunk()
        for item in read_unit(unit, self.config):
            if isinstance(item, Rejected):
                quarantine.add(unit.file, item)
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
        split = split_code(row, file)
        if split != UNASSIGNED:
            found.splits.add(SPLITS[split])
        chunk.ids.append(text_id(text))
        chunk.texts.append(text)
        chunk.labels.append(label)
        chunk.splits.append(split)
        chunk.characters += len(text)

    def _clean(self, raw: str, found: _Findings) -> str:
        text, shortened = cut(raw, self.config.max_characters)
        if shortened:
            found.notes["cut to max_characters"] += 1
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
        ranks = np.array([precedence(split) for split in chunk.splits], dtype=np.uint8)
        index = index_entries(chunk.texts, ids, ranks, self.config.similarity)
        self._write(f"index/{name}", index, partition_of(np.asarray(index["key"]), self.partitions))

    def _write(self, name: str, batch: pa.RecordBatch, partition: NDArray[np.int64]) -> None:
        self.staging.write_batches(name, split_batches(batch, partition, self.partitions))


def index_entries(
    texts: Sequence[str], ids: NDArray[np.uint8], ranks: NDArray[np.uint8], similarity: float
) -> pa.RecordBatch:
    """Entries of the comparison (`INDEX`) of some texts, one per text and band.

    Args:
        texts: normalised.
        ids: their sha256, shape [texts, 32].
        ranks: see `dedup.NODE`, shape [texts].
        similarity: the threshold, which decides the bands.
    """
    signature = signatures(texts)
    keys = band_keys(signature, Bands.for_similarity(similarity))
    bands = keys.shape[1]
    entries = [
        pa.array(keys.ravel()),
        pa.array(ranks.repeat(bands)),
        binary_array(ids[:, :16].repeat(bands, axis=0)),
        binary_array(sketches(signature).repeat(bands, axis=0)),
    ]
    return pa.record_batch(entries, schema=INDEX)


class _Findings:
    """Counts of one unit."""

    def __init__(self, label_set: LabelSet) -> None:
        self.label_set = label_set
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.splits: set[str] = set()


def split_code(row: Row, file: SourceFile) -> int:
    """The split that a row names, or that its file belongs to; `UNASSIGNED` if there is none.

    Raises:
        DataError: it is not the name of a split.
    """
    if file.held_out:
        return SPLITS.index("test")
    if row.split is None:
        return UNASSIGNED
    if row.split not in SPLITS:
        where = f"{row.place} of {file.name}"
        raise DataError(
            f"not the name of a split, in {where}", field="data.split_column", value=row.split, valid=SPLITS
        )
    return SPLITS.index(row.split)
