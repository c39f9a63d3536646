"""The arithmetic of benchmarks/tuning.py."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from lspm_ray.settings import Settings
from lspm_ray.tuning.records import Epoch, Trial
from tests.benchmarks import imported


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with imported("tuning") as module:
        yield module


def trial(number: int, scores: list[float], began: float, finalist: bool = False) -> Trial:
    epochs = [
        Epoch(epoch=n, metrics={"balanced_accuracy": score}, seconds=began + n) for n, score in enumerate(scores, 1)
    ]
    ended = began + len(scores) + 1
    return Trial(number=number, params={}, seed=0, finalist=finalist, history=epochs, began=began, ended=ended)


def test_epochs_count_in_the_order_of_time(benchmark):
    trials = [trial(0, [0.5, 0.6], 0), trial(1, [0.7, 0.8], 0.5), trial(2, [0.99], 0, finalist=True)]
    reached = {"exactly": 2, "within_half_a_point": 2}
    assert benchmark.path_to(trials, 0.7) == {"reached": reached, "epochs": 4, "best": 0.8}
    assert benchmark.path_to(trials, 0.704)["reached"] == {"exactly": 4, "within_half_a_point": 2}
    assert benchmark.path_to(trials, 0.9)["reached"] == dict.fromkeys(reached)


def test_overhead_is_what_is_not_training(benchmark):
    found = SimpleNamespace(trials=[trial(0, [0.5] * 3, 0), trial(1, [0.5] * 3, 6)])
    made = [SimpleNamespace(manifest=SimpleNamespace(stage="finetune", summary={"seconds": [1.0, 1.0, 1.0]}))] * 2
    shares = benchmark.overhead(found, SimpleNamespace(artifacts=lambda: made), slots=1)
    assert shares == {"between_trials": pytest.approx(0.2), "within_trials": pytest.approx(0.25), "trials": 2}


def test_a_seed_that_never_reached_the_target_counts_as_worst(benchmark):
    def sweeps(*reached):
        return [{"reached": dict.fromkeys(benchmark.TOLERANCES, value), "epochs": 10} for value in reached]

    found = benchmark.conclude({"grid": sweeps(5), "random": sweeps(None, 2, None), "ours": sweeps(1, 2, None)})
    for shares in found["share_of_the_grids_epochs"].values():
        assert shares["grid"]["median"] == 0.5
        assert shares["random"] == {"per_seed": [None, 0.2, None], "median": None}
        assert shares["ours"]["median"] == 0.2
    assert found["all_epochs_as_a_share"] == {"grid": 1, "random": 1, "ours": 1}


def test_every_contender_is_a_valid_sweep_of_as_many_trials(benchmark, tmp_path):
    made = benchmark.contenders(24, range(2))
    assert [name for name, _, _ in made] == ["grid", "random", "ours", "random", "ours"]
    for _, _, tune in made:
        settings = benchmark.settings_of(tmp_path, 100, 3, tune)
        assert isinstance(settings, Settings) and settings.tune.budget.trials == 24
