"""Every trial as a line through its settings to what it reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT, SCALE
from lspm_ray.report.canvas import Caption, draw, fitted
from lspm_ray.report.figures.sweep_axes import Axis, places
from lspm_ray.report.sweep import view
from lspm_ray.report.sweep.measure import Measure, focus
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ABSENT = -0.1
"""Where a line passes an axis that does not count for its trial."""
_ROW_IN = 0.6
_NAME_CHARACTERS = 34
_VALUE_CHARACTERS = 26
_FAINTEST = 0.3


def parallel(sweep: Sweep, measure: Measure, *, anchor: str) -> Html:
    """One axis per varied field, and the first objective as the last; lines go from the top to the bottom.

    Args:
        sweep: trials whose lines are drawn, without the repetitions of finalists.
        measure: the first objective.
        anchor: id of the figure in the page.
    """
    caption = Caption(anchor, "Settings and result of every trial", _in_words(sweep, measure))
    height = 0.7 + _ROW_IN * (len(sweep.space) + 1)
    return draw(lambda figure: _paint(figure, sweep, measure), 11.0, height, caption)


def shade(place: float) -> str:
    """The colour of a result, from 0 for the worst to 1 for the best."""
    return LIGHT[SCALE[min(len(SCALE) - 1, int(place * len(SCALE)))]]


def _in_words(sweep: Sweep, measure: Measure) -> str:
    finished = sorted(view.searched(view.done(sweep)), key=lambda trial: sweep.goals.order(trial.values))
    best = "; ".join(
        f"trial {t.number}: {', '.join(view.point(t.params, 80))}: {measure.text(t.values[measure.name])}"
        for t in finished[:5]
    )
    fields = f"{len(sweep.space)} fields of {len(view.searched(sweep.trials))} trials"
    return f"{fields}. Best: {best}" if best else f"{fields}. None is done"


def _paint(figure: Figure, sweep: Sweep, measure: Measure) -> None:
    axes = figure.add_subplot()
    rows = [Axis.of(path, domain) for path, domain in sweep.space.items()]
    finished = {trial.number for trial in view.done(sweep)}
    # Worst first: better lines are drawn over worse ones, and lie in this order inside a slot.
    trials = sorted(
        view.searched(sweep.trials),
        key=lambda t: (t.number in finished, _merit(t, measure) if t.number in finished else 0.0, t.number),
    )
    across = [places(row, [trial.params for trial in trials]) for row in rows]
    _frame(axes, rows, measure)
    limits = _limits(sweep, measure)
    _result_axis(axes, sweep, measure, len(rows))
    # Many lines without a result must not hide those that have one.
    faint = min(_FAINTEST, max(0.1, 20 / max(1, len(trials))))
    for index, trial in enumerate(trials):
        xs = [_ABSENT if column[index] is None else float(column[index] or 0.0) for column in across]
        if trial.number in finished:
            _line(axes, sweep, measure, trial, xs, limits)
        else:
            axes.plot(xs, range(len(xs)), color=LIGHT["muted"], linewidth=0.6, alpha=faint, zorder=1.5)
    _winner(axes, sweep, measure, rows, trials, across)
    axes.set_xlim(_ABSENT - 0.04, 1.02)
    axes.set_ylim(len(rows) + 0.55, -0.75)


def _merit(trial: Trial, measure: Measure) -> float:
    value = trial.values[measure.name]
    return value if measure.higher else -value


def _frame(axes: Axes, rows: Sequence[Axis], measure: Measure) -> None:
    names = [fitted(row.path, _NAME_CHARACTERS) for row in rows]
    result = f"{fitted(measure.title, _NAME_CHARACTERS)}\n{measure.direction}"
    axes.set_yticks(range(len(rows) + 1), labels=[*names, result])
    axes.tick_params(axis="y", length=0, pad=2)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for y, row in enumerate(rows):
        axes.plot([0, 1], [y, y], color=LIGHT["muted"], linewidth=0.8, zorder=1)
        for x, label in row.ticks:
            _tick(axes, x, y, label)
        if row.domain.when:
            _tick(axes, _ABSENT, y, "not used")


def _tick(axes: Axes, x: float, y: float, label: str) -> None:
    axes.plot([x, x], [y - 0.07, y + 0.07], color=LIGHT["muted"], linewidth=0.8, zorder=5)
    box = {"facecolor": LIGHT["paper"], "alpha": 0.8, "linewidth": 0, "pad": 0.8}
    axes.text(x, y + 0.13, label, ha="center", va="top", fontsize=8, bbox=box, zorder=6)


def _limits(sweep: Sweep, measure: Measure) -> tuple[float, float]:
    return focus([t.values[measure.name] for t in view.searched(view.done(sweep))], measure.higher)


def _at(value: float, limits: tuple[float, float]) -> float:
    """Where a result stands on its axis; those that are far off at its end."""
    low, high = limits
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def _goodness(value: float, limits: tuple[float, float], measure: Measure) -> float:
    if limits[0] == limits[1]:
        return 1.0
    return _at(value, limits) if measure.higher else 1 - _at(value, limits)


def _result_axis(axes: Axes, sweep: Sweep, measure: Measure, y: int) -> None:
    limits = _limits(sweep, measure)
    steps = len(SCALE)
    for step in range(steps):
        colour = shade((step + 0.5) / steps if measure.higher else 1 - (step + 0.5) / steps)
        axes.plot(
            [step / steps, (step + 1) / steps], [y + 0.05] * 2, color=colour, linewidth=6, zorder=3,
            solid_capstyle="butt",
        )  # fmt: skip
    if not view.searched(view.done(sweep)):
        return
    if limits[0] == limits[1]:
        _tick(axes, 0.5, y, measure.number(limits[0]))
        return
    for place in (0, 0.25, 0.5, 0.75, 1):
        _tick(axes, place, y, measure.number(limits[0] + place * (limits[1] - limits[0])))


def _line(
    axes: Axes, sweep: Sweep, measure: Measure, trial: Trial, xs: Sequence[float], limits: tuple[float, float]
) -> None:
    good = _goodness(trial.values[measure.name], limits, measure)
    axes.plot(
        [*xs, _at(trial.values[measure.name], limits)], range(len(xs) + 1), color=shade(good),
        linewidth=0.9 + 0.5 * good, alpha=_FAINTEST + 0.6 * good, zorder=2,
        linestyle="-" if view.kept(sweep, trial) else "--",
    )  # fmt: skip


def _winner(
    axes: Axes,
    sweep: Sweep,
    measure: Measure,
    rows: Sequence[Axis],
    trials: Sequence[Trial],
    across: Sequence[Sequence[float | None]],
) -> None:
    winner = sweep.winner
    index = next((i for i, trial in enumerate(trials) if winner is not None and trial.number == winner.number), None)
    if winner is None or index is None:
        return
    xs = [_ABSENT if column[index] is None else float(column[index] or 0.0) for column in across]
    texts = [view.value(winner.params[row.path]) if row.path in winner.params else "not used" for row in rows]
    if measure.name in trials[index].values:
        xs.append(_at(trials[index].values[measure.name], _limits(sweep, measure)))
        texts.append(measure.text(trials[index].values[measure.name]))
    axes.plot(xs, range(len(xs)), color=view.WINNER_COLOUR, linewidth=2.4, marker="o", markersize=5, zorder=4)
    for y, text in enumerate([f"winner: trial {winner.number}", *texts], start=-1):
        weight = "bold" if y < 0 else "normal"
        axes.text(
            1.04, y if y >= 0 else -0.6, fitted(text, _VALUE_CHARACTERS), color=view.WINNER_COLOUR, fontsize=8.5,
            va="center", fontweight=weight,
        )  # fmt: skip
