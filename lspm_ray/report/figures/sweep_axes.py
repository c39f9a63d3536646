"""Where the values of a varied field stand on its axis, from 0 to 1. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lspm_ray.report.canvas import fitted, log_ticks
from lspm_ray.report.sweep import view
from lspm_ray.tuning.space import Domain

_MOST_SLOTS = 12
_LINE_CHARACTERS = 96
"""Of labels that fit on an axis one after another."""
_FILLED = 0.6
"""How much of a slot the lines through it take."""


@dataclass(frozen=True)
class Axis:
    """The axis of a field.

    Attributes:
        path: of the field.
        domain: what it may be.
        slots: its values where each has a place of its own; None for numbers on a scale.
        ticks: place -> label.
    """

    path: str
    domain: Domain
    slots: list[str] | None
    ticks: list[tuple[float, str]]

    @classmethod
    def of(cls, path: str, domain: Domain) -> Axis:
        """The axis of the field at a path."""
        values = domain.values
        if values is not None and (domain.options is not None or len(values) <= _MOST_SLOTS):
            return cls(path, domain, [repr(value) for value in values], _slot_ticks(values))
        low, high = domain.bounds or (0.0, 1.0)
        ticks = log_ticks(low, high) if domain.loguniform is not None else _ticks(low, high)
        return cls(path, domain, None, [(_place(domain, tick), f"{tick:g}") for tick in ticks])

    def place(self, value: Any) -> float | None:
        """Where a value stands; None for one that the axis does not have."""
        if self.slots is not None:
            return (self.slots.index(repr(value)) + 0.5) / len(self.slots) if repr(value) in self.slots else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return min(1.0, max(0.0, _place(self.domain, value)))


def places(axis: Axis, params: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Where each point crosses the axis, those that share a slot side by side in the order given; None: it does not."""
    found = [axis.place(point[axis.path]) if axis.path in point else None for point in params]
    if axis.slots is None:
        return found
    width = _FILLED / len(axis.slots)
    members: dict[float, list[int]] = {}
    for index, at in enumerate(found):
        if at is not None:
            members.setdefault(at, []).append(index)
    for at, indices in members.items():
        for rank, index in enumerate(indices):
            found[index] = at + width * ((rank + 0.5) / len(indices) - 0.5)
    return found


def _place(domain: Domain, value: float) -> float:
    low, high = domain.bounds or (0.0, 1.0)
    if domain.loguniform is not None:
        return math.log(max(value, 1e-300) / low) / math.log(high / low)
    return (value - low) / (high - low)


def _slot_ticks(values: Sequence[Any]) -> list[tuple[float, str]]:
    stride = -(-len(values) // _MOST_SLOTS)
    most = max(4, _LINE_CHARACTERS // -(-len(values) // stride))
    return [((i + 0.5) / len(values), fitted(view.value(values[i]), most)) for i in range(0, len(values), stride)]


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(f"{tick:.10g}") for tick in found if low <= tick <= high]
