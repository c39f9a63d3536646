"""How a sweep went: best so far, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lspm_ray.report.canvas import Caption, draw, fitted
from lspm_ray.report.figures.series import TIMES, unit_of
from lspm_ray.report.markup import Html
from lspm_ray.report.sweep import view
from lspm_ray.report.sweep.measure import Measure, focus, padded
from lspm_ray.report.theme import LIGHT
from lspm_ray.report.words import counted, duration
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 20_000
"""Of all learning curves together."""
_FEWEST_POINTS = 20
_AXIS_CHARACTERS = 44
_MOST_NAMED = 4
"""Finalists in the legend of the learning curves."""
_LEGEND: dict[str, Any] = {
    "loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 7, "columnspacing": 1.0, "handlelength": 1.4,
}  # fmt: skip


def best_so_far(sweep: Sweep, measure: Measure, *, anchor: str) -> Html:
    """The first objective of every trial by when it ended, with the best so far; failed and stopped ones on the axis.

    Args:
        sweep: what is shown.
        measure: the first objective.
        anchor: id of the figure in the page.
    """
    best = view.running_best(sweep)
    steps = [f"{measure.text(value)} after {duration(view.end(trial))} (trial {trial.number})" for trial, value in best]
    text = f"Best {measure.label} so far: " + ("; ".join(steps) if steps else "there is none")
    caption = Caption(anchor, f"Best {measure.label} so far", text)
    return draw(lambda figure: _paint_best(figure, sweep, measure), 9.4, 3.9, caption)


def curves(sweep: Sweep, measure: Measure, *, anchor: str) -> Html:
    """The metric on validation by epoch of all trials, the finalists on top.

    Args:
        sweep: what is shown.
        measure: the metric that the scheduler looks at.
        anchor: id of the figure in the page.
    """
    shown = [trial for trial in sweep.trials if _points(trial, measure.name, 2)]
    ended = view.statuses(shown)
    text = f"Curves of {counted(len(shown), 'trial')}, of which {ended['stopped']} stopped early"
    for finalist in sweep.finalists:
        points = _points(sweep.trial(finalist.number), measure.name, 2)
        if points:
            text += f"; trial {finalist.number} ends at {measure.text(points[-1][1])} after epoch {points[-1][0]}"
    caption = Caption(anchor, f"{measure.label} on validation by epoch", text)
    return draw(lambda figure: _paint_curves(figure, sweep, measure), 9.4, 4.2, caption)


def _paint_best(figure: Figure, sweep: Sweep, measure: Measure) -> None:
    axes = figure.add_subplot()
    ends = [view.end(trial) for trial in sweep.trials]
    last = max([*ends, sweep.seconds, 1.0])
    size, unit = unit_of(last, TIMES, "seconds")
    finished = view.done(sweep)
    low, high = focus([trial.values[measure.name] for trial in finished], measure.higher)
    limits = padded(low * measure.scale, high * measure.scale, 0.1)

    def draw_dots(trials: Sequence[Trial], label: str, **style: Any) -> None:
        if trials:
            y = [min(max(t.values[measure.name], low), high) * measure.scale for t in trials]
            x = [view.end(t) / size for t in trials]
            axes.plot(x, y, linestyle="", label=f"{label} ({len(trials)})", zorder=3, **style)

    colour, hollow = LIGHT["series-1"], {"markerfacecolor": LIGHT["paper"], "markersize": 5}
    inside = [t for t in finished if low <= t.values[measure.name] <= high]
    search = view.searched(inside)
    draw_dots([t for t in search if view.kept(sweep, t)], "done", marker="o", color=colour, markersize=5, alpha=0.75)
    draw_dots([t for t in search if not view.kept(sweep, t)], "breaks a constraint", marker="o", color=colour, **hollow)
    draw_dots([t for t in inside if t.finalist], "finalist again", marker="D", color=LIGHT["muted"], **hollow)
    far = [t for t in finished if t not in inside]
    draw_dots(far, "off the scale", marker="v" if measure.higher else "^", color=LIGHT["series-7"], markersize=6)
    _step(axes, sweep, measure, size)
    for status, marker, tone in (("stopped", "|", LIGHT["muted"]), ("failed", "x", LIGHT["alert"])):
        x = [view.end(t) / size for t in sweep.trials if t.status == status]
        if x:
            axes.plot(
                x, [0.025] * len(x), linestyle="", marker=marker, color=tone, markersize=6, zorder=4,
                transform=axes.get_xaxis_transform(), label=f"{status} ({len(x)})", clip_on=False,
            )  # fmt: skip
    axes.set_xlim(0, 1.03 * last / size)
    axes.set_ylim(*limits)
    axes.set_xlabel(f"{unit} since the sweep began, pauses not counted")
    axes.set_ylabel(fitted(measure.title, _AXIS_CHARACTERS))
    if not finished:
        axes.set_yticks([])
    axes.legend(**_LEGEND)


def _step(axes: Axes, sweep: Sweep, measure: Measure, size: float) -> None:
    best = view.running_best(sweep)
    if not best:
        return
    x = [view.end(trial) / size for trial, _ in best]
    y = [value * measure.scale for _, value in best]
    end = max(view.end(trial) for trial in view.searched(sweep.trials)) / size
    axes.step([*x, max(end, x[-1])], [*y, y[-1]], where="post", color=view.WINNER_COLOUR, label="best so far", zorder=2)


def _points(trial: Trial, metric: str, most: int) -> list[tuple[int, float]]:
    points = [(epoch.epoch, epoch.metrics[metric]) for epoch in trial.history if metric in epoch.metrics]
    stride = -(-len(points) // most) if points else 1
    kept = points[::stride]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _paint_curves(figure: Figure, sweep: Sweep, measure: Measure) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    most = max(_FEWEST_POINTS, _MOST_POINTS // max(1, len(sweep.trials)))
    lines = [(trial, _points(trial, measure.name, most)) for trial in sweep.trials]
    lines = [(trial, points) for trial, points in lines if points]
    colours = view.colours(sweep)
    faint = max(0.2, min(0.7, 25 / max(1, len(lines))))
    for trial, points in lines:
        if trial.number not in colours:
            _curve(axes, points, measure, color=LIGHT["muted"], linewidth=0.8, alpha=faint, zorder=2)
    _ends(axes, lines, measure, "stopped", ".", LIGHT["series-2"])
    _ends(axes, lines, measure, "failed", "x", LIGHT["alert"])
    known = {trial.number: points for trial, points in lines}
    for place, finalist in enumerate(sweep.finalists):
        style = {"color": colours[finalist.number], "zorder": 4.9 - 0.1 * min(place, 8)}
        for trial, points in lines:
            if trial.finalist and trial.params == finalist.params and trial.number != finalist.number:
                _curve(axes, points, measure, linewidth=0.8, alpha=0.6, **style)
        label = f"trial {finalist.number}" + (" (winner)" if place == 0 else "")
        label = label if place < _MOST_NAMED else f"_{label}"
        _curve(axes, known.get(finalist.number, []), measure, linewidth=2.2, label=label, **style)
    values = [value for _, points in lines for _, value in points]
    low, high = focus(values, measure.higher)
    axes.set_ylim(*padded(low * measure.scale, high * measure.scale))
    epochs = [epoch for _, points in lines for epoch, _ in points]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(epochs, default=1) - 0.4, max(epochs, default=sweep.epochs) + 0.4)
    axes.set_xlabel("epoch")
    axes.set_ylabel(fitted(f"{measure.label} on validation", _AXIS_CHARACTERS) + (", %" if measure.share else ""))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**_LEGEND)


def _curve(axes: Axes, points: Sequence[tuple[int, float]], measure: Measure, **style: Any) -> None:
    axes.plot(
        [epoch for epoch, _ in points], [measure.scale * value for _, value in points],
        marker="o" if len(points) == 1 else "", markersize=3.5, **style,
    )  # fmt: skip


def _ends(
    axes: Axes,
    lines: Sequence[tuple[Trial, Sequence[tuple[int, float]]]],
    measure: Measure,
    status: str,
    marker: str,
    colour: str,
) -> None:
    ends = [points[-1] for trial, points in lines if trial.status == status]
    if ends:
        axes.plot(
            [epoch for epoch, _ in ends], [measure.scale * value for _, value in ends], linestyle="", marker=marker,
            color=colour, markersize=5, alpha=0.8, zorder=3, label=f"{status} there ({len(ends)})",
        )  # fmt: skip
