"""The loop on a toy model: it learns, resumes exactly, stops early."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ArtifactError
from lspm_ray.training import loop
from lspm_ray.training.config import TrainConfig
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.trainer import file_chunks, fit_here
from tests.toys import LABELS, toy_model_artifact

ROWS = 96


class KilledError(Exception):
    pass


def shards(tmp_path, name, rows, parts, seed):
    random = np.random.default_rng(seed)
    files = []
    for number, share in enumerate(np.array_split(np.arange(rows), parts)):
        labels = random.integers(0, 2, len(share))
        # The label shows in the third token, so there is something to learn.
        ids = [[2, 40 + int(y), *random.integers(5, 30, random.integers(2, 12)), 3] for y in labels]
        file = tmp_path / f"{name}-{number}.parquet"
        table = pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "label": pa.array(labels, pa.int64())})
        pq.write_table(table, file)
        files.append(str(file))
    return files


@pytest.fixture
def job(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))

    def make(work, kind="bert", **config):
        settings = {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "precision": "fp32",
            "checkpoint_every_steps": 3,
        }
        return TrainJob(
            model_uri=toy_model_artifact(store, f"toy-{kind}", kind).uri,
            labels=list(LABELS),
            task={"task": "text_classification"},
            train_files=shards(tmp_path, "train", ROWS, 3, seed=0),
            validation_files=shards(tmp_path, "validation", 40, 1, seed=1),
            train_rows=ROWS,
            class_counts=[ROWS // 2, ROWS // 2],
            config=TrainConfig.parse(settings | config),
            work_uri=str(tmp_path / work),
        )

    return make


def train(job):
    lines = []
    best, history = fit_here(job, threads=1, report=lines.append)
    weights = {name: tensor.numpy() for name, tensor in load_file(best.local() / "model.safetensors").items()}
    return weights, history, lines


def test_it_learns(job):
    _, history, lines = train(job("a", kind="bag", epochs=4, learning_rate=0.05))
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["accuracy"] > 0.9
    assert any("epoch 1/4 done" in line for line in lines)


def without_time(history):
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]


@pytest.mark.parametrize("kill_at", [1, 4, 7, 13, 20, 25])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(job, monkeypatch, kill_at, accumulation):
    settings = {"gradient_accumulation": accumulation, "patience": 9}
    expected, history, _ = train(job("whole", **settings))
    step = loop._Run._step
    calls = []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == kill_at:
            raise KilledError
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", dying)
        with pytest.raises(KilledError):
            train(job("broken", **settings))
    resumed, again, _ = train(job("broken", **settings))
    assert without_time(again) == without_time(history)
    assert all(np.array_equal(resumed[name], expected[name]) for name in expected)


def one_of_two(job):
    """A worker with two of the three files, as if another one had the rest."""
    return loop.Worker(
        rank=0,
        world_size=2,
        device=torch.device("cpu"),
        train_chunks=lambda rows: file_chunks(job.train_files[:2], ["input_ids", "label"], rows),
        validation_chunks=lambda rows: iter(()),
        prepare=lambda model: model,
        gather=lambda array: array,
        report=lambda values: None,
    )


def test_more_workers_make_the_same_steps(job):
    begun = job("a", batch_size=8)
    run = loop._Run(begun, one_of_two(begun))
    assert (run.batch_size, run._epoch_batches(), run._steps()) == (4, ROWS // 8, 3 * ROWS // 8)


def test_resumed_with_another_number_of_workers_says_so(job, monkeypatch):
    begun = job("a")

    def die(_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_validate", die)
        with pytest.raises(KilledError):
            loop.train(begun, one_of_two(begun))
    _, history, lines = train(begun)
    assert len(history) == 3
    assert any("resumed with 1 workers instead of 2" in line for line in lines)


def test_running_a_finished_job_again_changes_nothing(job):
    first, history, _ = train(job("a", epochs=1))
    again, same, lines = train(job("a", epochs=1))
    assert same == history and lines == []
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_stops_when_validation_no_longer_improves(job):
    _, history, _ = train(job("a", epochs=20, learning_rate=1e-9, patience=2))
    assert len(history) == 3


def test_all_checkpoints_damaged_is_an_error(job, tmp_path):
    train(job("a", epochs=1))
    for file in (tmp_path / "a").glob("step-*/state.json"):
        file.write_text("{}")
    with pytest.raises(ArtifactError, match="all checkpoints are damaged"):
        train(job("a", epochs=2))


def test_loss_on_validation_can_decide(job):
    _, history, _ = train(job("a", metric="loss"))
    assert min(h["loss"] for h in history) < history[0]["loss"]


@pytest.mark.parametrize("rows", [1, 7, 32, 200])
def test_file_chunks_are_even_and_in_order(tmp_path, rows):
    files = shards(tmp_path, "x", 50, 3, seed=3)
    tables = list(file_chunks(files, ["input_ids", "label"], rows))
    assert [t.num_rows for t in tables[:-1]] == [rows] * (len(tables) - 1)
    together = pa.concat_tables(tables)
    assert together.equals(pa.concat_tables([pq.read_table(f) for f in files]).cast(together.schema))
