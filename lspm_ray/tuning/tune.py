"""Runs the trials of a sweep on Ray Tune. The only user of it.

Ray Tune schedules, restarts processes and stops trials; what is known is in `Records`, which this process writes: Ray's
own state files are pickles that are rewritten in place, and are never read. A sweep that was killed is a new run of Ray
Tune whose searcher and scheduler are told of the trials before.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lspm_ray.errors import TrainingError
from lspm_ray.progress import Report
from lspm_ray.tuning.config import TuneConfig
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Epoch, Records, Trial
from lspm_ray.tuning.scheduler import EPOCH, Scheduler
from lspm_ray.tuning.searcher import Searcher, propose
from lspm_ray.tuning.space import Params, Space
from lspm_ray.tuning.view import left, left_of_finalists, makespan, picture

OnEpoch = Callable[[int, Mapping[str, float], Path | None], None]
"""Takes the number of an epoch, its metrics, and perhaps a directory that another trial can go on from. It may not
return: then the trial is not worth going on with."""

_VIEW_EVERY_S = 2.0
_FORGET_AFTER_S = 5.0
"""What a stopped trial leaves is removed when its process has surely let go of it."""
_FINALISTS_SLACK = 1.25
"""Finalists answer the rows of validation and test after their training, and one may train longer than its twin."""
_GIVE_UP_AFTER = 5
"""Failed trials without one that did not: then the configuration is at fault, not the point."""


@dataclass(frozen=True)
class Outcome:
    """What a trial brought.

    Attributes:
        history: metrics on validation after each epoch, by its number.
        values: by name, what objectives and constraints are computed from.
    """

    history: dict[int, dict[str, float]]
    values: dict[str, float]


class Problem(Protocol):
    """What is tuned. Sent to the processes of the trials."""

    def run(self, trial: Trial, on_epoch: OnEpoch, beat: Callable[[], None], given: Path | None) -> Outcome:
        """Run a trial, or go on with it where it was.

        Args:
            trial: which one.
            on_epoch: to be told of every epoch but the last.
            beat: to be called whenever there is progress.
            given: go on from what another trial has offered there.
        """

    def forget(self, trial: Trial, running: Sequence[Trial]) -> None:
        """Remove what an unfinished trial has left behind, unless one that still runs is at it."""

    def lost(self, trial: Trial) -> bool:
        """Whether what a finished trial has made is there no more, but is needed."""


@dataclass(frozen=True)
class Reserve:
    """What a trial holds while it runs.

    Attributes:
        cpus: of Ray.
        gpus: of Ray.
        concurrent: trials at the same time.
        fresh: each has a process of its own, which ends with it.
        held_cpus: CPUs that it takes, those of workers of its own included.
    """

    cpus: float
    gpus: float
    concurrent: int
    fresh: bool = False
    held_cpus: float = 1.0


@dataclass
class Sweeper:
    """One run of a sweep.

    Attributes:
        config: the section `tune`.
        goals: what is wanted.
        metric: quality on validation after each epoch.
        seed: of the trainings in the search.
        problem: what is tuned.
        records: of earlier runs of the sweep; new ones are added.
        reserve: for each trial.
        log_uri: directory for TensorBoard.
        report: progress.
        clock: seconds of a clock that never goes back.
        trials: by number.
        redone: numbers of those that `redo` was asked for.
    """

    config: TuneConfig
    goals: Goals
    metric: str
    seed: int
    problem: Problem
    records: Records
    reserve: Reserve
    log_uri: str
    report: Report
    clock: Callable[[], float] = time.monotonic
    trials: dict[int, Trial] = field(init=False, default_factory=dict)
    redone: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        known = self.records.load()
        self._before_s, self._started = self.records.elapsed(known), self.clock()
        afresh = {"status": "running", "reason": "", "ended": None}
        for trial in known:
            again = self.config.retry_failed and trial.status == "failed"
            self.trials[trial.number] = trial.model_copy(update=afresh) if again else trial

    @property
    def seconds(self) -> float:
        """Since the sweep began, pauses between its runs not counted."""
        return self._before_s + self.clock() - self._started

    @property
    def search_trials(self) -> list[Trial]:
        """All trials but the finalists' repetitions."""
        return [trial for trial in self.trials.values() if not trial.finalist]

    @property
    def limit(self) -> int:
        """How many trials the search may make."""
        return self.config.budget.trials

    def search(self) -> None:
        """Try points until the budget is used up or every point was tried.

        Raises:
            TrainingError: the first trials all failed.
        """
        space, searcher = Space(self.config.space), Searcher.make(self.config.searcher)

        def following() -> Trial | None:
            known = self.search_trials
            if len(known) >= self.limit:
                return None
            number = max((trial.number for trial in self.trials.values()), default=-1) + 1
            params = propose(searcher, space, self.goals, known, number, self.config.seed)
            return None if params is None else Trial(number=number, params=params, seed=self.seed)

        scheduler = Scheduler.make(self.config.scheduler)
        mode = "min" if self.metric == "loss" else "max"
        over = [trial for trial in self.search_trials if trial.over]
        waiting = [trial for trial in self.search_trials if not trial.over]
        if len(over) < self.limit and not self._exhausted() and not hopeless(over):
            made = scheduler.build(self.metric, mode, over, space)
            _Phase(self, waiting, following, made, self._exhausted, paused=scheduler.population).run()
        spent = self._exhausted() or "the budget"
        for trial in self.search_trials:
            if not trial.over:  # written down as running: with a larger budget it goes on
                cut = {"status": "stopped", "reason": f"{spent} is used up", "ended": self.seconds}
                self.trials[trial.number] = trial.model_copy(update=cut)
        self._raise_if_hopeless()

    @property
    def population(self) -> bool:
        """Whether the trials of the search took over each other's weights, so that none stands for its point alone."""
        return Scheduler.find(self.config.scheduler["scheduler"]).population

    def repeat(self, points: Sequence[Params]) -> list[list[Trial]]:
        """Train points again, each with every further seed.

        Returns:
            Per point its trials.
        """
        made = [
            [self._repetition(params, self.seed + extra) for extra in range(1, self.config.seeds + 1)]
            for params in points
        ]
        for trial in [trial for trials in made for trial in trials]:
            if trial.status == "done" and self.problem.lost(trial):
                self.redo(trial)
        wanted = self.redone | {trial.number for trials in made for trial in trials}
        waiting = [trial for trial in self.trials.values() if not trial.over and trial.number in wanted]
        if waiting:
            from ray.tune.schedulers import FIFOScheduler

            _Phase(self, waiting, lambda: None, FIFOScheduler(), lambda: "").run()
        return [[self.trials[trial.number] for trial in trials] for trials in made]

    def redo(self, trial: Trial) -> None:
        """Have a finished trial run again by the next `repeat`: what it has made is needed, and was removed."""
        self.redone.add(trial.number)
        self.keep(trial.model_copy(update={"status": "running", "values": {}, "ended": None}))

    def keep(self, trial: Trial) -> None:
        """Write down what is new of a trial."""
        self.trials[trial.number] = trial
        self.records.save(trial)

    def _repetition(self, params: Params, seed: int) -> Trial:
        for trial in self.trials.values():
            if trial.finalist and trial.params == params and trial.seed == seed:
                return trial
        number = max(self.trials) + 1
        trial = Trial(number=number, params=params, seed=seed, finalist=True, began=self.seconds)
        self.keep(trial)
        return trial

    def _exhausted(self) -> str:
        """Which part of the budget is used up; empty if none is."""
        budget = self.config.budget
        if budget.minutes is not None and self.seconds + self._finalists_s() >= 60 * budget.minutes:
            return f"the time budget of {budget.minutes:g} minutes"
        seconds = sum((trial.ended or self.seconds) - trial.began for trial in self.search_trials)
        # Members of a population take turns: together they hold no more than what runs at the same time.
        used = min(seconds, self.seconds * self.reserve.concurrent) * self.reserve.held_cpus
        if budget.cpu_hours is not None and used >= 3600 * budget.cpu_hours:
            return f"the budget of {budget.cpu_hours:g} CPU hours"
        return ""

    def _finalists_s(self) -> float:
        """About how long training the best points again will take."""
        done = [t for t in self.search_trials if t.status == "done" and self.goals.violation(t.values) == 0]
        best = sorted(done, key=lambda trial: self.goals.order(trial.values))[: self.config.finalists]
        seconds = [trial.seconds for trial in best for _ in range(self.config.seeds)]
        return _FINALISTS_SLACK * makespan(seconds, self.reserve.concurrent)

    def _raise_if_hopeless(self) -> None:
        if failed := hopeless(self.search_trials, fewest=1):
            raise TrainingError(
                f"every trial failed; the first: {failed[0].reason}",
                field="tune",
                hint="Mend the configuration, then run again with tune.retry_failed=true",
            )


