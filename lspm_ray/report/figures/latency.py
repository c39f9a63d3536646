"""Speed by batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.report.canvas import Caption, draw, fitted, log_axis
from lspm_ray.report.figures.series import colours, markers
from lspm_ray.report.placement import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def latency(variants: Sequence[VariantProfile], full: str, *, anchor: str) -> Html:
    """Time per batch and throughput by batch size, both logarithmic."""
    measured = [v for v in variants if v.speed is not None]
    text = "; ".join(f"{v.name}: {v.speed.best_rows_per_s:.4g} rows/s at best" for v in measured if v.speed)
    caption = Caption(anchor, "Latency and throughput by batch size", text)
    height = max(3.8, 1.2 + 0.2 * len(measured))
    return draw(lambda figure: _paint_latency(figure, measured, full), 9.4, height, caption)


def _paint_latency(figure: Figure, measured: Sequence[VariantProfile], full: str) -> None:
    left, right = figure.subplots(1, 2)
    panels: list[tuple[Axes, str, Callable[[int, float], float]]] = [
        (left, "time per batch, ms (log scale)", lambda size, rate: 1e3 * size / rate),
        (right, "throughput, rows per second (log scale)", lambda size, rate: rate),
    ]
    sizes = sorted({size for v in measured if v.speed for size in v.speed.rows_per_s})
    for axes, label, value in panels:
        _paint_speed_panel(axes, measured, full, value)
        _batch_axis(axes, sizes)
        axes.set_ylabel(label)
    _name_lines(right, measured, full)


def _paint_speed_panel(
    axes: Axes, measured: Sequence[VariantProfile], full: str, value: Callable[[int, float], float]
) -> None:
    names = [v.name for v in measured]
    colour, marker = colours(names, full), markers(names, full)
    every = []
    for v in measured:
        rates = dict(sorted(v.speed.rows_per_s.items())) if v.speed else {}
        heights = [value(size, rate) for size, rate in rates.items()]
        every += heights
        axes.plot(
            list(rates), heights, color=colour[v.name], marker=marker[v.name], markersize=5, linewidth=1.4,
            markerfacecolor=LIGHT["paper"] if v.dominated_by else colour[v.name],
        )  # fmt: skip
    log_axis(axes, "y", every)


def _batch_axis(axes: Axes, sizes: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    kept = sizes if len(sizes) <= 8 else [*sizes[:: -(-len(sizes) // 8)], sizes[-1]]
    axes.set_xticks(kept, labels=[str(size) for size in kept])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size, rows (log scale)")


def _name_lines(axes: Axes, measured: Sequence[VariantProfile], full: str) -> None:
    """Names at the right ends of the lines, moved apart, instead of a legend."""
    colour = colours([v.name for v in measured], full)
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    ends = []
    for v in measured:
        rates = v.speed.rows_per_s if v.speed else {}
        ends.append((math.log10(rates[max(rates)]) - low) / (high - low))
    heights = spread(ends, 0.055, 0.02, 0.98)
    for v, end, height in zip(measured, ends, heights, strict=True):
        axes.annotate(
            fitted(v.name, 26), (0.99, end), xytext=(1.06, height), xycoords="axes fraction",
            textcoords="axes fraction", color=colour[v.name], fontsize=8.5, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour[v.name], "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1,
                        "shrinkB": 0},
        )  # fmt: skip
