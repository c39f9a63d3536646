"""Every trial runs to its end."""

from collections.abc import Sequence
from typing import Any

from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.scheduler import Scheduler
from lspm_ray.tuning.space import Space


class NoScheduler(Scheduler):
    """First come, first served."""

    def build(self, metric: str, mode: str, trials: Sequence[Trial], space: Space) -> Any:
        """Ray Tune's default."""
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()
