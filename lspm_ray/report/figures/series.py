"""What the figures share: the colour, marker and name of each variant or class, and error bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.page.theme import LIGHT, SERIES
from lspm_ray.report.canvas import fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL_CHARACTERS = 22
_MARKERS = "osD^vPXp"
TIMES = ((3600.0, "hours"), (60.0, "minutes"))
"""Units of time above the second, in seconds."""


def colours(names: Sequence[str], full: str) -> dict[str, str]:
    """A colour for each variant, the same in every figure; the full model in ink."""
    others = [name for name in names if name != full]
    return {full: LIGHT["ink"]} | {name: LIGHT[SERIES[i % len(SERIES)]] for i, name in enumerate(others)}


def markers(names: Sequence[str], full: str) -> dict[str, str]:
    """A marker for each variant, so that colour is never the only difference."""
    others = [name for name in names if name != full]
    return {full: "o"} | {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(others)}


def short(label: str) -> str:
    """A class name as figures show it."""
    return fitted(label, _LABEL_CHARACTERS)


def error_bar(axes: Axes, x: float, estimate: Estimate, colour: str) -> None:
    """A vertical interval; `estimate` is a share, drawn in percent."""
    axes.plot([x, x], [100 * estimate.low, 100 * estimate.high], color=colour, linewidth=1.1, alpha=0.7, zorder=2)


def unit_of(most: float, units: Sequence[tuple[float, str]], smallest: str) -> tuple[float, str]:
    """The largest unit in which `most` is 1 or more."""
    return next(((size, name) for size, name in units if most >= size), (1.0, smallest))
