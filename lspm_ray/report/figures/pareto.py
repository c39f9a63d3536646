"""Quality against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.report import words
from lspm_ray.report.canvas import Caption, draw, fitted, log_axis
from lspm_ray.report.figures.series import colours, error_bar
from lspm_ray.report.findings import Alternative
from lspm_ray.report.markup import Html
from lspm_ray.report.placement import Box, place
from lspm_ray.report.theme import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QualityName = Literal["accuracy", "balanced_accuracy"]


def pareto(
    variants: Sequence[VariantProfile], plan: Alternative | None, full: str, quality: QualityName, *, anchor: str
) -> Html:
    """Quality on test against cost, with intervals; the front (decided on selection) is drawn as a line.

    Args:
        variants: the table; baselines without cost are left out.
        plan: the cascade, as an extra point; None if one variant serves alone.
        full: name of the full model.
        quality: which metric.
        anchor: id of the figure in the page.
    """
    shown = [v for v in variants if v.cost > 0]
    left_out = [v.name for v in variants if v.cost <= 0]
    what = quality.replace("_", " ")
    text = "; ".join(f"{v.name}: {what} {words.percent(_of(v, quality).value)} % at cost {v.cost:.3g}" for v in shown)
    if left_out:
        text += f". Without cost and not shown: {', '.join(left_out)}"
    caption = Caption(anchor, f"{what.capitalize()} on test against cost", text)
    return draw(lambda figure: _paint_pareto(figure, shown, plan, full, quality), 5.6, 4.2, caption)


def _of(variant: VariantProfile, quality: QualityName) -> Estimate:
    estimate: Estimate = getattr(variant.test, quality)
    return estimate


def _paint_pareto(
    figure: Figure, shown: Sequence[VariantProfile], plan: Alternative | None, full: str, quality: QualityName
) -> None:
    axes = figure.add_subplot()
    colour = colours([v.name for v in shown if v.servable], full)
    front = sorted((v for v in shown if v.servable and v.dominated_by is None), key=lambda v: v.cost)
    axes.plot([v.cost for v in front], [100 * _of(v, quality).value for v in front], color=LIGHT["faint"], zorder=1.5)
    dots = []
    for v in shown:
        dots.append((v.name, v.cost, _of(v, quality), colour.get(v.name, LIGHT["muted"])))
        _dot(axes, v, _of(v, quality), dots[-1][3])
    if plan is not None and quality == "accuracy":
        dots.append(("the plan", plan.cost, plan.accuracy, LIGHT["accent"]))
        error_bar(axes, plan.cost, plan.accuracy, LIGHT["accent"])
        axes.plot([plan.cost], [100 * plan.accuracy.value], "*", color=LIGHT["accent"], markersize=13, zorder=4)
    log_axis(axes, "x", [cost for _, cost, _, _ in dots], margin=1.6)
    axes.set_xlabel("cost per request, relative to the full model (log scale)")
    axes.set_ylabel(f"{quality.replace('_', ' ')} on test, %")
    axes.margins(y=0.08)
    _label_dots(figure, axes, dots)


def _dot(axes: Axes, variant: VariantProfile, estimate: Estimate, colour: str) -> None:
    hollow = variant.dominated_by is not None or not variant.servable
    error_bar(axes, variant.cost, estimate, colour)
    axes.plot(
        [variant.cost],
        [100 * estimate.value],
        "o" if variant.servable else "s",
        color=colour,
        markerfacecolor=LIGHT["paper"] if hollow else colour,
        markersize=7,
        zorder=3,
    )


def _label_dots(figure: Figure, axes: Axes, dots: Sequence[tuple[str, float, Estimate, str]]) -> None:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    points = [_in_points(axes, cost, e.value) for _, cost, e, _ in dots]
    texts = [fitted(name, 28) for name, *_ in dots]
    sizes = [_size(figure, text) for text in texts]
    bars = [(_in_points(axes, cost, e.low), _in_points(axes, cost, e.high)) for _, cost, e, _ in dots]
    obstacles = [(low[0] - 1, low[1], high[0] + 1, high[1]) for low, high in bars]
    inside = axes.get_window_extent()
    bounds = (inside.x0 + 2, inside.y0 + 2, inside.x1 - 2, inside.y1 - 2)
    boxes = place(points, sizes, obstacles, bounds)
    for box, text, point, (*_, colour) in zip(boxes, texts, points, dots, strict=True):
        _name_dot(axes, box, text, point, colour)


def _in_points(axes: Axes, cost: float, share: float) -> tuple[float, float]:
    x, y = axes.transData.transform((cost, 100 * share))
    return float(x), float(y)


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
