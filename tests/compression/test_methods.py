"""Every method on a toy model and corpus, in this process; the loop, the files and the runtimes are the real ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.compress import CompressConfig, _Step, _train, compress
from lspm_ray.compression.method import Context, Method
from lspm_ray.compression.methods.distill_layers import keep_layers
from lspm_ray.compression.methods.prune import importance
from lspm_ray.compression.sensitivity import read_sensitivity
from lspm_ray.corpus.shards import read_split
from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.evaluation.outputs import logits_array
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_model, load_tokenizer, read_labels, save_model
from lspm_ray.models.pruned import encoder_layers
from lspm_ray.tasks import Task
from lspm_ray.training.batches import TEACHER_COLUMN, batches
from tests.toy_corpus import toy_corpus
from tests.toys import LABELS, toy_model, toy_tokenizer

FAST = {"epochs": 6, "batch_size": 16, "learning_rate": 0.05, "precision": "fp32", "patience": 9}
SPECS = {
    "onnx": {"method": "onnx"},
    "quantize_int4": {"method": "quantize_int4"},
    "quantize_int8": {"method": "quantize_int8", "max_divergence": 0.1, "sensitivity_rows": 16},
    "quantize_static": {"method": "quantize_static", "calibration_rows": 32},
    "prune": {"method": "prune", "heads": 0.5, "importance_rows": 32, "train": FAST | {"learning_rate": 3e-3}},
    "distill_layers": {"method": "distill_layers", "layers": 1, "train": FAST | {"learning_rate": 3e-3}},
    "distill_bag": {"method": "distill_bag", "buckets": 512, "embedding_size": 8, "train": FAST},
}


def fresh_bert(store):
    """A model that is easy to train, unlike the toy whose large random weights make answers differ."""
    import torch
    from transformers import BertForSequenceClassification

    def build(draft):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_model(BertForSequenceClassification(toy_model().config), toy_tokenizer(), draft.path)

    return store.make("finetune", {"fresh": True}, {}, build)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with a corpus, a full model and the teacher's outputs."""
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    data, full = toy_corpus(store), fresh_bert(store)

    def build(draft):
        table = read_split(data, "train", ["input_ids", "label"])
        # A teacher that is right and sure: what a student learns then shows in its accuracy.
        sure = np.where(table["label"].to_numpy()[:, None] == np.arange(2), 3.0, -3.0).astype(np.float32)
        (draft.path / "train").mkdir()
        table = table.append_column(TEACHER_COLUMN, logits_array(sure))
        pq.write_table(table, draft.path / "train" / "part-00000.parquet")

    return store, data, full, store.make("teach", {}, {}, build)


def apply(world, spec, target: Path, key: str):
    store, data, full, teacher = world
    task = Task.make("text_classification")
    step = _Step(
        root=store.root,
        key=key,
        what={"step": spec, "task": task.spec()},
        parents={},
        source=full.uri,
        data=data.uri,
        teacher=teacher.uri if Method.make(spec).needs_teacher else None,
        threads=1,
        workers=None,
    )

    def train(start, target, config, distill):
        _train(step, store, start, target, config, distill, lambda _: None)

    target.mkdir()
    Method.make(spec).apply(full.local(), target, Context(task, data, train, 1, lambda _: None))
    return target


def test_every_method_is_covered():
    assert set(SPECS) == set(Method.names())


@pytest.mark.parametrize("name", SPECS)
def test_result_is_a_complete_model_directory(world, tmp_path, name):
    directory = apply(world, SPECS[name], tmp_path / "out", f"complete-{name}")
    assert not (directory / "start").exists()
    assert read_labels(directory) == list(LABELS)
    assert load_tokenizer(directory)("good dress")["input_ids"]
    table = read_split(world[1], "test", ["input_ids", "label"])
    examples = [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]
    logits = load_predictor(directory, threads=1).predict(examples)
    assert np.isfinite(logits).all()
    if Method.make(SPECS[name]).needs_teacher:
        assert (logits.argmax(1) == table["label"].to_numpy()).mean() > 0.8  # 11 of 12 labels are right


