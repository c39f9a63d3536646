"""Lengths of documents, from a word to a library, in few numbers that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PER_OCTAVE = 4


@dataclass(frozen=True)
class Lengths:
    """Counts of lengths of at least 1 in bins that grow by a quarter of an octave.

    Attributes:
        counts: of each bin; bin `i` begins at 2 ** (i / 4).
        total: sum of all lengths.
        longest: the largest.
    """

    counts: tuple[int, ...] = ()
    total: int = 0
    longest: int = 0

    @classmethod
    def of(cls, values: NDArray[np.int64]) -> Lengths:
        """Count `values`."""
        if not len(values):
            return cls()
        bins = np.floor(np.log2(np.maximum(values, 1)) * _PER_OCTAVE + 1e-9).astype(np.int64)
        return cls(tuple(np.bincount(bins).tolist()), int(values.sum()), int(values.max()))

    def __add__(self, other: Lengths) -> Lengths:
        counts = np.zeros(max(len(self.counts), len(other.counts)), dtype=np.int64)
        counts[: len(self.counts)] += np.array(self.counts, dtype=np.int64)
        counts[: len(other.counts)] += np.array(other.counts, dtype=np.int64)
        return Lengths(tuple(counts.tolist()), self.total + other.total, max(self.longest, other.longest))

    @property
    def number(self) -> int:
        """How many lengths there are."""
        return sum(self.counts)

    def percentile(self, percent: float) -> int:
        """Where the bin begins in which this percentile lies, so up to 19 % too small; 0 without lengths."""
        if not self.number:
            return 0
        place = int(np.searchsorted(np.cumsum(self.counts), self.number * percent / 100))
        return round(2 ** (place / _PER_OCTAVE))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for people and figures: `bins` holds [where it begins, count] of every bin that is not 0."""
        return {
            "number": self.number,
            "total": self.total,
            "mean": round(self.total / self.number, 2) if self.number else 0.0,
            "p50": self.percentile(50),
            "p95": self.percentile(95),
            "p99": self.percentile(99),
            "max": self.longest,
            "bins": [[round(2 ** (i / _PER_OCTAVE), 1), count] for i, count in enumerate(self.counts) if count],
        }

    def raw(self) -> dict[str, Any]:
        """As JSON types that `from_raw` takes."""
        return {"counts": list(self.counts), "total": self.total, "longest": self.longest}

    @classmethod
    def from_raw(cls, raw: dict[str, Any]) -> Lengths:
        """Inverse of `raw`."""
        return cls(tuple(raw["counts"]), raw["total"], raw["longest"])
