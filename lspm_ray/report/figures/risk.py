"""Risk and escalation against the threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report import words
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.selection.risk import ACCEPT_ALL, Certified, RiskPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def risk_curve(certified: Certified, validator: str, risk: str, *, anchor: str) -> Html:
    """Risk and escalation rate against the threshold, on the calibration rows; the certified point is marked."""
    point = certified.point
    found = (
        f"Certified at {_threshold(point)}: {point.losses} losses in {certified.n} rows, bound "
        f"{words.percent(point.bound, 2)} %, {words.percent(point.escalation_rate)} % escalated"
        if point
        else "No threshold is certified"
    )
    caption = Caption(anchor, f"Risk ({risk}) and escalation rate against the threshold on {validator}", found)
    return draw(lambda figure: _paint_risk(figure, certified, validator, risk), 7.4, 5.6, caption)


def _paint_risk(figure: Figure, certified: Certified, validator: str, risk: str) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    curve, alpha = certified.curve, certified.alpha
    x = range(len(curve))
    upper.plot(x, [100 * p.bound for p in curve], color=LIGHT["accent"], label=_bound_name(certified))
    upper.plot(
        x, [100 * p.risk for p in curve], color=LIGHT["muted"], linewidth=1.2, label=f"{risk} among all rows, measured"
    )
    upper.axhline(100 * alpha, color=LIGHT["alert"], linestyle="--", label=f"promise: alpha = {100 * alpha:g} %")
    top = min(1.1 * max(p.bound for p in curve), 4 * alpha)
    upper.set_ylim(0, 100 * max(top, 1.3 * alpha))
    upper.set_ylabel(f"{risk}, % of all answers")
    lower.plot(x, [100 * p.escalation_rate for p in curve], color=LIGHT["ink"])
    lower.set_ylim(-3, 103)
    lower.set_ylabel("escalated, % of requests")
    lower.set_xlabel(f"threshold on {validator}, from strict to lenient (steps of equal share of rows)")
    ticks = sorted({round(i * (len(curve) - 1) / 7) for i in range(8)})
    lower.set_xticks(ticks, labels=[_tick(curve[i]) for i in ticks])
    for axes in (upper, lower):
        axes.set_xlim(-0.02 * len(curve), 1.02 * len(curve))
    if certified.point is not None:
        _mark_certified((upper, lower), certified, list(curve).index(certified.point))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", ncols=2)


def _bound_name(certified: Certified) -> str:
    return f"exact upper bound, {100 * (1 - certified.delta):g} % confidence"


def _mark_certified(panels: tuple[Axes, Axes], certified: Certified, index: int) -> None:
    point = certified.point
    if point is None:
        return
    for axes, value in zip(panels, (point.bound, point.escalation_rate), strict=True):
        axes.axvspan(-0.02 * len(certified.curve), index, color=LIGHT["good"], alpha=0.07, linewidth=0)
        axes.axvline(index, color=LIGHT["good"], linewidth=1)
        axes.plot([index], [100 * value], "o", color=LIGHT["good"], markersize=7, zorder=4)
    left = index < len(certified.curve) / 2
    texts = (
        f"certified: {_threshold(point)}\n"
        f"{point.losses:,} losses in {certified.n:,} rows, bound {100 * point.bound:.2f} %",
        f"{100 * point.escalation_rate:.1f} % escalated",
    )
    # Where there is room beside the line: risk rises from left to right, escalation falls.
    for axes, text, top in zip(panels, texts, (True, not left), strict=True):
        axes.annotate(
            text, (index, 0.97 if top else 0.03), xycoords=("data", "axes fraction"), xytext=(8 if left else -8, 0),
            textcoords="offset points", ha="left" if left else "right", va="top" if top else "bottom",
            color=LIGHT["good"], bbox={"facecolor": LIGHT["paper"], "alpha": 0.75, "linewidth": 0, "pad": 1.5},
        )  # fmt: skip


def _threshold(point: RiskPoint) -> str:
    return "every answer accepted" if point.threshold <= ACCEPT_ALL else f"threshold {_tick(point)}"


def _tick(point: RiskPoint) -> str:
    if point.threshold <= ACCEPT_ALL:
        return "accept all"
    text = f"{point.threshold:.4f}".replace("-", words.MINUS)
    return ">0.9999" if text == "1.0000" and point.threshold < 1 else text
