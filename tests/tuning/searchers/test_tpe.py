import json

import numpy as np
import pytest

from lspm_ray.tuning.goals import Goals, Limit
from lspm_ray.tuning.records import Epoch, Trial
from lspm_ray.tuning.searcher import Searcher, propose
from lspm_ray.tuning.space import Domain, Space

LOSS = Goals(objectives={"validation.loss": "min"})
LINE = Space({"f.x": Domain(uniform=(0, 1))})


def tpe(random_trials=8):
    return Searcher.make({"searcher": "tpe", "random_trials": random_trials})


def done(number, params, **values):
    named = {name.replace("__", "."): float(value) for name, value in values.items()}
    return Trial(number=number, params=params, seed=0, status="done", values=named)


def search(searcher, space, goals, evaluate, count, seed):
    trials = []
    for number in range(count):
        params = propose(searcher, space, goals, trials, number, seed)
        trials.append(done(number, params, **evaluate(params)))
    return trials


def test_it_finds_better_points_than_random_search():
    def miss(searcher, seed):
        found = search(searcher, LINE, LOSS, lambda params: {"validation__loss": (params["f.x"] - 0.7) ** 2}, 30, seed)
        return min(abs(trial.params["f.x"] - 0.7) for trial in found)

    ours, random = (np.mean([miss(Searcher.make(name), seed) for seed in range(6)]) for name in ("tpe", "random"))
    assert ours < random / 2


def test_it_prefers_what_was_good_whatever_kind_the_field_has():
    space = Space(
        {
            "f.list": Domain(choice=[["a"], ["a", "b"], []]),
            "f.map": Domain(choice=[{"k": 1}, {"k": 2}, "none"]),
            "f.int": Domain(randint=(1, 100)),
            "f.log": Domain(loguniform=(1e-6, 1)),
            "f.one": Domain(choice=[None]),
        }
    )

    def evaluate(params):
        wrong = (params["f.list"] != ["a", "b"]) + (params["f.map"] != {"k": 2})
        return {"validation__loss": wrong + abs(params["f.int"] - 80) / 100 + abs(np.log10(params["f.log"]) + 3) / 6}

    found = search(tpe(), space, LOSS, evaluate, 40, 0)
    json.dumps([trial.params for trial in found])
    last = [trial.params for trial in found[-15:]]
    assert np.mean([params["f.list"] == ["a", "b"] for params in last]) > 0.7
    assert np.mean([params["f.map"] == {"k": 2} for params in last]) > 0.7
    assert np.mean([abs(params["f.int"] - 80) < 20 for params in last]) > 0.6
    assert np.mean([abs(np.log10(params["f.log"]) + 3) < 1.5 for params in last]) > 0.6


def test_conditions_are_learnt_from_too():
    space = Space(
        {
            "f.b": Domain(uniform=(0, 1), when={"f.a": "x"}),
            "f.c": Domain(uniform=(0, 1), when={"f.a": "y"}),
            "f.a": Domain(choice=["x", "y"]),
        }
    )

    def evaluate(params):
        return {"validation__loss": 1 - params["f.b"] if params["f.a"] == "x" else 2 - params["f.c"]}

    last = [trial.params for trial in search(tpe(), space, LOSS, evaluate, 30, 0)[-10:]]
    assert all(("f.b" in params) == (params["f.a"] == "x") != ("f.c" in params) for params in last)
    assert np.mean([params.get("f.b", 0) > 0.7 for params in last]) > 0.6


def history(*losses):
    return [Epoch(epoch=n + 1, metrics={"loss": loss, "accuracy": 0.5}, seconds=0.0) for n, loss in enumerate(losses)]


def proposals(trials, goals=LOSS, space=LINE, random_trials=4, count=24):
    """What would be tried next, for many seeds."""
    return np.array(
        [propose(tpe(random_trials), space, goals, trials, len(trials), seed)["f.x"] for seed in range(count)]
    )


