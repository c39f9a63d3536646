"""The contract of a scheduler: which trials are not worth going on with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from lspm_ray.plugin import Plugin
from lspm_ray.tuning.records import Trial

EPOCH = "epoch"
"""What a trial's result calls the number of its epoch."""


class Scheduler(Plugin):
    """A way to stop trials early, by the quality on validation after each epoch."""

    package: ClassVar[str] = "lspm_ray.tuning.schedulers"
    kind: ClassVar[str] = "scheduler"

    def check(self, epochs: int) -> None:
        """Refuse settings that do nothing for trials of that many epochs.

        Raises:
            ConfigError: names the field.
        """

    @abstractmethod
    def build(self, metric: str, mode: str, trials: Sequence[Trial]) -> Any:
        """Ray Tune's scheduler, as if it had seen `trials` (those of earlier runs of the sweep, which are over).

        Args:
            metric: name of the quality.
            mode: `max` or `min`.
            trials: without finalists' repetitions.
        """


def results(trial: Trial, metric: str) -> list[dict[str, float]]:
    """What a trial told Ray Tune."""
    return [{EPOCH: epoch.epoch, metric: epoch.metrics[metric]} for epoch in trial.history]
