"""A metric of a sweep: its name, its unit, how its numbers are written, which part of its range is worth showing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.report.canvas import fitted
from lspm_ray.report.words import EN_DASH, MINUS, PERCENT

_SHARES = {"accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "macro_recall", "agreement"}
_MOST_DECIMALS = 6
_FINENESS = 1.7
"""Logarithm of the least number of steps that values are told apart in."""
_LONG = 1e9
_LABEL_CHARACTERS = 40
_FAR = 4.0
"""A value is far off if it lies this many times further from the best than three quarters of all."""


@dataclass(frozen=True)
class Measure:
    """How a metric is written.

    Attributes:
        name: of the metric.
        higher: whether more is better; None where nobody says.
        decimals: of its numbers; None: as many as each needs.
    """

    name: str
    higher: bool | None
    decimals: int | None

    @classmethod
    def of(cls, name: str, higher: bool | None, values: Sequence[float]) -> Measure:
        """With as many decimals as tell the values apart, those far off aside."""
        low, high = focus(values, higher)
        spread = (high - low) * (100 if name in _SHARES else 1)
        if spread <= 0:
            return cls(name, higher, None)
        decimals = max(0, math.ceil(_FINENESS - math.log10(spread)))
        if name in _SHARES:
            decimals = min(2, max(1, decimals))
        return cls(name, higher, decimals if decimals <= _MOST_DECIMALS else None)

    @property
    def share(self) -> bool:
        """Whether it is written in percent."""
        return self.name in _SHARES

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be written."""
        return 100 if self.share else 1

    @property
    def label(self) -> str:
        """Its name in words, in part if it is very long."""
        return fitted(self.name.replace("_", " "), _LABEL_CHARACTERS)

    @property
    def unit(self) -> str | None:
        """For the head of a column."""
        return "%" if self.share else None

    @property
    def title(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.label}, %" if self.share else self.label

    @property
    def direction(self) -> str:
        """Which values are better, in words; empty where nobody says."""
        return "" if self.higher is None else "more is better" if self.higher else "less is better"

    def number(self, value: float) -> str:
        """A value without its unit."""
        return self._written(value * self.scale)

    def text(self, value: float) -> str:
        """A value with its unit."""
        return self.number(value) + (PERCENT if self.share else "")

    def difference(self, value: float) -> str:
        """A difference between two values, with its unit."""
        return self.number(value) + (" points" if self.share else "")

    def interval(self, estimate: Estimate) -> str:
        """The confidence interval, without unit."""
        low, high = self.number(estimate.low), self.number(estimate.high)
        return f"{low}{EN_DASH}{high}" if MINUS not in low + high else f"{low} to {high}"

    def _written(self, scaled: float) -> str:
        if self.decimals is None or abs(scaled) >= _LONG:
            text = f"{scaled:,.0f}" if scaled == round(scaled) and abs(scaled) < _LONG else f"{scaled:.4g}"
        else:
            text = f"{scaled:,.{self.decimals}f}"
        return (text[1:] if text.startswith("-") and not text.strip("-0.,") else text).replace("-", MINUS)


def focus(values: Sequence[float], higher: bool | None) -> tuple[float, float]:
    """Lowest and highest value to show: all, but not those so far off that the others would look alike.

    Args:
        values: of a metric.
        higher: whether more is better: only bad values are left out; None: none are.
    """
    if not values:
        return (0.0, 1.0)
    low, high = min(values), max(values)
    if higher is None:
        return low, high
    distances = sorted(abs(value - (high if higher else low)) for value in values)
    reach = _FAR * distances[3 * (len(distances) - 1) // 4]
    if reach == 0:
        return low, high
    return (max(low, high - reach), high) if higher else (low, min(high, low + reach))


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """Limits of an axis with room at both ends, also around a single value."""
    room = share * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room
