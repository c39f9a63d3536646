"""How pretraining went: loss, learning rate, gradient, pace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.report.figures.series import TIMES, unit_of
from lspm_ray.report.text.findings import Pretraining
from lspm_ray.report.words import duration, large, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 400
_MOST_MARKERS = 60
_TOKENS = ((1e12, "trillion tokens"), (1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"))


def loss_curves(run: Pretraining, *, anchor: str) -> Html:
    """Loss in training and validation against tokens, beside that of token frequencies; the best point is marked."""
    text = (
        f"Validation loss from {run.points[0].validation_loss:.3f} to {run.last.validation_loss:.3f} nats; best "
        f"{run.kept.validation_loss:.3f} after {large(run.kept.tokens)} tokens. "
        f"Token frequencies alone: {math.log(run.unigram_perplexity):.3f}"
    )
    caption = Caption(anchor, "Loss by tokens trained on", text)
    return draw(lambda figure: _paint_loss(figure, run), 9.0, 3.8, caption)


def rates(run: Pretraining, *, anchor: str) -> Html:
    """Learning rate and gradient norm against tokens."""
    highest = max(point.learning_rate for point in run.points)
    norms = [point.gradient_norm for point in run.points if point.gradient_norm is not None]
    text = f"Learning rate up to {highest:.3g}" + (
        f"; gradient norm between {significant(min(norms))} and {significant(max(norms))}" if norms else ""
    )
    caption = Caption(anchor, "Learning rate and gradient norm by tokens trained on", text)
    return draw(lambda figure: _paint_rates(figure, run), 9.4, 3.0, caption)


def pace(run: Pretraining, *, anchor: str) -> Html:
    """Throughput and model FLOPs utilisation against time."""
    speeds, shares = [p.tokens_per_s for p in run.points], [p.mfu for p in run.points]
    text = (
        f"Between {significant(min(speeds))} and {significant(max(speeds))} tokens per second, MFU between "
        f"{100 * min(shares):.1f} and {100 * max(shares):.1f} %, over {duration(run.last.seconds)}"
    )
    caption = Caption(anchor, "Throughput and MFU over time", text)
    return draw(lambda figure: _paint_pace(figure, run), 9.4, 3.0, caption)


def _paint_loss(figure: Figure, run: Pretraining) -> None:
    axes = figure.add_subplot()
    points = run.thinned(_MOST_POINTS)
    size, unit = unit_of(run.last.tokens, _TOKENS, "tokens")
    x = [point.tokens / size for point in points]
    _line(axes, x, [point.train_loss for point in points], LIGHT["muted"], "s", "training")
    _line(axes, x, [point.validation_loss for point in points], LIGHT["series-1"], "o", "validation")
    axes.axhline(math.log(run.unigram_perplexity), color=LIGHT["alert"], linestyle="--", label="token frequencies")
    axes.plot(
        [run.kept.tokens / size], [run.kept.validation_loss], "*", color=LIGHT["good"], markersize=13, zorder=4,
        label=f"kept: {run.kept.validation_loss:.3f}",
    )  # fmt: skip
    _from_zero(axes, x, unit)
    axes.set_ylabel("loss, nats per predicted token")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2, handlelength=1.6)


def _paint_rates(figure: Figure, run: Pretraining) -> None:
    left, right = figure.subplots(1, 2)
    points = run.thinned(_MOST_POINTS)
    size, unit = unit_of(run.last.tokens, _TOKENS, "tokens")
    x = [point.tokens / size for point in points]
    norms = [math.nan if point.gradient_norm is None else point.gradient_norm for point in points]
    _line(left, x, [point.learning_rate for point in points], LIGHT["series-4"], "o")
    _line(right, x, norms, LIGHT["series-2"], "o")
    left.set_ylabel("learning rate")
    right.set_ylabel("gradient norm before clipping")
    for axes in (left, right):
        _from_zero(axes, x, unit)
        axes.set_ylim(bottom=0)


def _paint_pace(figure: Figure, run: Pretraining) -> None:
    left, right = figure.subplots(1, 2)
    points = run.thinned(_MOST_POINTS)
    size, unit = unit_of(run.last.seconds, TIMES, "seconds")
    x = [point.seconds / size for point in points]
    scale, speed = unit_of(max(point.tokens_per_s for point in points), _TOKENS, "tokens")
    _line(left, x, [point.tokens_per_s / scale for point in points], LIGHT["series-3"], "o")
    _line(right, x, [100 * point.mfu for point in points], LIGHT["series-6"], "o")
    left.set_ylabel(f"{speed} per second")
    right.set_ylabel("MFU, %")
    for axes in (left, right):
        _from_zero(axes, x, f"{unit} of training")
        axes.set_ylim(bottom=0)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, marker: str, label: str = "") -> None:
    shown = marker if len(x) <= _MOST_MARKERS else ""
    axes.plot(x, y, color=colour, marker=shown, markersize=4, label=label)


def _from_zero(axes: Axes, x: Sequence[float], unit: str) -> None:
    axes.set_xlim(0, 1.03 * x[-1] if x[-1] > 0 else 1)
    axes.set_xlabel(unit)
