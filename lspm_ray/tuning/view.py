"""What a running sweep looks like, as text. Pure."""

from __future__ import annotations

import heapq
import json
from collections.abc import Container, Sequence

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Params

_SHOWN = 6
_WIDTH = 30


def picture(
    trials: Sequence[Trial],
    goals: Goals,
    metric: str,
    budget: int,
    seconds: float,
    left_s: float | None,
    begun: Container[int] | None = None,
) -> str:
    """A line of counts, the best trial of the search so far, those that run, and the last that ended early or failed.

    Args:
        trials: all so far.
        goals: what makes one good.
        metric: quality after each epoch.
        budget: trials that there will be.
        seconds: since the sweep began.
        left_s: about how many more it takes, if known.
        begun: numbers of the trials that are not waiting for their turn; None if none is.
    """
    searched, repeated = ([trial for trial in trials if trial.finalist is again] for again in (False, True))
    count = {status: sum(trial.status == status for trial in searched) for status in ("done", "stopped", "failed")}
    ends = f"{count['done']} finished, {count['stopped']} stopped early, {count['failed']} failed"
    head = f"{sum(count.values())}/{budget} trials: {ends}"
    if repeated:
        over = sum(trial.over for trial in repeated)
        head = f"searched with {len(searched)} trials: {ends}; finalists again: {over}/{len(repeated)}"
    head += f"; {clock(seconds)}" + ("" if left_s is None else f", {clock(left_s)} left")
    lines = [head]
    best = best_of(searched, goals)
    if best is not None:
        lines.append(f"  best    {_row(best)}  {_values(best, goals)}")
    running = [t for t in trials if t.status == "running" and (begun is None or t.number in begun)]
    lines += [f"  running {_row(trial)}  {_progress(trial, metric)}" for trial in running[:_SHOWN]]
    ended = [trial for trial in (repeated or searched) if trial.status in ("stopped", "failed")]
    lines += [f"  {trial.status:<7} {_row(trial)}  {_plain(trial.reason)}" for trial in ended[-2:]]
    return "\n".join(lines)


def best_of(trials: Sequence[Trial], goals: Goals) -> Trial | None:
    """The best trial that has ended and keeps the constraints."""
    done = [trial for trial in trials if trial.status == "done" and goals.violation(trial.values) == 0]
    return min(done, key=lambda trial: (goals.order(trial.values), trial.number), default=None)


def left(trials: Sequence[Trial], budget: int, seconds: float) -> float | None:
    """Seconds until `budget` trials are over, at the pace so far; None before any is."""
    over = sum(trial.over for trial in trials)
    return None if not over else max(0.0, (budget - over) * seconds / over)


def left_of_finalists(trials: Sequence[Trial], slots: int, seconds: float) -> float:
    """Seconds until all repetitions of finalists are over, if each takes as long as its point took in the search.

    Args:
        trials: all so far.
        slots: trials at the same time.
        seconds: since the sweep began.
    """
    waiting = []
    for trial in trials:
        if trial.finalist and not trial.over:
            same = [t.seconds for t in trials if t.params == trial.params and t.status == "done"]
            waiting.append(max(0.0, max(same, default=0.0) - (seconds - trial.began if trial.history else 0.0)))
    return makespan(waiting, slots)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """How long jobs take that start in this order, each in the first of the slots that is free."""
    free = [0.0] * slots
    for job in seconds:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def shown(params: Params) -> str:
    """A point in a few words: the last parts of the names, numbers to three digits."""
    return ", ".join(f"{path.rpartition('.')[2]}={_short(value)}" for path, value in params.items())


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _row(trial: Trial) -> str:
    return f"#{trial.number:<3} {shown(trial.params)}"


def _values(trial: Trial, goals: Goals) -> str:
    return ", ".join(f"{name} {trial.values[name]:.4g}" for name in goals.names)


def _progress(trial: Trial, metric: str) -> str:
    if not trial.history:
        return "first epoch"
    last = trial.history[-1]
    return f"epoch {last.epoch}: {metric} {last.metrics[metric]:.4g}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):  # of a model what tells it from others
        value = value.get("name") or value.get("architecture") or value
    text = _plain(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _WIDTH else f"…{text[-_WIDTH:]}"


def _plain(text: str) -> str:
    """In one line, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
