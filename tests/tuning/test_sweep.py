"""Stage `tune` on a real Ray cluster, with toy models."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ConfigError
from lspm_ray.pipeline import Pipeline
from lspm_ray.settings import Settings
from lspm_ray.sweep import read_sweep, sweep, with_winner
from tests.toy_corpus import toy_rows
from tests.toys import toy_model_dir

pytestmark = pytest.mark.ray

RATE = {"finetune.learning_rate": {"choice": [2e-3, 1e-7]}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        toy_model_dir(root / f"model-{seed}", seed=seed)
    texts, labels = toy_rows(2400, seed=7)
    with (root / "reviews.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "verdict"])
        writer.writerows([text, ["bad", "good"][label]] for text, label in zip(texts, labels, strict=True))
    bag = {"method": "distill_bag", "buckets": 256, "train": {"epochs": 2, "learning_rate": 0.02}}
    return {
        "output": str(root / "run"),
        "model": {"name": str(root / "model-0")},
        "task": {"task": "text_classification", "max_length": 32},
        "data": {
            "source": str(root / "reviews.csv"),
            "text": "review",
            "label": "verdict",
            "near_duplicates": False,
            "splits": {"train": 0.35, "validation": 0.15, "selection": 0.15, "calibration": 0.2, "test": 0.15},
        },
        "finetune": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3, "precision": "fp32", "metric": "accuracy"},
        "compress": {"variants": {"bag": {"recipe": [bag]}}},
        "profile": {"rounds": 1, "cell_s": 0.02, "batch_sizes": [8], "resamples": 100},
        "select": {"alpha": 0.2, "min_saving": 0.0},
        "cluster": {"num_cpus": 2, "object_store_mb": 200},
    }


@pytest.fixture(scope="module")
def prepared(ray_cluster, toy) -> Path:
    """A store with the model and the data that every sweep begins with."""
    pipeline = Pipeline(Settings.parse(toy), ArtifactStore(toy["output"]), lambda _: None)
    assert pipeline.start.digest and pipeline.prepare.digest
    return Path(toy["output"])


@pytest.fixture
def output(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "run")


def run(toy: dict[str, Any], output: Path, **tune: Any):
    section = {"budget": {"trials": 2}, "finalists": 2, "seeds": 2, "searcher": "grid", "scheduler": "none"} | tune
    settings = Settings.parse(toy | {"output": str(output), "tune": section})
    lines: list[str] = []
    artifact = sweep(settings, ArtifactStore(str(output)), lines.append)
    return settings, artifact, read_sweep(artifact)


def stages(output: Path) -> list[str]:
    return sorted(artifact.manifest.stage for artifact in ArtifactStore(str(output)).artifacts())


def test_models_are_selected_with_their_settings(toy, output):
    other = toy["model"]["name"].replace("model-0", "model-1")
    space = {"model.name": {"choice": [toy["model"]["name"], other]}, **RATE}
    settings, artifact, found = run(toy, output, space=space, budget={"trials": 4})
    artifact.verify()
    assert {trial.status for trial in found.trials} == {"done"}
    assert len([trial for trial in found.trials if not trial.finalist]) == 4
    winner = found.winner
    assert winner is not None and winner.params["finetune.learning_rate"] == 2e-3
    assert len(winner.scores) == 2 and winner.mean.low <= winner.mean.value <= winner.mean.high
    assert [finalist.params["finetune.learning_rate"] for finalist in found.finalists].count(2e-3) == 2
    assert found.gap is not None and found.gap.test.low < found.gap.test.value < found.gap.test.high
    assert abs(found.gap.validation - winner.values["validation.accuracy"]) < 1e-9
    assert pq.read_table(artifact.path("trials.parquet")).num_rows == len(found.trials)
    assert b"--from-sweep" in artifact.read_bytes("report.html")

    # The winner is trained already, what lost is gone, and the same sweep is not run again.
    chosen = with_winner(settings, artifact)
    assert chosen.finetune.learning_rate == 2e-3 and chosen.tune is None
    lines: list[str] = []
    Pipeline(chosen, ArtifactStore(str(output)), lines.append).finetune  # noqa: B018
    assert lines == []
    assert stages(output).count("finetune") == 2 * (1 + 2)
    assert sweep(settings, ArtifactStore(str(output)), lines.append).digest == artifact.digest


def test_a_larger_budget_and_more_finalists_train_what_is_missing_or_was_removed(toy, output):
    space = {"finetune.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    _, _, first = run(toy, output, space=space, searcher="random", finalists=1, seeds=1)
    assert stages(output).count("finetune") == 2
    _, _, more = run(toy, output, space=space, searcher="random", finalists=3, seeds=1, budget={"trials": 3})
    assert (first.runs, more.runs) == (1, 2)
    assert len([trial for trial in more.trials if not trial.finalist]) == len(more.finalists) == 3
    assert stages(output).count("finetune") == 2 * 3
    lost = 1 - first.finalists[0].number
    assert [more.trial(t.number) for t in first.trials if t.number != lost] == [
        t for t in first.trials if t.number != lost
    ]
    once, again = first.trial(lost), more.trial(lost)
    assert (again.params, again.values) == (once.params, once.values) and again.ended > once.ended


def test_the_certified_cost_of_serving_decides_under_a_constraint(toy, output):
    (path,) = space = {"compress.variants.bag.recipe.0.embedding_size": {"choice": [4, 8]}}
    goals = {"certified.cost": "min", "validation.accuracy": "max"}
    limits = {
        "certified.accuracy_drop": {"max": 0.5},
        "profile.bag.size_mb": {"max": 1},
        "profile.full.p99_ms": {"max": 1e6},
    }
    _, _, found = run(toy, output, space=space, objectives=goals, constraints=limits, finalists=1, seeds=0)
    for trial in found.trials:
        assert 0 < trial.values["certified.cost"] <= 1.5
        assert trial.values["profile.bag.size_mb"] > 0 and trial.values["profile.full.p99_ms"] > 0
    sizes = {t.params[path]: t.values["profile.bag.size_mb"] for t in found.trials}
    assert sizes[4] < sizes[8]
    assert found.front and set(found.front) <= {0, 1}
    costs = {t.number: t.values["certified.cost"] for t in found.trials}
    assert found.winner is not None and costs[found.winner.number] == min(costs.values())
    assert found.winner.scores == [min(costs.values())]
    # The loser shares the winner's full model, and does not take it with it.
    assert stages(output).count("finetune") == 1 and stages(output).count("variant") >= 1


def test_trials_with_workers_of_their_own_of_which_none_keeps_the_constraints(toy, output):
    workers = {"num_workers": 2, "cpus_per_worker": 0.5}
    toy = toy | {"finetune": toy["finetune"] | {"workers": workers, "epochs": 2}}
    settings, artifact, found = run(toy, output, space=RATE, constraints={"validation.loss": {"max": 1e-9}})
    assert [trial.status for trial in found.trials] == ["done", "done"]
    reached = {t.params["finetune.learning_rate"]: t.values["validation.accuracy"] for t in found.trials}
    assert reached[2e-3] > reached[1e-7]
    assert found.winner is None and found.gap is None and not found.front
    with pytest.raises(ConfigError, match=r"tune\.constraints: the sweep has no winner.*validation\.loss"):
        with_winner(settings, artifact)


def test_members_of_a_population_are_trained_and_the_best_points_again(toy, output):
    space = {"finetune.learning_rate": {"choice": [1e-7, 1e-6, 2e-3]}}
    toy = toy | {"finetune": toy["finetune"] | {"patience": 3, "schedule": "constant"}}
    pbt = {"scheduler": "pbt", "share": 0.5, "resample": 0.0}
    _, _, found = run(toy, output, space=space, scheduler=pbt, budget={"trials": 3}, finalists=1, seeds=1)
    members = [trial for trial in found.trials if not trial.finalist]
    assert [trial.status for trial in members] == ["done"] * 3
    # Who takes over another's weights skips the epochs in between.
    assert all(trial.history[-1].epoch == 3 for trial in members)
    assert all(trial.params["finetune.learning_rate"] in space["finetune.learning_rate"]["choice"] for trial in members)
    assert found.winner is not None and found.winner.number in range(3) and len(found.winner.scores) == 1
    assert stages(output).count("finetune") == 1
