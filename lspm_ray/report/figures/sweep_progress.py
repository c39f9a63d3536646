"""How a sweep went: best so far, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw, fitted
from lspm_ray.report.figures.series import TIMES, unit_of
from lspm_ray.report.sweep import view
from lspm_ray.report.sweep.measure import Measure, focus, padded
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

Lines = Sequence[tuple[Trial, Sequence[tuple[int, float]]]]
"""Trials with the value that they reached after each epoch."""


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
    last = max([*map(view.end, sweep.trials), sweep.seconds, 1.0])
    size, unit = unit_of(last, TIMES, "seconds")
    finished = view.done(sweep)
    low, high = focus([trial.values[measure.name] for trial in finished], measure.higher)
    for label, trials, style in _groups(sweep, measure, low, high):
        x = [view.end(trial) / size for trial in trials]
        y = [measure.scale * min(max(trial.values[measure.name], low), high) for trial in trials]
        axes.plot(x, y, linestyle="", label=f"{label} ({len(trials)})", zorder=3, **style)
    _step(axes, sweep, measure, size)
    _without_result(axes, sweep, size)
    axes.set_xlim(0, 1.03 * last / size)
    axes.set_ylim(*padded(low * measure.scale, high * measure.scale, 0.1))
    axes.set_xlabel(f"{unit} since the sweep began, pauses not counted")
    axes.set_ylabel(fitted(measure.title, _AXIS_CHARACTERS))
    if not finished:
        axes.set_yticks([])
    _legend(axes)


def _groups(sweep: Sweep, measure: Measure, low: float, high: float) -> list[tuple[str, list[Trial], dict[str, Any]]]:
    """The trials that are done as they are drawn: name, trials, style."""
    inside: list[Trial] = []
    far: list[Trial] = []
    for trial in view.done(sweep):
        (inside if low <= trial.values[measure.name] <= high else far).append(trial)
    search = view.searched(inside)
    full = {"color": LIGHT["series-1"], "marker": "o", "markersize": 5}
    hollow = {"markerfacecolor": LIGHT["paper"]}
    groups = [
        ("done", [t for t in search if view.kept(sweep, t)], full | {"alpha": 0.75}),
        ("breaks a constraint", [t for t in search if not view.kept(sweep, t)], full | hollow),
        ("finalist again", [t for t in inside if t.finalist], full | hollow | {"color": LIGHT["muted"], "marker": "D"}),
        ("off the scale", far, full | {"color": LIGHT["series-7"], "marker": "v" if measure.higher else "^"}),
    ]
    return [group for group in groups if group[1]]


def _without_result(axes: Axes, sweep: Sweep, size: float) -> None:
    for status, marker, tone in (("stopped", "|", LIGHT["muted"]), ("failed", "x", LIGHT["alert"])):
        x = [view.end(trial) / size for trial in sweep.trials if trial.status == status]
        if x:
            axes.plot(
                x, [0.025] * len(x), linestyle="", marker=marker, color=tone, markersize=6, zorder=4,
                transform=axes.get_xaxis_transform(), label=f"{status} ({len(x)})", clip_on=False,
            )  # fmt: skip


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=7, columnspacing=1.0, handlelength=1.4)


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
    axes = figure.add_subplot()
    most = max(_FEWEST_POINTS, _MOST_POINTS // max(1, len(sweep.trials)))
    lines = [(trial, points) for trial in sweep.trials if (points := _points(trial, measure.name, most))]
    faint = max(0.2, min(0.7, 25 / max(1, len(lines))))
    finalists = {finalist.number for finalist in sweep.finalists}
    for trial, points in lines:
        if trial.number not in finalists:
            _curve(axes, points, measure, color=LIGHT["muted"], linewidth=0.8, alpha=faint, zorder=2)
    _ends(axes, lines, measure, "stopped", ".", LIGHT["series-2"])
    _ends(axes, lines, measure, "failed", "x", LIGHT["alert"])
    _finalists(axes, sweep, measure, lines)
    _limits(axes, sweep, measure, lines)
    axes.set_xlabel("epoch")
    axes.set_ylabel(fitted(f"{measure.label} on validation", _AXIS_CHARACTERS) + (", %" if measure.share else ""))
    _legend(axes)


def _finalists(axes: Axes, sweep: Sweep, measure: Measure, lines: Lines) -> None:
    colours = view.colours(sweep)
    known = {trial.number: points for trial, points in lines}
    for place, finalist in enumerate(sweep.finalists):
        style = {"color": colours[finalist.number], "zorder": 4.9 - 0.1 * min(place, 8)}
        for trial, points in lines:
            if trial.finalist and trial.params == finalist.params and trial.number != finalist.number:
                _curve(axes, points, measure, linewidth=0.8, alpha=0.6, **style)
        label = f"trial {finalist.number}" + (" (winner)" if place == 0 else "")
        # A leading underscore keeps a name out of the legend.
        label = label if place < _MOST_NAMED else f"_{label}"
        _curve(axes, known.get(finalist.number, []), measure, linewidth=2.2, label=label, **style)


def _limits(axes: Axes, sweep: Sweep, measure: Measure, lines: Lines) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = focus([value for _, points in lines for _, value in points], measure.higher)
    axes.set_ylim(*padded(low * measure.scale, high * measure.scale))
    epochs = [epoch for _, points in lines for epoch, _ in points]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(epochs, default=1) - 0.4, max(epochs, default=sweep.epochs) + 0.4)


def _curve(axes: Axes, points: Sequence[tuple[int, float]], measure: Measure, **style: Any) -> None:
    axes.plot(
        [epoch for epoch, _ in points], [measure.scale * value for _, value in points],
        marker="o" if len(points) == 1 else "", markersize=3.5, **style,
    )  # fmt: skip


def _ends(
    axes: Axes,
    lines: Lines,
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
