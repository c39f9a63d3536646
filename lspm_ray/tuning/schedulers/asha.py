"""Asynchronous successive halving."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from pydantic import Field

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.scheduler import EPOCH, Scheduler, check_before_end, results
from lspm_ray.tuning.space import Space

_NEVER = 10**9


class Asha(Scheduler):
    """At `grace_epochs`, and at every power of `reduction` times it, only the best of those that came so far go on (Li
    et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    Attributes:
        grace_epochs: that every trial gets.
        reduction: one in this many goes on.
    """

    grace_epochs: int = Field(1, ge=1)
    reduction: float = Field(3.0, gt=1)

    def check(self, epochs: int, space: Space, goals: Goals) -> None:
        """The first cut must come before the end."""
        check_before_end("grace_epochs", self.grace_epochs, epochs)

    def build(self, metric: str, mode: str, trials: Sequence[Trial], space: Space) -> Any:
        """Ray Tune's ASHA in one bracket."""
        from ray.tune.schedulers import AsyncHyperBandScheduler

        made = AsyncHyperBandScheduler(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            max_t=_NEVER,
            grace_period=self.grace_epochs,
            reduction_factor=self.reduction,
        )
        for trial in trials:
            seen = SimpleNamespace(trial_id=f"before-{trial.number}")
            made.on_trial_add(None, seen)
            told = results(trial, metric)
            for result in told:
                made.on_trial_result(None, seen, result)
            if told and trial.status != "failed":
                made.on_trial_complete(None, seen, told[-1])
            else:
                made.on_trial_remove(None, seen)
        return made
