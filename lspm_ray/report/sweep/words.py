"""What a sweep found, in sentences."""

from __future__ import annotations

from lspm_ray.page.markup import Child, element
from lspm_ray.report.canvas import fitted
from lspm_ray.report.sweep import view
from lspm_ray.report.sweep.measure import Measure
from lspm_ray.report.words import PERCENT, count, counted, duration
from lspm_ray.tuning.sweep import Finalist, Sweep

_PATH_CHARACTERS = 80
_VALUE_CHARACTERS = 120
_LEVEL = f"95{PERCENT}"
_STATUSES = {"done": "done", "stopped": "stopped early", "failed": "failed", "running": "not finished"}


def tuned(sweep: Sweep) -> str:
    """What was varied, in how many trials and in what time."""
    searched, again = view.searched(sweep.trials), [trial for trial in sweep.trials if trial.finalist]
    found = view.statuses(searched)
    ended = ", ".join(f"{count(found[status])} {text}" for status, text in _STATUSES.items() if found[status])
    trials = f"{counted(len(searched), 'trial')}" + (f" ({ended})" if ended else "")
    more = f" and {counted(len(again), 'repetition')} of finalists with other seeds" if again else ""
    starts = "in one go" if sweep.runs == 1 else f"in {counted(sweep.runs, 'start')}"
    return f"{counted(len(sweep.space), 'field')} tuned in {trials}{more}; {duration(sweep.seconds)} {starts}."


def won(sweep: Sweep, measure: Measure) -> Child:
    """Who won, and how well it does."""
    winner = sweep.winner
    if winner is None:
        return _nobody(sweep)
    seeds = len(winner.scores)
    over = f"mean over {counted(seeds, 'seed')}" if seeds > 1 else "with one seed"
    mean = f"{measure.label} {measure.text(winner.mean.value)}"
    interval = f" ({_LEVEL} interval {measure.interval(winner.mean)}, {over})."
    return [element("strong", f"Trial {winner.number}"), " won: ", element("strong", mean), interval]


def _nobody(sweep: Sweep) -> str:
    finished = view.done(sweep)
    if not sweep.trials:
        return "There is no winner: no trial was begun."
    if not finished:
        return "There is no winner: no trial was trained to its end."
    if not any(view.kept(sweep, trial) for trial in finished):
        return f"There is no winner: none of {counted(len(finished), 'finished trial')} keeps the constraints."
    return "There is no winner: no finalist was trained to its end."


def point(finalist: Finalist) -> Child:
    """The settings of a finalist, one after another."""
    shown: list[Child] = []
    for path, setting in finalist.params.items():
        text = f"{fitted(path, _PATH_CHARACTERS)} = {fitted(view.value(setting), _VALUE_CHARACTERS)}"
        shown += [", " if shown else None, element("code", element("bdi", text))]
    return shown or "no field counts"


def rivals(sweep: Sweep) -> str:
    """Which finalists may be as good as the winner; empty without others."""
    others = sweep.finalists[1:]
    if not others:
        return ""
    close = [finalist.number for finalist in others if not finalist.distinguishable]
    if not close:
        return "Every other finalist is worse by more than chance explains."
    if len(close) == 1:
        return f"Trial {close[0]} cannot be told from it: the difference could be chance."
    return f"Trials {_listed(close)} cannot be told from it: the differences could be chance."


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def gap(sweep: Sweep) -> tuple[str, bool] | None:
    """What the rows say that played no part in choosing, and whether the winner is as good there; None without them."""
    found = sweep.gap
    if found is None:
        return None
    higher = view.higher(sweep, found.metric) is not False
    ends = [found.validation, found.test.low, found.test.high]
    measure = view.measures(sweep).get(found.metric) or Measure.of(found.metric, higher, ends)
    lost = (found.validation - found.test.value) * (1 if higher else -1)
    test = f"{measure.label} {measure.text(found.test.value)} ({_LEVEL} interval {measure.interval(found.test)})"
    there = f"{test} on the test split, which played no part in choosing, and {measure.text(found.validation)}"
    if found.test.low <= found.validation <= found.test.high:
        return f"As far as can be told, yes: {there} on validation; the difference could be chance.", True
    if lost < 0:
        return f"Yes, and better: {there} on validation.", True
    by = f"it is {measure.difference(abs(lost))} worse"
    return (
        f"No: {there} on validation: {by}. What is chosen on validation looks too good there: count on the test split.",
        False,
    )
