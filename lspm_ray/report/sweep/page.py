"""The page about a sweep: sections of words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lspm_ray import __version__
from lspm_ray.page.frame import Section, figure, numbers_in, page, tiles, verdict
from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import tables as common
from lspm_ray.report.canvas import fitted
from lspm_ray.report.figures.sweep_parallel import parallel
from lspm_ray.report.figures.sweep_progress import best_so_far, curves
from lspm_ray.report.figures.sweep_results import importance, tradeoff
from lspm_ray.report.findings import Source
from lspm_ray.report.sweep import tables, view, words
from lspm_ray.report.sweep.measure import Measure, focus
from lspm_ray.report.words import count, counted, duration, hardware, percents
from lspm_ray.tuning.sweep import SWEEP_FILE, TRIALS_FILE, Sweep

_TITLE = "Report: hyperparameter sweep"


def render(sweep: Sweep, lineage: Sequence[Source], command: str) -> str:
    """The whole page; equal arguments give equal bytes.

    Args:
        sweep: what is shown.
        lineage: the artifacts that every trial began from.
        command: trains the winner; empty without one.
    """
    measures = view.measures(sweep)
    sections = [
        Section("finalists", "Finalists", _finalists(sweep, measures)),
        Section("progress", "Best so far", _progress(sweep, measures)),
        Section("settings-and-results", "Settings and results", _parallel(sweep, measures)),
        Section("importance", "Importance", _importance(sweep)),
        Section("curves", "Learning curves", _curves(sweep, measures)),
    ]
    names = sweep.goals.names
    if len(names) > 1:
        title = f"{measures[names[0]].label.capitalize()} against {measures[names[1]].label}"
        sections.insert(1, Section("tradeoff", title, _tradeoff(sweep, measures)))
    sections += [
        Section("trials", "Trials", tables.trials(sweep, measures) if sweep.trials else "No trial was begun."),
        Section("settings", "Settings", _settings(sweep)),
    ]
    sections += [Section("lineage", "Lineage", common.lineage(lineage, "manifest.json"))] if lineage else []
    return page(
        _TITLE, _header(sweep, measures, command), sections, numbers_in(__version__, f"{SWEEP_FILE} and {TRIALS_FILE}")
    )


def _header(sweep: Sweep, measures: Mapping[str, Measure], command: str) -> Child:
    found = words.gap(sweep)
    rivals = words.rivals(sweep)
    return [
        element("p", f"Driven from {hardware(sweep.hardware)}.", class_="note"),
        element("p", words.tuned(sweep), class_="lead"),
        element("p", words.won(sweep, measures[sweep.goals.first]), class_="lead"),
        element("p", "Its settings: ", words.point(sweep.winner), ".") if sweep.winner is not None else None,
        element("p", rivals, " ", element("a", "How they compare", href="#finalists"), class_="note")
        if rivals
        else None,
        verdict("Is it as good on other rows?", found[0], good=found[1]) if found is not None else None,
        [element("p", "This trains the winner:"), element("pre", element("code", command))] if command else None,
        _tiles(sweep, measures),
    ]


def _tiles(sweep: Sweep, measures: Mapping[str, Measure]) -> Html:
    searched, first = view.searched(sweep.trials), measures[sweep.goals.first]
    ended = view.statuses(searched)
    shown: list[tuple[str, Child, Child]] = [
        ("trials", count(len(searched)), f"{ended['done']} done, {ended['stopped']} stopped, {ended['failed']} failed"),
        ("time", duration(sweep.seconds), counted(sweep.runs, "start")),
    ]
    if sweep.winner is not None:
        interval = f"95 % interval {first.interval(sweep.winner.mean)}"
        shown.append((first.label, first.text(sweep.winner.mean.value), interval))
        for metric in sweep.goals.names[1:]:
            if metric in sweep.winner.values:
                other = measures[metric]
                shown.append((other.label, other.text(sweep.winner.values[metric]), "of the winner"))
    if sweep.importance:
        path, most = max(sweep.importance.items(), key=lambda entry: entry[1].share)
        if most.real:
            told = f"{percents(most.share, 0)} of the variance"
            shown.append(("most important field", name(fitted(path.rpartition(".")[2], 40)), told))
    return tiles(shown)


def _finalists(sweep: Sweep, measures: Mapping[str, Measure]) -> Child:
    if not sweep.finalists:
        end = "an end that keeps the constraints" if sweep.goals.constraints else "its end"
        return element("p", f"There are none: no trial reached {end}.")
    return tables.finalists(sweep, measures)


def _tradeoff(sweep: Sweep, measures: Mapping[str, Measure]) -> Child:
    if not view.searched(view.done(sweep)):
        return element("p", "No trial is done: there is nothing to compare.")
    up, across = (measures[metric] for metric in sweep.goals.names[:2])
    note = "Each dot is a trial that is done. Green: the front, which no other trial beats in every objective."
    if sweep.goals.constraints:
        note += " Hollow: it breaks a constraint, and stands outside the contest. Dashed: a bound."
    note += _single(sweep)
    left = [measures[metric].label for metric in sweep.goals.names[2:]]
    note += f" Not drawn: {', '.join(left)}." if left else ""
    return figure(tradeoff(sweep, across, up, anchor="front"), note + _far(sweep, across) + _far(sweep, up))


def _single(sweep: Sweep) -> str:
    """A sentence about why the winner need not look best among single trials; empty where it has one seed."""
    several = sweep.winner is not None and len(sweep.winner.scores) > 1
    return " The winner was chosen by its mean over seeds; here it stands with its first one." if several else ""


def _progress(sweep: Sweep, measures: Mapping[str, Measure]) -> Child:
    if not sweep.trials:
        return element("p", "No trial was begun.")
    first = measures[sweep.goals.first]
    counted_in = "trials that searched" + (" and keep the constraints" if sweep.goals.constraints else "")
    note = (
        f"A dot is a trial where it ended. Only {counted_in} count as best so far; those that failed or were stopped "
        "have no result and stand on the axis."
    )
    return figure(best_so_far(sweep, first, anchor="best"), note)


def _parallel(sweep: Sweep, measures: Mapping[str, Measure]) -> Child:
    if not view.searched(sweep.trials):
        return element("p", "No trial was begun.")
    first = measures[sweep.goals.first]
    note = (
        f"A line is a trial, from its settings at the top to its {first.label} at the bottom, which colours it: the "
        "more a line stands out, the better. Grey: without a result. Trials with the same listed value lie side by "
        "side, better ones to the right."
    )
    note += (" Dashed: it breaks a constraint." if sweep.goals.constraints else "") + _single(sweep)
    return figure(parallel(sweep, first, anchor="parallel"), note + _far(sweep, first))


def _far(sweep: Sweep, measure: Measure) -> str:
    """A sentence about what the axis of a metric leaves out; empty where it shows all."""
    values = [trial.values[measure.name] for trial in view.searched(view.done(sweep))]
    low, high = focus(values, measure.higher)
    far = sum(not low <= value <= high for value in values)
    if not far:
        return ""
    return f" {counted(far, 'trial')}, far worse in {measure.label}, drawn at the end of the axis."


def _importance(sweep: Sweep) -> Child:
    if not sweep.importance:
        return element("p", "Not known: too few trials are done to tell which fields matter.")
    note = (
        "Share of the variance of the first objective that goes with each field, estimated from the trials. The "
        "mark is what a field gets by chance, with the outcomes shuffled among the trials: a grey bar, which does not "
        "reach it, says nothing yet. It speaks of the trials of this sweep and of the ranges they were drawn from."
    )
    return figure(importance(sweep.importance, anchor="shares"), note)


def _curves(sweep: Sweep, measures: Mapping[str, Measure]) -> Child:
    measure = measures[sweep.metric]
    if not any(measure.name in epoch.metrics for trial in sweep.trials for epoch in trial.history):
        return element("p", "No trial reached the end of an epoch.")
    note = "A line is a trial. Thin lines in the colour of a finalist: the same point with other seeds."
    return figure(curves(sweep, measure, anchor="learning"), note)


def _settings(sweep: Sweep) -> Child:
    return [tables.space(sweep) if sweep.space else None, tables.settings(sweep)]