def hopeless(trials: Sequence[Trial], fewest: int = _GIVE_UP_AFTER) -> list[Trial]:
    """The failed trials, if there are so many, and none has got anywhere: then more would fail too."""
    failed = [trial for trial in trials if trial.status == "failed"]
    # One that was cut off by the end of the search may not have got anywhere either.
    good = [trial for trial in trials if trial.status == "done" or (trial.status == "stopped" and trial.history)]
    return failed if len(failed) >= fewest and not good else []


class _Phase:
    """One run of Ray Tune; `adapters` carry over what it asks and tells.

    Args:
        sweeper: whose trials these are.
        waiting: trials to run first.
        following: makes another one; None when there is none.
        scheduler: Ray Tune's.
        exhausted: which part of the budget is used up.
        paused: trials take turns, so that all of them are under way at the same time.
    """

    def __init__(
        self,
        sweeper: Sweeper,
        waiting: Sequence[Trial],
        following: Callable[[], Trial | None],
        scheduler: Any,
        exhausted: Callable[[], str],
        *,
        paused: bool = False,
    ) -> None:
        self.paused = paused
        self.sweeper, self.waiting, self.following = sweeper, list(waiting), following
        self.scheduler, self.exhausted = scheduler, exhausted
        self._forget: list[tuple[float, Trial]] = []
        self._begun: set[int] = set()
        self._viewed = 0.0

    def run(self) -> None:
        from ray import tune

        from lspm_ray.tuning.adapters import TRIAL, Listener, Stop, Suggest, name_of

        sweeper = self.sweeper
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        reserve = sweeper.reserve
        trainable = _trainable(sweeper.problem, sweeper.metric, sweeper.config.hang_s)
        if self.paused:  # a population is known from the beginning, and Ray Tune wants no searcher for it
            source: dict[str, Any] = {"num_samples": 1}
            space = {TRIAL: tune.grid_search(list(iter(self.suggest, None)))}
        else:
            source = {"search_alg": Suggest(self), "num_samples": -1, "max_concurrent_trials": reserve.concurrent}
            space = {}
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": reserve.cpus, "gpu": reserve.gpus}),
            param_space=space,
            tune_config=tune.TuneConfig(
                scheduler=self.scheduler,
                reuse_actors=not reserve.fresh,
                trial_name_creator=lambda trial: name_of(trial.config[TRIAL]["number"]),
                trial_dirname_creator=lambda trial: name_of(trial.config[TRIAL]["number"]),
                **source,
            ),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=sweeper.log_uri,
                stop=Stop(self),
                callbacks=[Listener(self)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # even the least verbosity prints a table of all settings
            tuner.fit()
        self._clean(math.inf)
        self._show()

    def suggest(self) -> dict[str, Any] | None:
        """The config of the next trial; None at the end."""
        if self.waiting:
            trial = self.waiting.pop(0)
        else:
            following = self.following()
            if following is None:
                return None
            trial = following.model_copy(update={"began": self.sweeper.seconds})
            self.sweeper.keep(trial)
        return trial.model_dump(mode="json", include={"number", "params", "seed", "finalist", "history"})

    def started(self, number: int, params: Params) -> None:
        """Write down that a process has begun with the trial, with these settings."""
        trial, began = self.sweeper.trials[number], self.sweeper.trials[number].began
        if number not in self._begun:
            self._begun.add(number)
            # A trial that goes on after a kill takes as long as it took before, and from now on.
            spent = trial.history[-1].seconds - began if trial.history else 0.0
            began = self.sweeper.seconds - spent
        self.sweeper.keep(trial.model_copy(update={"began": began, "params": dict(params)}))

    def told(self, number: int, result: Mapping[str, Any]) -> None:
        """Write down what a trial has reported."""
        trial, now = self.sweeper.trials[number], self.sweeper.seconds
        known = {epoch.epoch: epoch for epoch in trial.history}
        for text, metrics in result["history"].items():
            epoch = Epoch(epoch=int(text), metrics=metrics, seconds=now)
            if epoch.epoch not in known or known[epoch.epoch].metrics != metrics:
                known[epoch.epoch] = epoch
        update: dict[str, Any] = {"history": [known[epoch] for epoch in sorted(known)]}
        if "values" in result:
            update |= {"status": "done", "values": result["values"], "ended": now}
        if update["history"] != trial.history or "values" in result:
            self.sweeper.keep(trial.model_copy(update=update))

    def ended(self, number: int, error: str = "") -> None:
        """Write down how a trial ended, unless it has said so itself."""
        sweeper, trial = self.sweeper, self.sweeper.trials[number]
        if trial.over:
            return
        spent = self.exhausted()
        if error:
            sweeper.keep(trial.model_copy(update={"status": "failed", "reason": error, "ended": sweeper.seconds}))
        elif not trial.history or spent:
            return  # not judged, only out of time
        else:
            last = trial.history[-1]
            name = Scheduler.make(sweeper.config.scheduler).name
            reason = f"{name}: {sweeper.metric} {last.metrics[sweeper.metric]:.4g} after epoch {last.epoch}"
            sweeper.keep(trial.model_copy(update={"status": "stopped", "reason": reason, "ended": sweeper.seconds}))
        self._forget.append((sweeper.seconds, sweeper.trials[number]))

    def hopeless(self) -> bool:
        """Whether it makes no sense to go on."""
        return bool(hopeless(self.sweeper.search_trials))

    def tick(self) -> None:
        """What is to be done now and then."""
        self._clean(self.sweeper.seconds - _FORGET_AFTER_S)
        if time.monotonic() - self._viewed >= _VIEW_EVERY_S:
            self._viewed = time.monotonic()
            self._show()

    def _show(self) -> None:
        sweeper = self.sweeper
        trials = list(sweeper.trials.values())
        told = (sweeper.goals, sweeper.metric, sweeper.limit, sweeper.seconds, self._left(trials))
        sweeper.report(picture(trials, *told, self._begun))

    def _left(self, trials: Sequence[Trial]) -> float | None:
        sweeper = self.sweeper
        if any(trial.finalist for trial in trials):
            return left_of_finalists(trials, sweeper.reserve.concurrent, sweeper.seconds)
        found, minutes = left(trials, sweeper.limit, sweeper.seconds), sweeper.config.budget.minutes
        if minutes is None:
            return found
        rest = max(0.0, 60 * minutes - self.sweeper.seconds)
        return rest if found is None else min(rest, found)

    def _clean(self, before: float) -> None:
        for entry in [entry for entry in self._forget if entry[0] <= before]:
            self._forget.remove(entry)
            running = [trial for trial in self.sweeper.trials.values() if not trial.over]
            self.sweeper.problem.forget(entry[1], running)


def _trainable(problem: Problem, metric: str, hang_s: float) -> Callable[[dict[str, Any]], None]:
    def run(config: dict[str, Any]) -> None:
        from ray import tune

        from lspm_ray.tuning.adapters import TRIAL, number_of

        number = number_of(tune.get_context().get_trial_name())
        trial = Trial.parse(config[TRIAL] | {"number": number})
        history = {epoch.epoch: epoch.metrics for epoch in trial.history}

        def tell(offer: Path | None = None, **more: Any) -> None:
            number, metrics = max(history.items())
            result = {EPOCH: number, metric: metrics[metric], "history": {str(n): m for n, m in history.items()}}
            tune.report(result | more, checkpoint=None if offer is None else tune.Checkpoint.from_directory(offer))

        def on_epoch(number: int, metrics: Mapping[str, float], offer: Path | None) -> None:
            heart.beat()
            _check_finite(metrics, f"after epoch {number}")
            history[number] = dict(metrics)
            tell(offer)

        with _Heart(hang_s) as heart, _given() as given:
            if given is None:
                for epoch in trial.history:  # a scheduler that is new to it must hear of them
                    tune.report({EPOCH: epoch.epoch, metric: epoch.metrics[metric], "history": {}})
            outcome = problem.run(trial, on_epoch, heart.beat, given)
            history |= outcome.history
            _check_finite(outcome.values, "at the end")
            for number, metrics in history.items():
                _check_finite(metrics, f"after epoch {number}")
        tell(values=outcome.values)

    return run


@contextlib.contextmanager
def _given() -> Iterator[Path | None]:
    """What another trial, or this one before a pause, has offered to go on from."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as directory:
        yield Path(directory)


class _Heart:
    """Ends the process when nothing happens for a long time, whatever it hangs in; its log then says where that was."""

    def __init__(self, hang_s: float) -> None:
        self._hang_s = hang_s

    def __enter__(self) -> _Heart:
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        faulthandler.dump_traceback_later(self._hang_s, exit=True)


def _check_finite(values: Mapping[str, float], when: str) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value} {when}", field="tune")
