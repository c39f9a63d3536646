"""Exact word frequencies, counted where the documents are and merged by parts of the vocabulary.

Every task counts the words of its documents and hands the counts to partitions by the hash of the word; then each
partition adds up the counts of its words. Only the most frequent words of each partition reach the driver.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lspm_ray.corpus.dedup import words
from lspm_ray.corpus.staging import Staging

COUNTS = pa.schema([("word", pa.string()), ("count", pa.int64())])


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Occurrences of each word, case-folded."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    return counts


def stage_counts(staging: Staging, name: str, counts: Counter[str], partitions: int) -> None:
    """Hand counts to the partitions of the vocabulary."""
    parts: list[list[str]] = [[] for _ in range(partitions)]
    for word in counts:
        parts[zlib.crc32(word.encode()) % partitions].append(word)
    batches = [_batch([(word, counts[word]) for word in part]) for part in parts]
    staging.write_batches(f"words/{name}", batches)


@dataclass(frozen=True)
class MergeCounts:
    """Adds up the counts of the words of one partition (an item is `{"partition": p}`).

    Attributes:
        names: what was staged.
        top: words that are returned, by way of a file.
    """

    staging: Staging
    names: Sequence[str]
    top: int

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the most frequent words of the partition; returns how many different ones and occurrences there are."""
        partition: int = item["partition"]
        counts: Counter[str] = Counter()
        for name in self.names:
            batch = self.staging.read_batch(f"words/{name}", partition, COUNTS)
            for word, count in zip(batch["word"].to_pylist(), batch["count"].to_pylist(), strict=True):
                counts[word] += count
        first = heapq.nsmallest(self.top, counts.items(), key=_rank)
        self.staging.write_batches(_top_name(partition), [_batch(first)])
        return {"different": len(counts), "occurrences": counts.total()}


def most_frequent(staging: Staging, partitions: int, top: int) -> list[tuple[str, int]]:
    """The `top` most frequent words of all, after `MergeCounts`; words of equal count in alphabetical order."""
    best: list[tuple[str, int]] = []
    for partition in range(partitions):
        batch = staging.read_batch(_top_name(partition), 0, COUNTS)
        found = zip(batch["word"].to_pylist(), batch["count"].to_pylist(), strict=True)
        best = heapq.nsmallest(top, [*best, *found], key=_rank)
    return best


def coverage(frequent: Sequence[tuple[str, int]], occurrences: int) -> dict[str, float]:
    """Share of all occurrences that the most frequent 100, 1,000, ... words make up."""
    shares, size = {}, 100
    while size <= len(frequent):
        shares[str(size)] = round(sum(count for _, count in frequent[:size]) / max(1, occurrences), 6)
        size *= 10
    return shares


def _rank(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _batch(entries: Sequence[tuple[str, int]]) -> pa.RecordBatch:
    names, counts = [word for word, _ in entries], [count for _, count in entries]
    return pa.record_batch([pa.array(names, pa.string()), pa.array(counts, pa.int64())], schema=COUNTS)


def _top_name(partition: int) -> str:
    return f"top/{partition:06d}.arrow"
