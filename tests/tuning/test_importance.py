import numpy as np
import pytest

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.importance import importance
from lspm_ray.tuning.records import Epoch, Trial
from lspm_ray.tuning.space import Domain, Space

LOSS = Goals(objectives={"validation.loss": "min"})
SPACE = Space(
    {
        "f.little": Domain(uniform=(0, 1)),
        "f.much": Domain(loguniform=(1e-6, 1)),
        "f.list": Domain(choice=[["a"], {"k": 1}]),
        "f.one": Domain(choice=["x"]),
    }
)


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setattr("lspm_ray.tuning.importance._TREES", 6)


def loss(params):
    return float(np.log10(params["f.much"]) + 0.3 * params["f.little"])


def trials(count, evaluate=loss, space=SPACE, name="validation.loss"):
    random = np.random.default_rng(0)
    return [
        Trial(number=n, params=params, seed=0, status="done", values={name: float(evaluate(params))})
        for n, params in enumerate(space.draw(random) for _ in range(count))
    ]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_matters_comes_first(mode):
    found = importance(trials(30), SPACE, Goals(objectives={"validation.loss": mode}), "loss")
    assert next(iter(found)) == "f.much"
    assert found["f.much"].share > 0.9  # 0.997: six decades have a variance of 3, the other term one of 0.0075
    assert found["f.one"].share == found["f.one"].by_chance == 0
    shares = [one.share for one in found.values()]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert found == importance(trials(30), SPACE, Goals(objectives={"validation.loss": mode}), "loss")


def test_options_matter_too():
    found = importance(trials(30, lambda params: params["f.list"] == {"k": 1}), SPACE, LOSS, "loss")
    assert found["f.list"].share > 0.9


def test_only_what_is_more_than_chance_is_real():
    found = importance(trials(30), SPACE, LOSS, "loss")
    assert [path for path, one in found.items() if one.real] == ["f.much"]
    real = []
    for seed in range(4):
        noise = np.random.default_rng(seed)
        told = trials(12, lambda _, random=noise: random.normal())
        real += [path for path, one in importance(told, SPACE, LOSS, "loss").items() if one.real]
    assert len(real) <= 2  # of 12, at one in twenty


def test_of_very_many_trials_some_are_enough(monkeypatch):
    monkeypatch.setattr("lspm_ray.tuning.importance._MOST", 20)
    many = trials(60)
    assert importance(many, SPACE, LOSS, "loss") == importance(many[::3], SPACE, LOSS, "loss")


def test_too_few_trials_or_equal_outcomes_tell_nothing():
    assert importance([], SPACE, LOSS, "loss") == {}
    assert importance(trials(7), SPACE, LOSS, "loss") == {}
    assert importance(trials(8), SPACE, LOSS, "loss") != {}
    assert importance(trials(30, lambda _: 1.0), SPACE, LOSS, "loss") == {}


def test_fields_that_do_not_always_count_are_left_out():
    space = Space(
        {
            "f.a": Domain(choice=["x", "y"]),
            "f.b": Domain(uniform=(0, 1), when={"f.a": "x"}),
            "f.c": Domain(uniform=(0, 1)),
        }
    )
    found = importance(trials(30, lambda p: (p["f.a"] == "x") + p.get("f.b", 0), space), space, LOSS, "loss")
    assert set(found) == {"f.a", "f.c"}
    assert next(iter(found)) == "f.a"


@pytest.mark.parametrize(
    "space",
    [
        {"f.one": Domain(choice=["x"])},
        {"f.a": Domain(choice=["x", "y"])},
        {"f.one": Domain(choice=["x"]), "f.a": Domain(choice=["x", "y"], when={"f.one": "x"})},
    ],
    ids=["one value", "only one was tried", "neither"],
)
def test_fields_that_were_the_same_in_all_trials_explain_nothing(space):
    params = dict.fromkeys(space, "x")
    told = [Trial(number=n, params=params, seed=n, status="done", values={"validation.loss": n}) for n in range(10)]
    assert importance(told, Space(space), LOSS, "loss") == {}


def test_stopped_trials_count_with_their_best_where_the_objective_is_what_they_were_stopped_by():
    def stop(trial):
        worse = [
            Epoch(epoch=n, metrics={"loss": trial.values["validation.loss"] + n % 2}, seconds=0) for n in (1, 2, 3)
        ]
        return trial.model_copy(update={"status": "stopped", "values": {}, "history": worse})

    done = trials(30)
    stopped = [stop(trial) if trial.number % 2 else trial for trial in done]
    assert importance(stopped, SPACE, LOSS, "loss") == importance(done, SPACE, LOSS, "loss")
    cost = Goals(objectives={"certified.cost": "min"})
    costs = trials(30, name="certified.cost")
    few = [trial if trial.number < 7 else trial.model_copy(update=dict(stop(done[0]))) for trial in costs]
    assert importance(few, SPACE, cost, "loss") == {}
    silent = Trial(number=99, params=done[0].params, seed=0, status="stopped")
    failed = Trial(number=98, params=done[0].params, seed=0, status="failed")
    running = Trial(number=97, params=done[0].params, seed=0)
    assert importance([*done, silent, failed, running], SPACE, LOSS, "loss") == importance(done, SPACE, LOSS, "loss")
