"""What the page asks of a sweep. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import fitted
from lspm_ray.report.sweep.measure import Measure
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Domain
from lspm_ray.tuning.sweep import Finalist, Sweep

WINNER_COLOUR = LIGHT["series-5"]
"""Stands apart from every colour of the scale."""
_OTHERS = [LIGHT[f"series-{n}"] for n in (2, 1, 4, 3, 6, 7, 8)]


def measures(sweep: Sweep) -> dict[str, Measure]:
    """The objectives and constraints, with the metric that the scheduler looks at."""
    found = {}
    for name in [*sweep.goals.names, sweep.metric]:
        values = [trial.values[name] for trial in done(sweep) if name in trial.values]
        values = values or [epoch.metrics[name] for t in sweep.trials for epoch in t.history if name in epoch.metrics]
        found[name] = Measure.of(name, higher(sweep, name), values)
    return found


def higher(sweep: Sweep, metric: str) -> bool | None:
    """Whether more of a metric is better; None where nobody says."""
    if metric in sweep.goals.objectives:
        return sweep.goals.objectives[metric] == "max"
    if metric == sweep.metric:
        return sweep.higher_is_better
    limit = sweep.goals.constraints.get(metric)
    if limit is None or (limit.min is None) == (limit.max is None):
        return None
    return limit.max is None


def done(sweep: Sweep) -> list[Trial]:
    """The trials that ended with all their metrics."""
    return [trial for trial in sweep.trials if complete(sweep, trial)]


def complete(sweep: Sweep, trial: Trial) -> bool:
    """Whether a trial ended with all its metrics."""
    return trial.status == "done" and all(name in trial.values for name in sweep.goals.names)


def searched(trials: Iterable[Trial]) -> list[Trial]:
    """Those that searched, without the repetitions of finalists."""
    return [trial for trial in trials if not trial.finalist]


def statuses(trials: Iterable[Trial]) -> Counter[str]:
    """How many trials ended in which way."""
    return Counter(trial.status for trial in trials)


def kept(sweep: Sweep, trial: Trial) -> bool:
    """Whether a trial that is done keeps the constraints."""
    return sweep.goals.violation(trial.values) == 0


def repeated(sweep: Sweep, trial: Trial) -> Finalist | None:
    """The finalist whose point a trial has, if it was trained for that."""
    return next((f for f in sweep.finalists if trial.finalist and f.params == trial.params), None)


def running_best(sweep: Sweep) -> list[tuple[Trial, float]]:
    """The trials that were better than all before them when they ended, with the first objective."""
    best: list[tuple[Trial, float]] = []
    name, better = sweep.goals.first, max if sweep.goals.first_is_higher else min
    for trial in sorted(searched(done(sweep)), key=lambda trial: (end(trial), trial.number)):
        value = trial.values[name]
        if kept(sweep, trial) and (not best or better(value, best[-1][1]) != best[-1][1]):
            best.append((trial, value))
    return best


def end(trial: Trial) -> float:
    """When it ended, in seconds since the sweep began."""
    return trial.began if trial.ended is None else trial.ended


def colours(sweep: Sweep) -> dict[int, str]:
    """Number of a finalist's trial -> its colour, the same in every figure."""
    others = [finalist.number for finalist in sweep.finalists[1:]]
    winner = {} if sweep.winner is None else {sweep.winner.number: WINNER_COLOUR}
    return winner | {number: _OTHERS[i % len(_OTHERS)] for i, number in enumerate(others)}


def value(setting: Any) -> str:
    """A value of a field in one line, as YAML would say it in short."""
    if setting is None or isinstance(setting, bool):
        return {None: "null", True: "true", False: "false"}[setting]
    if isinstance(setting, Mapping):
        return "{" + ", ".join(f"{key}: {value(inner)}" for key, inner in setting.items()) + "}"
    if isinstance(setting, list | tuple):
        return "[" + ", ".join(map(value, setting)) + "]"
    return f"{setting:.3g}" if isinstance(setting, float) else str(setting)


def point(params: Mapping[str, Any], most: int) -> list[str]:
    """The settings of a point, each in one line of at most `most` characters."""
    return [fitted(f"{path} = {value(setting)}", most) for path, setting in params.items()]


def domain(found: Domain) -> str:
    """What a field may be, in words."""
    if found.options is not None:
        return " · ".join(map(value, found.options))
    low, high = found.bounds or (math.nan, math.nan)
    how = {"loguniform": ", log scale", "randint": ", whole numbers"}.get(found.kind, "")
    return f"{low:g} to {high:g}{how}"


def condition(found: Domain) -> str:
    """When a field counts, in words; empty: always."""
    return "; ".join(f"{path} = {_any(wanted)}" for path, wanted in found.when.items())


def _any(wanted: Any) -> str:
    return " or ".join(map(value, wanted)) if isinstance(wanted, list) else value(wanted)
