"""Names beside dots, placed so that they cover neither each other nor the dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lspm_ray.report.canvas import fitted
from lspm_ray.report.placement import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL_CHARACTERS = 28
_HALF_DOT = 3.5

Bar = tuple[tuple[float, float], tuple[float, float]]
"""A line, from its lower left end to its upper right one."""


@dataclass(frozen=True)
class Dot:
    """A point to name, in the units of the axes."""

    name: str
    x: float
    y: float
    colour: str


def label_dots(
    figure: Figure,
    axes: Axes,
    dots: Sequence[Dot],
    bars: Sequence[Bar] = (),
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write the names; comes last, when the axes have their final limits.

    Args:
        figure: what is drawn on; its layout is frozen.
        axes: with the dots.
        dots: to be named.
        bars: lines that no name may cover.
        others: dots without a name that none may cover.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    points = [_in_points(axes, dot.x, dot.y) for dot in dots]
    texts = [fitted(dot.name, _LABEL_CHARACTERS) for dot in dots]
    sizes = [_size(figure, text) for text in texts]
    ends = [(_in_points(axes, *low), _in_points(axes, *high)) for low, high in bars]
    obstacles = [(low[0] - 1, low[1], high[0] + 1, high[1]) for low, high in ends]
    crowd = [_in_points(axes, *other) for other in others]
    obstacles += [(x - _HALF_DOT, y - _HALF_DOT, x + _HALF_DOT, y + _HALF_DOT) for x, y in crowd]
    inside = axes.get_window_extent()
    bounds = (inside.x0 + 2, inside.y0 + 2, inside.x1 - 2, inside.y1 - 2)
    boxes = place(points, sizes, obstacles, bounds)
    for box, text, point, dot in zip(boxes, texts, points, dots, strict=True):
        _name_dot(axes, box, text, point, dot.colour)


def _in_points(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _name_dot(axes: Axes, box: Box, text: str, point: tuple[float, float], colour: str) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        fraction = axes.transAxes.inverted().transform((x, y))
        return float(fraction[0]), float(fraction[1])

    end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
    if math.dist(end, point) > 12:
        axes.plot(
            *zip(at(*point), at(*end), strict=True),
            color=colour, linewidth=0.6, alpha=0.6, transform=axes.transAxes, zorder=1,
        )  # fmt: skip
    # Anchored on the side of its point: a browser's narrower font then leaves no gap.
    left = (box[0] + box[2]) / 2 >= point[0] - 1
    x, y = at(box[0] + 1 if left else box[2] - 1, (box[1] + box[3]) / 2)
    axes.text(
        x, y, text, transform=axes.transAxes,
        ha="left" if left else "right", va="center", fontsize=8.5, color=colour,
    )  # fmt: skip


def _size(figure: Figure, text: str, fontsize: float = 8.5) -> tuple[float, float]:
    probe = figure.text(0, 0, text, fontsize=fontsize)
    extent = probe.get_window_extent()
    probe.remove()
    return extent.width + 2, extent.height + 1
