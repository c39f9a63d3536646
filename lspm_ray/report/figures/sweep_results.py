"""What a sweep found: how much each field matters, and what one metric costs in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw, fitted, log_axis
from lspm_ray.report.figures.labels import Dot, label_dots
from lspm_ray.report.sweep import view
from lspm_ray.report.sweep.measure import Measure, focus, padded
from lspm_ray.report.words import percents
from lspm_ray.tuning.goals import Limit
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.sweep import Importance, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED = 10
_LOG_FROM = 30.0
"""Ratio of the largest value to the smallest from which an axis is logarithmic."""


def importance(shares: Mapping[str, Importance], *, anchor: str) -> Html:
    """Share of the objective's variance that goes with each field, largest first, and what chance would give it.

    Args:
        shares: by path; not empty.
        anchor: id of the figure in the page.
    """
    ranked = sorted(shares.items(), key=lambda entry: (-entry[1].share, entry[0]))
    text = "; ".join(
        f"{path}: {percents(found.share, 0)}, by chance up to {percents(found.by_chance, 0)}" for path, found in ranked
    )
    caption = Caption(anchor, "Importance of each field", text)
    return draw(lambda figure: _paint_importance(figure, ranked), 9.0, 0.5 + 0.3 * len(ranked), caption)


def tradeoff(sweep: Sweep, across: Measure, up: Measure, *, anchor: str) -> Html:
    """Two metrics of every trial that is done; the front is marked, bounds are drawn.

    Args:
        sweep: what is shown.
        across: the metric on the horizontal axis.
        up: the other.
        anchor: id of the figure in the page.
    """
    shown = [sweep.trial(number) for number in sweep.front]
    text = "; ".join(
        f"trial {t.number}: " + ", ".join(f"{m.label} {m.text(t.values[m.name])}" for m in (up, across))
        for t in shown
        if {up.name, across.name} <= t.values.keys()
    )
    caption = Caption(anchor, f"{up.label} against {across.label}", f"On the front: {text or 'no trial'}")
    return draw(lambda figure: _paint_tradeoff(figure, sweep, across, up), 8.4, 4.8, caption)


def _paint_importance(figure: Figure, ranked: Sequence[tuple[str, Importance]]) -> None:
    axes = figure.add_subplot()
    for place, (_, found) in enumerate(ranked):
        colour = LIGHT["series-1"] if found.real else LIGHT["muted"]
        axes.barh(place, found.share, height=0.72, color=colour, linewidth=0)
        axes.plot([found.by_chance] * 2, [place - 0.42, place + 0.42], color=LIGHT["ink"], linewidth=1.3)
        axes.annotate(
            percents(found.share, 0), (max(found.share, found.by_chance), place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(ranked)), labels=[fitted(path, 40) for path, _ in ranked])
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max(max(found.share, found.by_chance) for _, found in ranked) or 1)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)


def _paint_tradeoff(figure: Figure, sweep: Sweep, across: Measure, up: Measure) -> None:
    axes = figure.add_subplot()
    trials = view.searched(view.done(sweep))
    _scale(axes, "x", across, trials, sweep.goals.constraints.get(across.name))
    _scale(axes, "y", up, trials, sweep.goals.constraints.get(up.name))
    kept = [trial for trial in trials if view.kept(sweep, trial)]
    broken = [trial for trial in trials if not view.kept(sweep, trial)]
    _dots(axes, across, up, kept, "done", LIGHT["series-1"], LIGHT["series-1"])
    _dots(axes, across, up, broken, "breaks a constraint", LIGHT["series-1"], LIGHT["paper"])
    _bounds(axes, sweep, across, up)
    front = sorted((t for t in trials if t.number in sweep.front), key=lambda t: t.values[across.name])
    if len(sweep.goals.objectives) == 2 and {across.name, up.name} == set(sweep.goals.objectives):
        axes.plot(*_xy(axes, across, up, front), color=LIGHT["good"], linewidth=1.0, zorder=2)
    _dots(axes, across, up, front, "front", LIGHT["good"], LIGHT["good"], size=7)
    winner = [t for t in trials if sweep.winner is not None and t.number == sweep.winner.number]
    if winner:
        x, y = _xy(axes, across, up, winner)
        axes.plot(x, y, "*", color=view.WINNER_COLOUR, markersize=14, zorder=5, label="winner")
    axes.set_xlabel(_title(axes.get_xscale(), across))
    axes.set_ylabel(_title(axes.get_yscale(), up))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.2, handlelength=1.2)
    _name(figure, axes, sweep, across, up, front + [trial for trial in winner if trial not in front])


def _title(scale: str, measure: Measure) -> str:
    hint = ", ".join(filter(None, [measure.direction, "log scale" if scale == "log" else ""]))
    return fitted(measure.title, 44) + (f" ({hint})" if hint else "")


def _scale(axes: Axes, which: str, measure: Measure, trials: Sequence[Trial], limit: Limit | None) -> None:
    values = [measure.scale * trial.values[measure.name] for trial in trials]
    bounds = [] if limit is None else [measure.scale * b for b in (limit.min, limit.max) if b is not None]
    if not values:
        return
    low, high = focus(values, measure.higher)
    everything = [low, high, *bounds]
    if min(everything) > 0 and max(everything) / min(everything) >= _LOG_FROM:
        log_axis(axes, which, everything)
    else:
        getattr(axes, f"set_{which}lim")(*padded(min(everything), max(everything), 0.07))


def _xy(axes: Axes, across: Measure, up: Measure, trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """Where the trials stand; what is off the scale at the edge."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x = [min(max(across.scale * trial.values[across.name], left), right) for trial in trials]
    y = [min(max(up.scale * trial.values[up.name], bottom), top) for trial in trials]
    return x, y


