"""The contract of a scheduler: which trials are not worth going on with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from lspm_ray.errors import ConfigError
from lspm_ray.plugin import Plugin
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Space

EPOCH = "epoch"
"""What a trial's result calls the number of its epoch."""


class Scheduler(Plugin):
    """A way to stop trials early, by the quality on validation after each epoch.

    Class attributes:
        population: trials take over each other's weights and change their settings on the way.
    """

    package: ClassVar[str] = "lspm_ray.tuning.schedulers"
    kind: ClassVar[str] = "scheduler"
    population: ClassVar[bool] = False

    def check(self, epochs: int, space: Space, goals: Goals) -> None:
        """Refuse settings that do nothing for trials of that many epochs, or do not go with space and goals.

        Raises:
            ConfigError: names the field.
        """

    @abstractmethod
    def build(self, metric: str, mode: str, trials: Sequence[Trial], space: Space) -> Any:
        """Ray Tune's scheduler, as if it had seen `trials` (those of earlier runs of the sweep, which are over).

        Args:
            metric: name of the quality.
            mode: `max` or `min`.
            trials: without finalists' repetitions.
            space: that they are of.
        """


def check_before_end(field: str, value: int, epochs: int) -> None:
    """Refuse a scheduler that would act for the first time when trials are over.

    Args:
        field: of the scheduler.
        value: epochs after which it acts.
        epochs: of a trial.

    Raises:
        ConfigError: they are not more than `value`.
    """
    if value >= epochs:
        raise ConfigError(
            f"trials of {epochs} epoch(s) are over before the first can be stopped",
            field=f"tune.scheduler.{field}",
            value=value,
            hint="Raise finetune.epochs, or set tune.scheduler to none",
        )


def results(trial: Trial, metric: str) -> list[dict[str, float]]:
    """What a trial told Ray Tune."""
    return [{EPOCH: epoch.epoch, metric: epoch.metrics[metric]} for epoch in trial.history]
