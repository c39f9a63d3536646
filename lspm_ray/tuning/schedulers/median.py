"""The median stopping rule."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.scheduler import EPOCH, Scheduler, check_before_end, results
from lspm_ray.tuning.space import Space


class Median(Scheduler):
    """A trial stops when its best is worse than the median of the others' averages up to the same epoch (Golovin et al.
    2017, "Google Vizier").

    Attributes:
        grace_epochs: that every trial gets.
        min_trials: that must have come as far before any is stopped.
    """

    grace_epochs: int = Field(1, ge=1)
    min_trials: int = Field(3, ge=1)

    def check(self, epochs: int, space: Space, goals: Goals) -> None:
        """The first cut must come before the end."""
        check_before_end("grace_epochs", self.grace_epochs, epochs)

    def build(self, metric: str, mode: str, trials: Sequence[Trial], space: Space) -> Any:
        """Ray Tune's rule, without pauses: they would only make trials start again."""
        from ray.tune.schedulers import MedianStoppingRule

        made = MedianStoppingRule(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            grace_period=self.grace_epochs,
            min_samples_required=self.min_trials,
            min_time_slice=math.inf,
        )
        for trial in trials:
            told = results(trial, metric)
            # Ray Tune tells a scheduler of the last result of a trial that did not fail twice.
            for result in told + (told[-1:] if trial.status != "failed" else []):
                made.on_trial_complete(None, f"before-{trial.number}", result)
        return made
