"""Every point of a finite space."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searcher import Searcher
from lspm_ray.tuning.space import Params, Space


class Grid(Searcher):
    """Every point once, in the order of the fields, the last one changing first."""

    exhaustive: ClassVar[bool] = True

    def check(self, space: Space, goals: Goals) -> None:
        """Every field must have finitely many values."""
        next(space.points(), None)

    def suggest(
        self, space: Space, goals: Goals, trials: Sequence[Trial], fixed: Params, random: np.random.Generator
    ) -> Params:
        """The first point that was not tried; the last point when all were."""
        tried = [trial.params for trial in trials]
        point: Params = {}
        for point in space.points():
            if point not in tried:
                return point
        return point
