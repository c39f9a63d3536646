"""Quality against cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.report import words
from lspm_ray.report.canvas import Caption, draw, log_axis
from lspm_ray.report.figures.labels import Dot, label_dots
from lspm_ray.report.figures.series import colours, error_bar
from lspm_ray.report.findings import Alternative

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
    bars = [((cost, 100 * e.low), (cost, 100 * e.high)) for _, cost, e, _ in dots]
    label_dots(figure, axes, [Dot(name, cost, 100 * e.value, c) for name, cost, e, c in dots], bars)


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
