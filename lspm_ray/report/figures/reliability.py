"""Whether confidences mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lspm_ray.evaluation.metrics import Bin, Estimate, proportion
from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report import words
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.report.figures.series import error_bar
from lspm_ray.report.findings import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability(model: Reliability, *, anchor: str) -> Html:
    """Confidence against accuracy on test, before and after the temperature."""
    before, after = calibration_error(model.before), calibration_error(model.after)
    text = f"calibration error {words.percent(before, 2)} % before, {words.percent(after, 2)} % after"
    caption = Caption(anchor, f"Calibration of {model.model} on test", text)
    return draw(lambda figure: _paint_reliability(figure, model), 5.0, 4.4, caption)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Count-weighted mean of |confidence - accuracy|."""
    return sum(abs(b.confidence - b.accuracy) * b.count for b in bins) / sum(b.count for b in bins)


def _paint_reliability(figure: Figure, model: Reliability) -> None:
    axes = figure.add_subplot()
    low = 100 * min(min(b.confidence, _interval(b).low) for b in [*model.before, *model.after]) - 2
    axes.plot([low, 100], [low, 100], color=LIGHT["muted"], linestyle=":", linewidth=1.2, label="perfect calibration")
    for bins, colour, marker, when in (
        (model.before, LIGHT["series-2"], "s", "before"),
        (model.after, LIGHT["series-1"], "o", f"after temperature {model.temperature:.2f}"),
    ):
        for b in bins:
            error_bar(axes, 100 * b.confidence, _interval(b), colour)
        axes.plot(
            [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins],
            color=colour, marker=marker, markersize=5, linewidth=1.2,
            markerfacecolor=LIGHT["paper"] if when == "before" else colour,
            label=f"{when}: error {100 * calibration_error(bins):.1f} %",
        )  # fmt: skip
    axes.set_xlim(low, 101)
    axes.set_ylim(low, 101)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence (probability of the answer), %")
    axes.set_ylabel("accuracy of the answers, %")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0))


def _interval(group: Bin) -> Estimate:
    return proportion(round(group.accuracy * group.count), group.count)