def _dots(
    axes: Axes,
    across: Measure,
    up: Measure,
    trials: Sequence[Trial],
    label: str,
    colour: str,
    fill: str,
    size: float = 5,
) -> None:
    if trials:
        x, y = _xy(axes, across, up, trials)
        axes.plot(
            x, y, linestyle="", marker="o", color=colour, markerfacecolor=fill, markersize=size, alpha=0.8,
            label=f"{label} ({len(trials)})", zorder=3, clip_on=False,
        )  # fmt: skip


def _bounds(axes: Axes, sweep: Sweep, across: Measure, up: Measure) -> None:
    labels = iter(["bound"])
    for measure, line in ((across, axes.axvline), (up, axes.axhline)):
        limit = sweep.goals.constraints.get(measure.name)
        for bound in () if limit is None else (limit.min, limit.max):
            if bound is not None:
                label = next(labels, "_bound")
                line(measure.scale * bound, color=LIGHT["alert"], linestyle="--", linewidth=1.1, label=label)


def _name(figure: Figure, axes: Axes, sweep: Sweep, across: Measure, up: Measure, trials: Sequence[Trial]) -> None:
    """The finalists first: on a crowded front only some can be named."""
    ranks = {finalist.number: rank for rank, finalist in enumerate(sweep.finalists)}
    named = sorted(trials, key=lambda trial: (ranks.get(trial.number, len(ranks)), trial.number))[:_MOST_NAMED]
    winner = None if sweep.winner is None else sweep.winner.number
    x, y = _xy(axes, across, up, named)
    colours = [view.WINNER_COLOUR if trial.number == winner else LIGHT["good"] for trial in named]
    dots = [Dot(f"trial {t.number}", *at) for t, at in zip(named, zip(x, y, colours, strict=True), strict=True)]
    numbers = {trial.number for trial in named}
    others = [trial for trial in view.searched(view.done(sweep)) if trial.number not in numbers]
    label_dots(figure, axes, dots, others=list(zip(*_xy(axes, across, up, others), strict=True)))
