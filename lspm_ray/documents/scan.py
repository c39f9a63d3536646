"""Step 1 of `documents`: read files, clean their documents, stage them by partition, and index them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lspm_ray.corpus.clean import normalize, text_id
from lspm_ray.corpus.quarantine import Quarantine
from lspm_ray.corpus.read import Rejected, Row, read_unit
from lspm_ray.corpus.scan import TEXTS, index_entries
from lspm_ray.corpus.sources import Layout, SourceFile, Unit
from lspm_ray.corpus.split import order_keys, partition_of
from lspm_ray.corpus.staging import Staging, binary_array, split_batches
from lspm_ray.documents.config import DocumentsConfig
from lspm_ray.documents.contamination import Contamination
from lspm_ray.documents.rule import Drop, Rule

IDS = pa.schema([("id", pa.binary(32))])
"""Staged documents without their texts, which are in a file of their own in the same order."""

_EMPTY = Drop("empty after cleaning")


@dataclass
class Found:
    """What one item brought.

    Attributes:
        documents: that were read.
        characters: of these, as they were read.
        dropped: documents by the reason for which they are not used.
    """

    documents: int = 0
    characters: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def group_units(units: Sequence[Unit], unit_bytes: int) -> list[dict[str, Any]]:
    """Work items: neighbouring units of small files go together, so that a million pages are not a million tasks."""
    groups: list[list[Unit]] = []
    size = 0
    for unit in units:
        share = unit.file.bytes // unit.parts
        if not groups or size + share > unit_bytes:
            groups.append([])
            size = 0
        groups[-1].append(unit)
        size += share
    return [{"number": n, "units": [unit.to_dict() for unit in group]} for n, group in enumerate(groups)]


@dataclass(frozen=True)
class ScanDocuments:
    """Stages the documents of some units (an item comes from `group_units`) and returns what was found in them.

    Files per chunk: `rows/` holds the id of each document and `texts/` its text, by partition of the final order;
    `index/` holds one entry per document and band, by partition of the band key. An item that is done is not done
    again.

    Attributes:
        config: what the user says.
        staging: where everything goes.
        layout: how much is held in memory.
        partitions: of the shuffles.
        contamination: finds documents that are known to evaluation sets; None without any.
    """

    config: DocumentsConfig
    staging: Staging
    layout: Layout
    partitions: int
    contamination: Contamination | None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Scan an item.

        Raises:
            DataError: a file cannot be used as it is.
        """
        done = f"scan/{item['number']:06d}.json"
        return self.staging.read_result(done) or self.staging.write_result(done, self._scan(item))

    def _scan(self, item: dict[str, Any]) -> dict[str, Any]:
        found, chunks = Found(), []
        cleaner = Cleaner(self.config.cleaning(), self.contamination)
        units = [Unit.from_dict(unit) for unit in item["units"]]
        with Quarantine(self.staging, item["number"]) as quarantine:
            for number, texts in enumerate(self._chunks(units, cleaner, found, quarantine)):
                name = f"{item['number']:06d}-{number:06d}.arrow"
                self._stage(texts, name)
                chunks.append(name)
        return {
            "chunks": chunks,
            "documents": found.documents,
            "characters": found.characters,
            "dropped": dict(found.dropped),
            "quarantined": dict(quarantine.reasons),
        }

    def _chunks(self, units: list[Unit], cleaner: Cleaner, found: Found, quarantine: Quarantine) -> Iterator[list[str]]:
        texts: list[str] = []
        characters = 0
        for unit in units:
            for row in read_unit(unit, self.config):
                if isinstance(row, Rejected):
                    quarantine.add(unit.file, row)
                    continue
                text = self._kept(row, unit.file, cleaner, found, quarantine)
                if text is None:
                    continue
                texts.append(text)
                characters += len(text)
                if len(texts) >= self.layout.chunk_rows or characters >= self.layout.chunk_characters:
                    yield texts
                    texts, characters = [], 0
        if texts:
            yield texts

    def _kept(self, row: Row, file: SourceFile, cleaner: Cleaner, found: Found, quarantine: Quarantine) -> str | None:
        raw = row.text or ""
        found.documents += 1
        found.characters += len(raw)
        text = cleaner.clean(raw)
        if isinstance(text, str):
            return text
        found.dropped[text.reason] += 1
        if self.config.quarantine and raw:
            quarantine.write(file, Rejected(found.documents, row.place, text.reason, raw=raw))
        return None

    def _stage(self, texts: list[str], name: str) -> None:
        ids = np.frombuffer(b"".join(text_id(text) for text in texts), dtype=np.uint8).reshape(-1, 32)
        partition = partition_of(order_keys(ids, self.config.seed), self.partitions)
        self._write(f"rows/{name}", pa.record_batch([binary_array(ids)], schema=IDS), partition)
        self._write(f"texts/{name}", pa.record_batch([pa.array(texts, pa.large_string())], schema=TEXTS), partition)
        if self.config.near_duplicates:
            ranks = np.zeros(len(texts), dtype=np.uint8)
            index = index_entries(texts, ids, ranks, self.config.similarity)
            self._write(f"index/{name}", index, partition_of(np.asarray(index["key"]), self.partitions))

    def _write(self, name: str, batch: pa.RecordBatch, partition: NDArray[np.int64]) -> None:
        self.staging.write_batches(name, split_batches(batch, partition, self.partitions))


class Cleaner:
    """Everything that happens to a text before it is compared with others.

    Args:
        rules: in order.
        contamination: asked last, about the text as it would be trained on.
    """

    def __init__(self, rules: Sequence[Rule], contamination: Contamination | None = None) -> None:
        for rule in rules:
            rule.prepare()
        self._rules = rules
        self._contamination = contamination

    def clean(self, raw: str) -> str | Drop:
        """The normalised, cleaned text, or why it is not used."""
        text = normalize(raw)
        if not text:
            return Drop("no text")
        for rule in self._rules:
            outcome = rule.apply(text)
            if isinstance(outcome, Drop):
                return outcome
            if outcome is not text:
                outcome = normalize(outcome)
            if not outcome:
                return _EMPTY
            text = outcome
        name = self._contamination.find(text) if self._contamination else None
        return text if name is None else Drop(f"in evaluation set {name}")
