"""The contract of a searcher: which point to try next."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lspm_ray.plugin import Plugin
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Domain, Params, Space, Suggest

_ATTEMPTS = 32
_MOST_LISTED = 100_000


class Searcher(Plugin):
    """A way to search. It has no state: what it suggests follows from the trials before, so nothing can be lost.

    Class attributes:
        exhaustive: it tries every point of a finite space, in an order of its own.
    """

    package: ClassVar[str] = "lspm_ray.tuning.searchers"
    kind: ClassVar[str] = "searcher"
    exhaustive: ClassVar[bool] = False

    def check(self, space: Space, goals: Goals) -> None:
        """Refuse a space or goals that it cannot work with.

        Raises:
            ConfigError: says which field, or what is missing.
        """

    @abstractmethod
    def suggest(
        self, space: Space, goals: Goals, trials: Sequence[Trial], fixed: Params, random: np.random.Generator
    ) -> Params:
        """The next point.

        Args:
            space: to search.
            goals: what makes a point good.
            trials: all so far, those that still run included, without finalists' repetitions.
            fixed: values of fields that are settled already.
            random: the only source of chance.
        """


def propose(
    searcher: Searcher, space: Space, goals: Goals, trials: Sequence[Trial], number: int, seed: int
) -> Params | None:
    """The point of trial `number`, which no trial had before; None when every point was tried.

    Args:
        searcher: decides.
        space: to search.
        goals: what makes a point good.
        trials: all so far, without finalists' repetitions.
        number: of the new trial. Chance depends on it and on `seed` alone: a sweep that was killed goes on as it would
            have without.
        seed: of the sweep.
    """
    known = {_key(trial.params) for trial in trials}
    grids = [{}] if searcher.exhaustive else list(space.grids())
    for attempt in range(_ATTEMPTS):
        random = np.random.default_rng([seed, number, attempt])
        # Finalists' repetitions have numbers too: counting by numbers would leave combinations out.
        params = searcher.suggest(space, goals, trials, grids[len(trials) % len(grids)], random)
        if _key(params) not in known:
            return params
    listed = itertools.islice(space.combinations(random), _MOST_LISTED)
    return next((point for point in listed if _key(point) not in known), None)


def _key(params: Params) -> str:
    return repr(sorted(params.items()))


def settled(fixed: Params, suggest: Suggest) -> Suggest:
    """`suggest`, but for fields whose value is settled."""

    def choose(path: str, domain: Domain) -> object:
        return fixed[path] if path in fixed else suggest(path, domain)

    return choose
