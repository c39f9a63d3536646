import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searcher import Searcher, propose
from lspm_ray.tuning.space import Domain, Space

GOALS = Goals(objectives={"validation.loss": "min"})
SEARCHERS = ["random", "grid", {"searcher": "tpe", "random_trials": 3}]


def space(**domains):
    return Space({path.replace("__", "."): Domain.parse(domain) for path, domain in domains.items()})


FINITE = space(
    f__a={"choice": [[1, 2], {"k": None}, "x"]},
    f__b={"randint": [1, 3], "when": {"f.a": "x"}},
    f__c={"grid": [True, False]},
)
MIXED = space(
    f__a={"choice": ["x", "y"]}, f__b={"loguniform": [1e-4, 1], "when": {"f.a": "x"}}, f__c={"randint": [1, 9]}
)


def ended(number, params, **changes):
    told = {"status": "done", "values": {"validation.loss": float(number % 5)}}
    return Trial(number=number, params=params, seed=0, **(told | changes))


def run(searcher, space, count, trials=(), seed=0):
    """Trials, one after another, until none is left."""
    trials = list(trials)
    while len(trials) < count:
        params = propose(Searcher.make(searcher), space, GOALS, trials, len(trials), seed)
        if params is None:
            return trials
        trials.append(ended(len(trials), params))
    return trials


def texts(trials):
    return [json.dumps(trial.params, sort_keys=True) for trial in trials]


@pytest.mark.parametrize("searcher", SEARCHERS, ids=str)
def test_a_finite_space_is_exhausted_and_no_point_comes_twice(searcher):
    found = run(searcher, FINITE, 100)
    assert len(found) == 10
    assert set(texts(found)) == {json.dumps(point, sort_keys=True) for point in FINITE.points()}


@pytest.mark.parametrize("searcher", SEARCHERS, ids=str)
def test_points_that_were_written_down_count_as_tried(searcher):
    found = [Trial.parse(json.loads(trial.model_dump_json())) for trial in run(searcher, FINITE, 9)]
    (last,) = run(searcher, FINITE, 100, found)[9:]
    assert json.dumps(last.params, sort_keys=True) not in texts(found)


@pytest.mark.parametrize("searcher", ["random", {"searcher": "tpe", "random_trials": 3}], ids=str)
def test_no_point_of_an_infinite_space_comes_twice(searcher):
    """Half of them by chance have only one point: after it the others come."""
    found = texts(run(searcher, space(f__a={"choice": ["x", "y"]}, f__b={"uniform": [0, 1], "when": {"f.a": "x"}}), 12))
    assert len(set(found)) == 12
    settled = space(f__a={"grid": ["x", "y"]}, f__b={"uniform": [0, 1], "when": {"f.a": "x"}})
    assert len(set(texts(run(searcher, settled, 12)))) == 12


@pytest.mark.parametrize("searcher", SEARCHERS, ids=str)
def test_a_point_follows_from_seed_number_and_trials_alone(searcher):
    where = FINITE if searcher == "grid" else MIXED
    trials = run(searcher, where, 6)
    first, again = (propose(Searcher.make(searcher), where, GOALS, trials, 6, 0) for _ in range(2))
    assert first == again
    if searcher != "grid":
        assert first != propose(Searcher.make(searcher), where, GOALS, trials, 6, 1)
        assert first != propose(Searcher.make(searcher), where, GOALS, trials, 7, 0)


@settings(max_examples=20)
@given(st.integers(0, 12), st.integers(0, 2**32))
def test_random_search_goes_on_as_if_it_had_not_been_killed(killed_after, seed):
    whole = texts(run("random", MIXED, 12, seed=seed))
    again = [Trial.parse(json.loads(t.model_dump_json())) for t in run("random", MIXED, killed_after, seed=seed)]
    assert texts(run("random", MIXED, 12, again, seed=seed)) == whole


@pytest.mark.parametrize("searcher", ["random", {"searcher": "tpe", "random_trials": 3}], ids=str)
def test_combinations_of_grids_come_equally_often(searcher):
    where = space(f__a={"grid": [1, 2]}, f__b={"uniform": [0, 1]}, f__c={"grid": ["x", "y", "z"], "when": {"f.a": 1}})
    trials = run(searcher, where, 7)
    # Numbers of finalists' repetitions lie in between when a sweep is made larger.
    for number in range(12, 17):
        trials.append(ended(number, propose(Searcher.make(searcher), where, GOALS, trials, number, 0)))
    came = Counter((trial.params["f.a"], trial.params.get("f.c")) for trial in trials)
    assert came == {(1, "x"): 3, (1, "y"): 3, (1, "z"): 3, (2, None): 3}
