"""The loop on a toy model: it learns, resumes exactly, stops early."""

import functools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from lspm_ray.artifact import ArtifactStore, open_artifact
from lspm_ray.errors import ArtifactError, ModelError
from lspm_ray.models.directory import load_model
from lspm_ray.training import loop
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.config import TrainConfig
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.reparametrizations.sparsity import Sparsity
from lspm_ray.training.trainer import file_chunks, fit_here
from tests.toys import LABELS, toy_model, toy_model_artifact

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


def jobs_in(folder):
    """Makes jobs that differ in nothing but what is said, wherever their folder is."""
    store = ArtifactStore(str(folder / "store"))

    def make(work, kind="bert", reparametrization=None, **config):
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
            train_files=shards(folder, "train", ROWS, 3, seed=0),
            validation_files=shards(folder, "validation", 40, 1, seed=1),
            train_rows=ROWS,
            class_counts=[ROWS // 2, ROWS // 2],
            config=TrainConfig.parse(settings | config),
            reparametrization=reparametrization,
            work_uri=str(folder / work),
        )

    return make


@pytest.fixture
def job(tmp_path):
    return jobs_in(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Steps that gradients are accumulated over -> weights and history of a run that nobody kills, made once."""
    jobs = jobs_in(tmp_path_factory.mktemp("whole"))
    return functools.cache(
        lambda accumulation: train(jobs(f"whole-{accumulation}", gradient_accumulation=accumulation, patience=9))[:2]
    )


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


def test_an_lstm_learns(job):
    _, history, _ = train(job("a", kind="lstm", epochs=6, learning_rate=0.03))
    assert history[-1]["accuracy"] > 0.9


def start_of(job):
    return load_file(open_artifact(job.model_uri).local() / "model.safetensors")


def test_frozen_layers_are_bit_equal_after_training(job):
    begun = job("a", epochs=1, frozen_layers=1)
    weights, _, _ = train(begun)
    moved = {name for name, tensor in start_of(begun).items() if not np.array_equal(weights[name], tensor.numpy())}
    assert moved and not any(name.startswith(("bert.embeddings.", "bert.encoder.layer.0.")) for name in moved)
    assert any(name.startswith("bert.encoder.layer.1.") for name in moved) and "classifier.weight" in moved


def test_frozen_layers_have_no_optimizer_state_and_resume_exactly(job, tmp_path, monkeypatch):
    expected, history, _ = train(job("whole", frozen_layers=1))
    begun, run = job("broken", frozen_layers=1), None
    validate = loop._Run._validate

    def die_in_the_second(self):
        if self.state.epoch == 1:
            raise KilledError
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_validate", die_in_the_second)
        with pytest.raises(KilledError):
            train(begun)
    newest = max((tmp_path / "broken").glob("step-*"), key=lambda step: int(step.name.split("-")[1]))
    states = {name.split(".")[1] for name in load_file(newest / "tensors.safetensors") if name.startswith("optimizer.")}
    run = loop._Run(begun, one_of_two(begun))
    assert len(states) == sum(p.requires_grad for p in run.model.parameters()) < len(list(run.model.parameters()))
    resumed, again, _ = train(begun)
    assert without_time(again) == without_time(history)
    assert all(np.array_equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["bert", "lstm"])
def test_dropout_counts_in_training_alone(job, kind):
    without, other, own = (job(f"d{value}", kind=kind, epochs=1, dropout=value) for value in (0.0, 0.6, None))
    runs = {name: train(begun) for name, begun in (("without", without), ("other", other), ("own", own))}
    losses = {name: history[0]["train_loss"] for name, (_, history, _) in runs.items()}
    assert len(set(losses.values())) == 3
    saved = open_artifact(without.model_uri).local() / "config.json"
    for begun in (without, other):
        made = json.loads((CheckpointStore(begun.work_uri).best().local() / "config.json").read_text())
        kept = {name: value for name, value in json.loads(saved.read_text()).items() if "drop" in name}
        assert kept and kept.items() <= made.items()


def test_evaluation_is_without_dropout(job):
    begun = job("a", dropout=0.9)
    run = loop._Run(begun, one_of_two(begun))
    assert {m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.9}
    run.model.eval()
    plain = load_model(open_artifact(begun.model_uri).local(), list(LABELS)).eval()
    ids = torch.tensor([[2, 40, 41, 3]])
    assert torch.equal(run.model(ids).logits, plain(ids).logits)


def test_too_many_frozen_layers_are_an_error(job):
    with pytest.raises(ModelError, match=r"finetune\.frozen_layers: the model has 2 layers \(got 3\); valid: 0 to 2"):
        train(job("a", frozen_layers=3))


def without_time(history):
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]


@pytest.mark.parametrize("kill_at", [1, 4, 7, 13, 20, 25])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(job, uninterrupted, monkeypatch, kill_at, accumulation):
    settings = {"gradient_accumulation": accumulation, "patience": 9}
    expected, history = uninterrupted(accumulation)
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


SHAPED = {
    "magnitude": {"reparametrization": "sparsity", "sparsity": 0.7, "ramp_start": 0.0, "ramp_end": 0.6},
    "movement": {"reparametrization": "sparsity", "sparsity": 0.9, "criterion": "movement", "ramp_end": 0.6},
    "2:4": {"reparametrization": "sparsity", "pattern": "2:4", "schedule": "oneshot"},
    "int8": {"reparametrization": "fake_quantization"},
}


@pytest.mark.parametrize(
    ("name", "kill_at", "accumulation"),
    [
        ("magnitude", 20, 2),
        ("movement", 26, 1),
        ("2:4", 7, 1),
        ("int8", 17, 1),
    ],
)
def test_shaped_weights_resume_exactly(job, monkeypatch, name, kill_at, accumulation):
    settings = {"gradient_accumulation": accumulation, "patience": 9, "reparametrization": SHAPED[name]}
    expected, history, _ = train(job("whole", **settings))
    step, calls = loop._Run._step, []

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


def test_weights_are_shaped_before_each_optimiser_step_and_before_validation(job, monkeypatch):
    shares = []
    monkeypatch.setattr(Sparsity, "advance", lambda self, model, done: shares.append(done))
    train(job("a", epochs=2, gradient_accumulation=5, reparametrization=SHAPED["2:4"]))
    assert shares == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


@pytest.mark.parametrize("name", SHAPED)
def test_the_best_model_is_a_plain_one(job, name):
    begun = job("a", epochs=1, reparametrization=SHAPED[name])
    weights, _, _ = train(begun)
    assert set(weights) == set(start_of(begun))
    best = toy_model()
    best.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    run = loop._Run(begun, one_of_two(begun))
    ids = torch.tensor([[2, 40, 41, 3]])
    if name != "int8":
        zeros = (weights["bert.encoder.layer.0.output.dense.weight"] == 0).mean()
        assert zeros == pytest.approx(SHAPED[name].get("sparsity", 0.5), abs=1e-3)
        assert torch.equal(run.model.eval()(ids).logits, best(ids).logits)
    else:
        assert not torch.equal(run.model.eval()(ids).logits, best(ids).logits)
        trained = run.model.state_dict()["bert.pooler.dense.parametrizations.weight.original"]
        assert np.array_equal(weights["bert.pooler.dense.weight"], trained.numpy())


def test_no_epoch_before_the_sparsity_is_reached_is_the_best(job):
    spec = SHAPED["magnitude"] | {"ramp_end": 1.0}
    weights, history, _ = train(job("a", epochs=4, patience=1, learning_rate=1e-9, reparametrization=spec))
    assert len(history) == 4  # patience does not count while weights are still being removed
    assert (weights["bert.encoder.layer.1.output.dense.weight"] == 0).mean() == pytest.approx(0.7, abs=1e-3)


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


def test_selective_accuracy_is_the_mean_over_all_coverages():
    logits, labels = np.array([[4.0, 0], [0, 3.0], [2.0, 0], [0, 1.0]], np.float32), np.array([0, 1, 1, 1])
    assert loop.selective_accuracy(logits, labels) == pytest.approx((1 + 1 + 2 / 3 + 3 / 4) / 4)
    assert loop.selective_accuracy(logits[::-1], labels[::-1]) == loop.selective_accuracy(logits, labels)


def test_selective_accuracy_of_equal_confidence_is_accuracy():
    logits, labels = np.array([[2.0, 0]] * 4, np.float32), np.array([1, 0, 0, 0])
    assert loop.selective_accuracy(logits, labels) == pytest.approx(0.75)


@pytest.mark.parametrize("rows", [1, 7, 32, 200])
def test_file_chunks_are_even_and_in_order(tmp_path, rows):
    files = shards(tmp_path, "x", 50, 3, seed=3)
    tables = list(file_chunks(files, ["input_ids", "label"], rows))
    assert [t.num_rows for t in tables[:-1]] == [rows] * (len(tables) - 1)
    together = pa.concat_tables(tables)
    assert together.equals(pa.concat_tables([pq.read_table(f) for f in files]).cast(together.schema))
