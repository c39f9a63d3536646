"""Effects of recipe steps on a toy model; the methods, the files and the runtimes are the real ones."""

import numpy as np
import pytest
import torch

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.compress import CompressConfig, _make, _Step, compress
from lspm_ray.compression.effect import REFERENCE_STAGE, effects_of, parameters, reference
from lspm_ray.compression.method import Method
from lspm_ray.corpus.shards import read_split
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_model, save_model
from lspm_ray.models.layers import layer_linears
from lspm_ray.models.pruned import trim
from lspm_ray.models.sparse import store_sparse
from lspm_ray.tasks import Task
from lspm_ray.training.loop import validation_metrics
from tests.toy_corpus import toy_corpus
from tests.toys import toy_model_artifact, toy_model_dir, toy_tokenizer

TASK = Task.make("text_classification")
DISTIL = {"method": "distill_layers", "layers": 1, "train": {"epochs": 1, "batch_size": 32, "precision": "fp32"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    return store, toy_model_artifact(store, "finetune"), toy_corpus(store, {"train": 64, "validation": 40})


@pytest.fixture(scope="module")
def two_steps(world):
    """The results of two steps, the second made of the first, and the reference."""
    store, full, data = world
    known, source, made = reference(full, data, store, 1), full, []
    for spec in (DISTIL, {"method": "quantize_int8"}):
        what = {"step": Method.make(spec).spec(), "task": TASK.spec()}
        parents = {"source": source.digest, "data": data.digest}
        step = _Step(
            root=store.root, key=store.key("variant", what, parents), what=what, parents=parents, source=source.uri,
            data=data.uri, teacher=None, workers=None, reference=known.uri,
        )  # fmt: skip
        _make(step.model_dump(mode="json"), lambda _: None)
        source = store.get(f"variant-{step.key}")
        made.append(source)
    return known, made


def examples(data):
    table = read_split(data, "validation", ["input_ids", "label"])
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()], table["label"].to_numpy()


def test_every_step_leaves_its_own_effect_and_those_before(world, two_steps):
    known, (shallow, exported) = two_steps
    first, second = effects_of(shallow, known), effects_of(exported, known)
    assert [effect.step and effect.step["method"] for effect in second] == [None, "distill_layers", "quantize_int8"]
    assert second[:2] == first


def test_quality_is_that_of_the_runtime_that_will_serve(world, two_steps):
    _, full, data = world
    known, (shallow, exported) = two_steps
    rows, labels = examples(data)
    expected = load_predictor(full.local(), 1).predict(rows)
    for model, effect in zip((full, shallow, exported), effects_of(exported, known), strict=True):
        logits = load_predictor(model.local(), 1).predict(rows)
        quality = validation_metrics(logits, labels)
        assert effect.rows == 40
        assert (effect.accuracy, effect.balanced_accuracy) == (quality["accuracy"], quality["balanced_accuracy"])
        assert effect.loss == pytest.approx(quality["loss"])
        assert effect.agreement == (logits.argmax(1) == expected.argmax(1)).mean()


def test_size_shrinks_and_an_export_keeps_the_number_of_parameters(two_steps):
    known, (shallow, exported) = two_steps
    before, distilled, quantized = effects_of(exported, known)
    counted = sum(p.numel() for p in load_model(shallow.local()).parameters())
    assert before.parameters > distilled.parameters == counted == quantized.parameters
    assert parameters(exported.local()) == 0
    assert before.files_mb > distilled.files_mb > 0 < quantized.files_mb
    assert before.agreement == 1.0


def test_the_full_model_is_measured_once_and_only_if_a_step_is_made(world):
    store, full, data = world
    config = CompressConfig.parse({"variants": {"a": {"recipe": ["onnx"]}, "b": {"recipe": ["quantize_int8"]}}})
    made = compress(config, TASK, full, data, store, lambda _: None, here=1)
    (name,) = store.names(REFERENCE_STAGE)
    steps = made["a"].manifest.summary["steps"]
    assert [step["step"] for step in steps] == [None, {"method": "onnx"}]
    assert steps[1]["agreement"] == 1.0
    store.delete(name)
    assert compress(config, TASK, full, data, store, lambda _: None, here=1)["a"].digest == made["a"].digest
    assert store.names(REFERENCE_STAGE) == []


def test_no_more_rows_than_the_limit_are_used(world, monkeypatch, tmp_path):
    _, full, data = world
    monkeypatch.setattr("lspm_ray.compression.effect.MOST_ROWS", 7)
    (effect,) = effects_of(full, reference(full, data, ArtifactStore(str(tmp_path)), 1))
    assert effect.rows == 7


def test_packed_weights_count_as_many_as_before(world):
    pytest.importorskip("torchao")
    store, full, data = world
    recipe = [{"method": "torchao", "scheme": "int4_weight_only", "group_size": 16, "compile": False}]
    config = CompressConfig.parse({"variants": {"int4": {"recipe": recipe}}})
    made = compress(config, TASK, full, data, store, lambda _: None, here=1)["int4"]
    before, after = effects_of(made, reference(full, data, store, 1))
    assert after.parameters == before.parameters
    assert after.files_mb < before.files_mb


def test_parameters_are_weights_however_they_are_stored(tmp_path):
    directory = toy_model_dir(tmp_path / "model")
    model = load_model(directory)
    total = parameters(directory)
    assert total == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        for linear in layer_linears(model).values():
            linear.weight[:, ::2] = 0
    save_model(model, toy_tokenizer(), tmp_path / "sparse")
    store_sparse(tmp_path / "sparse")
    assert parameters(tmp_path / "sparse") == total
    trimmed = trim(model, list(range(40)), None)
    save_model(trimmed, toy_tokenizer(), tmp_path / "trimmed")
    assert parameters(tmp_path / "trimmed") == sum(p.numel() for p in trimmed.parameters()) < total
