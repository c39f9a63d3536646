"""Which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.report.figures.series import short
from lspm_ray.report.findings import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL_NUMBERS_UP_TO = 12
"""Classes up to which a confusion matrix shows its numbers."""
MOST_CLASSES = 60
"""Classes a confusion matrix shows, at most; the least frequent ones are joined into one."""
_SHADES = 10


def confusion(matrix: Confusion, labels: Sequence[str], model: str, *, anchor: str) -> Html:
    """Confusion matrix on test, shaded by the share of each true class."""
    cells, names = joined_classes(matrix, labels)
    right = sum(row[i] for i, row in enumerate(matrix))
    text = f"{right} of {sum(map(sum, matrix))} rows on the diagonal; {len(names)} classes"
    side = max(3.0, len(names) * (0.58 if len(names) <= CELL_NUMBERS_UP_TO else 0.145))
    margin = 0.55 + 0.085 * max(len(short(n)) for n in names) * (1 if len(names) <= 12 else 0.75)
    caption = Caption(anchor, f"Confusion matrix of {model} on test", text)
    return draw(
        lambda figure: _paint_confusion(figure, cells, names, side), side + margin + 0.75, side + margin + 0.35, caption
    )


def joined_classes(matrix: Confusion, labels: Sequence[str]) -> tuple[Confusion, list[str]]:
    """The matrix as it is up to `MOST_CLASSES` classes; beyond, the least frequent true classes are added up."""
    if len(labels) <= MOST_CLASSES:
        return [list(row) for row in matrix], list(labels)
    by_rows = sorted(range(len(labels)), key=lambda i: (-sum(matrix[i]), i))
    kept = sorted(by_rows[: MOST_CLASSES - 1])
    place_of = {old: new for new, old in enumerate(kept)}
    result = [[0] * MOST_CLASSES for _ in range(MOST_CLASSES)]
    for i, row in enumerate(matrix):
        for j, n in enumerate(row):
            result[place_of.get(i, MOST_CLASSES - 1)][place_of.get(j, MOST_CLASSES - 1)] += n
    return result, [labels[i] for i in kept] + [f"{len(labels) - len(kept)} others"]


def _paint_confusion(figure: Figure, cells: Confusion, names: Sequence[str], side_in: float) -> None:
    axes = figure.add_subplot()
    k, numbers = len(names), len(names) <= CELL_NUMBERS_UP_TO
    shares = [[n / max(1, sum(row)) for n in row] for row in cells]
    _shade(axes, shares)
    if numbers:
        _write_cells(axes, cells, shares)
    shown = [short(name) for name in names]
    size = 8.5 if numbers else 7
    slanted = numbers and max(map(len, shown)) * k < 40
    axes.set_xticks(range(k), labels=shown, fontsize=size, rotation=0 if slanted else 90)
    axes.set_yticks(range(k), labels=shown, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, k - 0.5)
    axes.set_ylim(k - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(LIGHT["faint"])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _shade_legend(axes, side_in)


def _shade(axes: Axes, shares: Sequence[Sequence[float]]) -> None:
    """One compound path per shade: a matrix of 60 classes stays small."""
    for level in range(1, _SHADES + 1):
        squares = [(j, i) for i, row in enumerate(shares) for j, share in enumerate(row) if _shade_of(share) == level]
        if squares:
            _squares(axes, squares, level / _SHADES, 1.0, 1.0)


def _squares(axes: Axes, centres: Sequence[tuple[float, float]], opacity: float, width: float, height: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]
    vertices = [(x + width * dx, y + height * dy) for x, y in centres for dx, dy in corners]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(centres)
    patch = PathPatch(Path(vertices, codes), facecolor=LIGHT["accent"], alpha=opacity, linewidth=0)
    axes.add_patch(patch)


def _shade_of(share: float) -> int:
    """0 for an empty cell, else 1 to `_SHADES`: a single row of a large class must still be seen."""
    return 0 if share == 0 else max(1, math.ceil(share * _SHADES - 1e-9))


def _write_cells(axes: Axes, cells: Confusion, shares: Sequence[Sequence[float]]) -> None:
    large = len(cells) <= 6
    for i, row in enumerate(cells):
        for j, n in enumerate(row):
            colour = LIGHT["paper"] if _shade_of(shares[i][j]) >= 6 else LIGHT["ink"]
            text = f"{n:,}\n{100 * shares[i][j]:.0f} %" if large and any(row) else f"{n:,}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5 if large else 7.5, color=colour)


def _shade_legend(axes: Axes, side_in: float) -> None:
    height = min(0.5, 1.6 / side_in)
    strip = axes.inset_axes((1 + 0.12 / side_in, 0.5 - height / 2, 0.12 / side_in, height))
    for level in range(1, _SHADES + 1):
        _squares(strip, [(0.5, level - 0.5)], level / _SHADES, 1.0, 1.0)
    strip.set_xlim(0, 1)
    strip.set_ylim(0, _SHADES)
    strip.set_xticks([])
    strip.yaxis.tick_right()
    strip.yaxis.set_label_position("right")
    strip.set_yticks([0, _SHADES / 2, _SHADES], labels=["0", "50", "100"], fontsize=7.5)
    strip.set_ylabel("% of true class", fontsize=7.5)
    strip.tick_params(length=0)
    strip.grid(visible=False)
    for spine in strip.spines.values():
        spine.set_visible(False)