def test_both_int8_methods_show_which_parts_stayed_float(world, tmp_path):
    spec = {"method": "quantize_static", "calibration_rows": 32, "sensitivity_rows": 16, "max_divergence": 0.1}
    assert read_sensitivity(apply(world, spec, tmp_path / "static", "shown-static")).rows == 16
    assert read_sensitivity(apply(world, SPECS["quantize_int8"], tmp_path / "int8", "shown-int8")).max_divergence == 0.1
    assert read_sensitivity(apply(world, SPECS["quantize_static"], tmp_path / "plain", "not-shown")) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "quantize_static", "calibration_rows": 801}, r"quantize_static\.calibration_rows.*has 800 rows"),
        (
            {"method": "quantize_static", "calibration_rows": 700, "max_divergence": 1.0},
            r"calibration_rows \+ sensitivity_rows.*got 828",
        ),
        ({"method": "quantize_int8", "sensitivity_rows": 801, "max_divergence": 1.0}, r"sensitivity_rows.*has 800"),
    ],
)
def test_too_few_training_rows_are_told_before_anything_is_made(world, tmp_path, fields, message):
    store, data, full, _ = world
    config = CompressConfig.parse(
        {"variants": {"a": {"recipe": [{"method": "distill_bag"}]}, "b": {"recipe": [fields]}}}
    )
    with pytest.raises(ConfigError, match=message):
        compress(config, Task.make("text_classification"), full, data, store, lambda _: None, here=1)
    assert not store.names("variant")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "quantize_static", "calibration_rows": 8}, "greater than or equal to 32"),
        ({"method": "quantize_static", "calibration": "max"}, "'minmax', 'entropy' or 'percentile'"),
        ({"method": "quantize_static", "percentile": 101}, "less than or equal to 100"),
        ({"method": "quantize_int4", "block_size": 48}, "16, 32, 64, 128 or 256"),
        ({"method": "quantize_int8", "max_divergence": 0}, "greater than 0"),
    ],
)
def test_fields_of_quantisation_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        Method.make(fields)


def test_same_inputs_give_the_same_weights(world, tmp_path):
    first, second = (
        apply(world, SPECS["prune"], tmp_path / name, f"twice-{name}") / "model.safetensors" for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()


def test_pruned_layers_are_physically_smaller(world, tmp_path):
    model = load_model(apply(world, SPECS["prune"], tmp_path / "out", "smaller"))
    for layer in encoder_layers(model):
        assert layer.attention.self.query.weight.shape == (16, 32)
        assert layer.intermediate.dense.weight.shape == (32, 32)


def test_importance_finds_units_that_do_nothing(world):
    import torch

    model = toy_model()
    layer = encoder_layers(model)[0]
    with torch.no_grad():
        layer.attention.output.dense.weight[:, :16] = 0  # head 0
        layer.output.dense.weight[:, 5] = 0  # neuron 5
    chunk = read_split(world[1], "train", ["input_ids", "label"]).slice(0, 64).combine_chunks()
    context = Context(Task.make("text_classification"), world[1], lambda *_: None, 1, lambda _: None)
    heads, neurons = importance(model, batches([chunk], 16, 0, 0, 0), context)
    assert heads[0][0] == 0 < heads[0][1]
    assert neurons[0][5] == 0 < neurons[0][6]


def test_kept_layers_are_spread_evenly():
    import torch

    model = toy_model()
    with torch.no_grad():
        for number, layer in enumerate(encoder_layers(model)):
            layer.output.dense.bias.fill_(number)
    student = keep_layers(model, 1)
    assert student.config.num_hidden_layers == 1
    assert [int(layer.output.dense.bias[0]) for layer in encoder_layers(student)] == [0]
    assert [int(layer.output.dense.bias[0]) for layer in encoder_layers(keep_layers(model, 2))] == [0, 1]
    assert len(encoder_layers(model)) == 2


def test_more_layers_than_there_are():
    with pytest.raises(ModelError, match=r"the model has 2 layers.*got 3"):
        keep_layers(toy_model(), 3)


def test_bag_has_no_layers_to_keep():
    with pytest.raises(ModelError, match=r"distill_layers\.layers"):
        keep_layers(toy_model("bag"), 1)


def test_logits_column_keeps_its_shape():
    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert pa.chunked_array([logits_array(logits)]).to_pylist() == logits.tolist()
