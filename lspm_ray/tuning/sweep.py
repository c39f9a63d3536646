"""What a sweep found: everything its report shows, and what `--from-sweep` reads."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lspm_ray.config import Config
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Domain, Params

SWEEP_FILE = "sweep.json"
TRIALS_FILE = "trials.parquet"


class Finalist(Config):
    """A point that was trained with several seeds.

    Attributes:
        number: of the trial that first had the point.
        params: the point.
        scores: of the first objective, one per seed.
        mean: of the scores with its 95 % interval: over seeds and, where the objective is a quality on the validation
            rows, over such rows.
        behind: by how much the winner is better, with its interval; None for the winner itself.
        distinguishable: whether the interval of `behind` leaves out zero.
        values: mean over the seeds of everything that was measured.
    """

    number: int
    params: Params
    scores: list[float]
    mean: Estimate
    behind: Estimate | None = None
    distinguishable: bool = False
    values: dict[str, float] = Field(default_factory=dict)


class Gap(Config):
    """Whether the winner is as good on rows that played no part in choosing it.

    Attributes:
        metric: of quality.
        validation: mean over the seeds.
        test: the same on the test split, with a 95 % interval.
    """

    metric: str
    validation: float
    test: Estimate


class Importance(Config):
    """How much a field matters.

    Attributes:
        share: of the objective's variance that goes with it.
        by_chance: what it would get if nothing mattered, in nineteen of twenty cases at most.
    """

    share: float
    by_chance: float

    @property
    def real(self) -> bool:
        """Whether it is more than chance."""
        return self.share > self.by_chance


class Sweep(Config):
    """A whole sweep.

    Attributes:
        goals: objectives and constraints.
        metric: quality on validation after each epoch, by which the scheduler stops trials.
        higher_is_better: of `metric`.
        space: what varied.
        searcher: as a plugin's YAML form.
        scheduler: the same.
        epochs: of a trial that is not stopped.
        trials: all, finalists' repetitions included.
        finalists: the best points, the winner first; empty if no trial reached an end that keeps the constraints.
        front: numbers of the trials that no other beats in every objective; with one objective just the best.
        importance: by path; empty where too few trials tell.
        gap: of the winner.
        seconds: that the sweep took, all its runs together.
        runs: how often it was started.
        hardware: of the machine that drove it.
        settings: the section `tune` of the configuration.
    """

    goals: Goals
    metric: str
    higher_is_better: bool
    space: dict[str, Domain]
    searcher: dict[str, Any]
    scheduler: dict[str, Any]
    epochs: int
    trials: list[Trial]
    finalists: list[Finalist]
    front: list[int]
    importance: dict[str, Importance]
    gap: Gap | None
    seconds: float
    runs: int
    hardware: dict[str, Any]
    settings: dict[str, Any]

    @property
    def winner(self) -> Finalist | None:
        """The point to use."""
        return self.finalists[0] if self.finalists else None

    def trial(self, number: int) -> Trial:
        """The trial of that number."""
        return next(trial for trial in self.trials if trial.number == number)