def stopped(number, x, *losses):
    return Trial(number=number, params={"f.x": x}, seed=0, status="stopped", history=history(*losses))


def test_stopped_trials_are_bad_and_the_earlier_the_worse():
    good = [done(n, {"f.x": 0.8 + n / 100}, validation__loss=1.0) for n in range(4)]
    bad = [stopped(n, 0.2 + n / 100, 0.1) for n in range(4, 12)]
    assert np.median(proposals(good + bad)) > 0.6
    late = [stopped(n, 0.8 + n / 100, 5.0, 5.0, 5.0) for n in range(4)]
    assert np.median(proposals(late + bad)) > 0.6
    # Of those stopped after the same epoch the loss decides.
    low = [stopped(n, 0.8 + n / 100, 0.01) for n in range(4)]
    assert np.median(proposals(low + bad)) > 0.6


@pytest.mark.parametrize(
    "trial",
    [
        Trial(number=9, params={"f.x": 0.5}, seed=0),
        Trial(number=9, params={"f.x": 0.5}, seed=0, history=history(0.1)),
        Trial(number=9, params={"f.x": 0.5}, seed=0, status="failed", reason="died"),
        Trial(number=9, params={"f.x": 0.5}, seed=0, status="stopped", reason="no time"),
        stopped(9, 0.5, 0.3, 0.2),
    ],
    ids=["running", "running, has reported", "failed", "stopped before an epoch", "stopped"],
)
@pytest.mark.parametrize("count", [0, 8], ids=["first", "later"])
@pytest.mark.parametrize(
    "goals",
    [
        LOSS,
        Goals(objectives={"validation.loss": "min", "validation.accuracy": "max"}),
        Goals(objectives={"validation.loss": "min"}, constraints={"validation.accuracy": Limit(min=0.5)}),
    ],
    ids=["one", "two", "constrained"],
)
def test_trials_without_values_do_no_harm(trial, count, goals):
    trials = [done(n, {"f.x": n / 10}, validation__loss=n, validation__accuracy=0.4 + n / 20) for n in range(count)]
    found = propose(tpe(3), LINE, goals, [*trials, trial], 10, 0)
    assert 0 <= found["f.x"] <= 1


def test_it_keeps_away_from_what_runs():
    good = [done(n, {"f.x": x}, validation__loss=abs(x - 0.5)) for n, x in enumerate(np.linspace(0.05, 0.95, 10))]
    running = [Trial(number=10 + n, params={"f.x": 0.5 + n / 1000}, seed=0) for n in range(10)]
    alone, beside = (np.mean(np.abs(proposals(trials) - 0.5) < 0.03) for trials in (good, good + running))
    assert beside < alone


def test_of_several_objectives_each_counts():
    """What is good in one is bad in the other, and above 0.5 both are bad."""
    goals = Goals(objectives={"validation.loss": "min", "profile.full.size_mb": "min"})

    def evaluate(params):
        x = params["f.x"]
        return {"validation__loss": x + 9 * (x > 0.5), "profile__full__size_mb": 0.5 - x + 9 * (x > 0.5)}

    last = [t.params["f.x"] for seed in range(3) for t in search(tpe(), LINE, goals, evaluate, 40, seed)[-20:]]
    assert np.mean(np.array(last) < 0.5) > 0.65
    for low in (0.0, 0.25):  # all along the front
        assert np.mean((np.array(last) > low) & (np.array(last) < low + 0.25)) > 0.2


def test_points_that_keep_the_constraints_are_preferred():
    """The lower the better, but it must stay above 0.6."""
    goals = Goals(objectives={"validation.loss": "min"}, constraints={"certified.cost": Limit(max=0.4)})
    trials = [
        done(n, {"f.x": x}, validation__loss=x, certified__cost=1 - x)
        for n, x in enumerate(np.linspace(0.02, 0.98, 20))
    ]
    assert np.mean(proposals(trials, goals) > 0.5) > 0.7
    assert np.mean(proposals(trials, LOSS) < 0.5) > 0.7
