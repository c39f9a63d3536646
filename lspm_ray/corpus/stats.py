"""Numbers about a corpus that add up: parts counted apart give the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Histogram:
    """Counts of whole numbers in bins [i * width, (i + 1) * width).

    Attributes:
        width: of a bin.
        counts: rows per bin, the last one not 0.
        total: sum of all values.
        longest: the largest value.
    """

    width: int
    counts: tuple[int, ...] = ()
    total: int = 0
    longest: int = 0

    @classmethod
    def of(cls, values: NDArray[np.int64], width: int = 1) -> Histogram:
        """Count `values`, which are not negative."""
        if not len(values):
            return cls(width)
        counts = np.bincount(values // width)
        return cls(width, tuple(int(count) for count in counts), int(values.sum()), int(values.max()))

    def __add__(self, other: Histogram) -> Histogram:
        if self.width != other.width:
            raise ValueError("histograms with different bins do not add up")
        counts = np.zeros(max(len(self.counts), len(other.counts)), dtype=np.int64)
        counts[: len(self.counts)] += np.array(self.counts, dtype=np.int64)
        counts[: len(other.counts)] += np.array(other.counts, dtype=np.int64)
        return Histogram(
            self.width,
            tuple(int(count) for count in counts),
            self.total + other.total,
            max(self.longest, other.longest),
        )

    def percentile(self, percent: float) -> int:
        """The smallest bin start below or in which at least `percent` of the values lie; 0 without values."""
        rows = sum(self.counts)
        if not rows:
            return 0
        cumulative = np.cumsum(self.counts)
        return int(np.searchsorted(cumulative, rows * percent / 100)) * self.width

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the usual percentiles."""
        rows = sum(self.counts)
        return {
            "bin_width": self.width,
            "counts": list(self.counts),
            "mean": round(self.total / rows, 2) if rows else 0.0,
            "p50": self.percentile(50),
            "p95": self.percentile(95),
            "p99": self.percentile(99),
            "max": self.longest,
        }

    def raw(self) -> dict[str, Any]:
        """As JSON types that `from_raw` takes."""
        return {"width": self.width, "counts": list(self.counts), "total": self.total, "longest": self.longest}

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Histogram:
        """Inverse of `raw`."""
        return cls(raw["width"], tuple(raw["counts"]), raw["total"], raw["longest"])


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of counts by key, sorted by key."""
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
    return dict(sorted(total.items()))


def majority_share(counts: Sequence[int]) -> float:
    """Accuracy of always answering the most frequent class; 0 without rows."""
    rows = sum(counts)
    return max(counts) / rows if rows else 0.0
