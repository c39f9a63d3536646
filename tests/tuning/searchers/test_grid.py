import numpy as np
import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searcher import Searcher, propose
from lspm_ray.tuning.space import Domain, Space

GOALS = Goals(objectives={"validation.loss": "min"})


def test_every_point_comes_once_in_order_whatever_became_of_the_others():
    space = Space(
        {"f.a": Domain(choice=[1, 2]), "f.b": Domain(grid=["x", "y"], when={"f.a": 1}), "f.c": Domain(randint=(3, 4))}
    )
    trials = []
    for number, status in enumerate(["done", "failed", "running", "stopped", "running", "done"]):
        values = {"validation.loss": 1.0} if status == "done" else {}
        params = propose(Searcher.make("grid"), space, GOALS, trials, number, 0)
        trials.append(Trial(number=number, params=params, seed=0, status=status, values=values))
    assert [tuple(trial.params.values()) for trial in trials] == [
        (1, 3, "x"),
        (1, 3, "y"),
        (1, 4, "x"),
        (1, 4, "y"),
        (2, 3),
        (2, 4),
    ]
    assert propose(Searcher.make("grid"), space, GOALS, trials, 6, 0) is None
    first = Searcher.make("grid").suggest(space, GOALS, trials[:3], {}, np.random.default_rng(0))
    assert first == trials[3].params


def test_a_field_with_infinitely_many_values_is_refused():
    space = Space({"f.a": Domain(choice=[1]), "f.b": Domain(uniform=(0, 1))})
    with pytest.raises(ConfigError, match=r"tune\.space\.f\.b: uniform has infinitely many values"):
        Searcher.make("grid").check(space, GOALS)
    Searcher.make("random").check(space, GOALS)
