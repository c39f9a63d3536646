"""Random search (Bergstra and Bengio 2012)."""

from collections.abc import Sequence

import numpy as np

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searcher import Searcher, settled
from lspm_ray.tuning.space import Params, Space


class Random(Searcher):
    """Points at random, each field by itself."""

    def suggest(
        self, space: Space, goals: Goals, trials: Sequence[Trial], fixed: Params, random: np.random.Generator
    ) -> Params:
        """A random point."""
        return space.sample(settled(fixed, lambda _, domain: domain.draw(random)))
