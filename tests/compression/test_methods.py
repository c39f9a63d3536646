"""Every method on a toy model and corpus, in this process; the loop, the files and the runtimes are the real ones."""

import itertools
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.compress import CompressConfig, _Step, _train, compress
from lspm_ray.compression.importance import Importance, importance, least_missed_layers, stack
from lspm_ray.compression.method import Context, Method
from lspm_ray.compression.methods.distill_layers import keep_layers, kept_of, take_layers
from lspm_ray.compression.methods.distill_lstm import token_vectors
from lspm_ray.compression.methods.distill_transformer import narrow
from lspm_ray.compression.methods.prune import keep_best
from lspm_ray.compression.methods.trim_vocabulary import nearest, token_counts
from lspm_ray.compression.presets import PRESETS
from lspm_ray.compression.sensitivity import read_sensitivity
from lspm_ray.corpus.shards import read_split
from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.evaluation.outputs import logits_array
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, read_labels, read_variant, save_model
from lspm_ray.models.layers import layer_linears
from lspm_ray.models.pruned import compact, encoder_layers, shrink
from lspm_ray.models.shape import Shape
from lspm_ray.profiling.measure import size_mb
from lspm_ray.tasks import Task
from lspm_ray.training.batches import TEACHER_COLUMN, batches
from lspm_ray.training.reparametrizations.fake_quantization import FakeQuantization
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
    "sparsify": {"method": "sparsify", "sparsity": 0.6, "train": FAST | {"learning_rate": 3e-3}},
    "quantization_aware": {"method": "quantization_aware", "train": FAST | {"learning_rate": 3e-3, "epochs": 4}},
    "distill_lstm": {"method": "distill_lstm", "embedding_size": 16, "hidden_size": 16, "train": FAST},
    "distill_transformer": {
        "method": "distill_transformer",
        "layers": 1,
        "importance_rows": 32,
        "train": FAST | {"learning_rate": 3e-3},
    },
    "trim_vocabulary": {"method": "trim_vocabulary"},
    "distill_bag": {"method": "distill_bag", "buckets": 512, "embedding_size": 8, "train": FAST},
    "gatekeeper": {"method": "gatekeeper", "train": FAST | {"learning_rate": 3e-3, "metric": "selective_accuracy"}},
    "openvino": {"method": "openvino"},
    "cast": {"method": "cast"},
    "compile": {"method": "compile"},
    "torchao": {"method": "torchao", "compile": False},
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


def examples(world):
    table = read_split(world[1], "test", ["input_ids"])
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]


def apply(world, spec, target: Path, key: str):
    store, data, full, teacher = world
    needs = Method.make(spec).needs
    if needs is not None:
        pytest.importorskip(needs.module)
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

    numbers = itertools.count()

    def train(start, target, config, distill, reparametrization=None):
        _train(step, store, start, target, config, distill, lambda _: None, reparametrization, next(numbers))

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


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparse_weights_stay_sparse_and_take_less_room(world, tmp_path, pattern):
    spec = SPECS["sparsify"] | {"pattern": pattern, "sparsity": 0.5, "train": FAST | {"epochs": 1}}
    directory = apply(world, spec, tmp_path / "out", f"sparse-{pattern}")
    assert [file.name for file in directory.glob("*.safetensors")] == ["model-sparse.safetensors"]
    assert size_mb(directory, "torch") < 0.9 * size_mb(world[2].local(), "torch")
    for linear in layer_linears(load_model(directory)).values():
        assert (linear.weight == 0).float().mean() == 0.5
        if pattern == "2:4":
            assert ((linear.weight == 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_a_sparse_model_is_quantised_like_any_other(world, tmp_path):
    sparse, int8 = apply(world, SPECS["sparsify"], tmp_path / "sparse", "then-int8"), tmp_path / "int8"
    int8.mkdir()
    _, data, *_ = world
    context = Context(Task.make("text_classification"), data, lambda *_: None, 1, lambda _: None)
    Method.make("quantize_int8").apply(sparse, int8, context)
    full, found = (load_predictor(directory, threads=1).predict(examples(world)) for directory in (sparse, int8))
    assert (full.argmax(1) == found.argmax(1)).mean() > 0.95


def int8_error(world, directory, target):
    """Mean distance of a model's int8 logits from its own in full precision, in units of the spread of the latter."""
    target.mkdir()
    context = Context(Task.make("text_classification"), world[1], lambda *_: None, 1, lambda _: None)
    Method.make("quantize_int8").apply(directory, target, context)
    exact, rounded = (load_predictor(made, threads=1).predict(examples(world)) for made in (directory, target))
    return np.abs(exact - rounded).mean() / exact.std(axis=0).mean()


def hard_to_quantise(world, directory):
    """A trained model with one number among the inputs of a layer that leaves no room for the others in 8 bits."""
    import torch

    def build(draft):
        model = load_model(directory)
        with torch.no_grad():
            for layer in encoder_layers(model):
                layer.attention.self.value.weight[1] *= 1000
                layer.attention.self.value.bias[1] *= 1000
                layer.attention.output.dense.weight[:, 1] /= 1000
        save_model(model, toy_tokenizer(), draft.path)

    return world[0].make("finetune", {"hard": True}, {}, build)


def test_int8_is_nearer_to_a_model_that_was_trained_for_it(world, tmp_path, monkeypatch):
    store, data, _, teacher = world
    trained = apply(world, SPECS["distill_layers"] | {"layers": 2}, tmp_path / "trained", "trained")
    hard = (store, data, hard_to_quantise(world, trained), teacher)
    spec = SPECS["quantization_aware"] | {"train": FAST | {"learning_rate": 1e-3, "epochs": 1}}
    aware = int8_error(hard, apply(hard, spec, tmp_path / "aware", "aware"), tmp_path / "aware-int8")
    monkeypatch.setattr(FakeQuantization, "attach", lambda self, model: None)
    unaware = int8_error(hard, apply(hard, spec, tmp_path / "unaware", "unaware"), tmp_path / "unaware-int8")
    assert aware < 0.3 * unaware


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
    found = importance(model, batches([chunk], 16, 0, 0, 0), context)
    assert found.heads[0][0] == 0 < found.heads[0][1]
    assert not found.channels[0][0].any()
    assert found.neurons[0][5] == 0 < found.neurons[0][6]


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


def test_a_gatekeeper_is_less_sure_of_wrong_answers(world, tmp_path):
    train = {"method": "gatekeeper", "train": FAST | {"learning_rate": 3e-3}, "distill": {"weight": 0}}
    sure = {}
    for alpha in (0.05, 0.95):
        directory = apply(world, train | {"alpha": alpha}, tmp_path / str(alpha), f"gatekeeper-{alpha}")
        table = read_split(world[1], "test", ["input_ids", "label"])
        examples = [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]
        p = softmax(load_predictor(directory, threads=1).predict(examples), axis=1)
        wrong = p.argmax(1) != table["label"].to_numpy()
        sure[alpha] = p.max(1)[wrong].mean()
    assert sure[0.05] < sure[0.95] - 0.05


def test_a_step_that_trains_twice_does_not_resume_from_its_first_training(world, tmp_path):
    spec = SPECS["prune"] | {"steps": 2, "heads": 0.0, "neurons": 0.75, "train": FAST | {"epochs": 1}}
    directory = apply(world, spec, tmp_path / "out", "steps")
    assert [layer.intermediate.dense.out_features for layer in encoder_layers(load_model(directory))] == [16, 16]
    assert read_variant(directory).structure == {"heads": [2, 2], "neurons": [16, 16]}


@pytest.mark.parametrize("keep", ["even", "first", "importance"])
def test_the_kept_layers_are_remembered(world, tmp_path, keep):
    spec = SPECS["distill_layers"] | {"keep": keep, "importance_rows": 16, "train": FAST | {"epochs": 1}}
    structure = read_variant(apply(world, spec, tmp_path / "out", f"keep-{keep}")).structure
    if keep == "importance":
        (removed, divergence) = structure["removed_layers"][0]
        assert structure["layers"] == [1 - removed] and divergence >= 0
    else:
        assert structure == {"layers": [0]}


def test_the_layer_that_does_nothing_is_left_out_first(world):
    import torch

    model = toy_model()
    first = encoder_layers(model)[0]
    with torch.no_grad():
        for part in (first.attention.output.dense, first.output.dense):
            part.weight.zero_()
            part.bias.zero_()
    rows = [{"input_ids": torch.randint(5, 80, (8, 9)), "attention_mask": torch.ones(8, 9, dtype=torch.int64)}]
    context = Context(Task.make("text_classification"), world[1], lambda *_: None, 1, lambda _: None)
    ((layer, divergence),) = least_missed_layers(model, 1, rows, context)
    assert layer == 0
    assert divergence < 1e-6
    assert stack(model).layers[0] is first


def test_layers_of_a_pruned_model_can_be_left_out(world, tmp_path):
    model = toy_model()
    shrink(encoder_layers(model)[1], [0], list(range(10)))
    student = take_layers(compact(model), [1])
    save_model(student, toy_tokenizer(), tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.config.heads, loaded.config.neurons) == ([1], [10])
    assert torch_equal(loaded, take_layers(model, [1]))


def test_layers_are_numbered_as_in_the_full_model():
    earlier = Variant(structure={"layers": [0, 3, 5], "heads": [4, 2, 3]})
    assert kept_of(earlier, [0, 2]) == {"layers": [0, 5], "heads": [4, 3]}
    assert kept_of(Variant(), [0, 2]) == {"layers": [0, 2]}


def torch_equal(one, other):
    import torch

    ids = torch.arange(10, 22).reshape(2, 6)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        return torch.allclose(one(ids, attention_mask=mask).logits, other(ids, attention_mask=mask).logits, atol=1e-5)


def sentences(world, count=60):
    table = read_split(world[1], "test", ["input_ids"]).slice(0, count)
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]


def test_trimming_changes_no_answer_about_known_words(world, tmp_path):
    directory = apply(world, SPECS["trim_vocabulary"], tmp_path / "out", "trim")
    kept, total = read_variant(directory).structure["vocabulary"]
    assert kept < total == len(toy_tokenizer())
    before = load_predictor(world[2].local(), threads=1).predict(sentences(world))
    after = load_predictor(directory, threads=1).predict(sentences(world))
    assert np.allclose(before, after, atol=1e-6)
    assert toy_tokenizer().get_vocab() == load_tokenizer(directory).get_vocab()


def test_rare_tokens_become_unknown_and_special_ones_stay(world, tmp_path):
    model = load_model(
        apply(world, {"method": "trim_vocabulary", "min_count": 10**6, "absent": "unknown"}, tmp_path / "out", "rare")
    )
    special = toy_tokenizer().all_special_ids
    rows = model.get_input_embeddings().rows
    assert rows[special].unique().numel() == len(special) == model.config.vocabulary
    assert (rows == rows[toy_tokenizer().unk_token_id]).sum() == len(rows) - len(special) + 1


def test_an_absent_token_is_read_as_the_nearest_one():
    import torch

    model = toy_model()
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[70] = 3 * weight[20]
    kept, removed = np.array([0, 20, 21, 22]), np.array([5, 70])
    assert nearest(model, kept, removed, 1)[1] == 20


def test_tokens_are_counted_in_all_training_rows(world):
    rows = read_split(world[1], "train", ["input_ids"])["input_ids"].to_pylist()
    counts = token_counts(world[1], len(toy_tokenizer()))
    assert counts.sum() == sum(map(len, rows))
    assert counts[toy_tokenizer().cls_token_id] == len(rows)


@pytest.mark.parametrize("name", ["onnx", "quantize_int8", "prune", "distill_layers", "distill_transformer"])
def test_a_trimmed_model_goes_through_every_other_method(world, tmp_path, name):
    store, data, _, teacher = world
    trimmed = store.make(
        "trimmed",
        {"name": name},
        {},
        lambda draft: Method.make("trim_vocabulary").apply(world[2].local(), draft.path, context_of(world)),
    )
    spec = SPECS[name] | ({"train": FAST | {"epochs": 1}} if Method.make(name).needs_teacher else {})
    directory = apply((store, data, trimmed, teacher), spec, tmp_path / "out", f"trimmed-{name}")
    logits = load_predictor(directory, threads=1).predict(sentences(world))
    assert np.isfinite(logits).all()
    if name == "onnx":
        before = load_predictor(world[2].local(), threads=1).predict(sentences(world))
        assert np.allclose(logits, before, atol=1e-4)
    if Method.make(name).needs_teacher:
        assert load_model(directory).config.vocabulary == read_variant(trimmed.local()).structure["vocabulary"][0]


def test_the_smallest_preset_leaves_less_of_every_part(world, tmp_path):
    store, data, met, teacher = world
    structure = {}
    for step in PRESETS["small"]:
        name = step["method"]
        spec = step | ({"train": FAST | {"epochs": 1}} if Method.make(step).needs_teacher else {})
        spec |= {"layers": 1} if name == "distill_layers" else {}
        made = apply((store, data, met, teacher), spec, tmp_path / name, f"small-{name}")
        structure = read_variant(made).structure or structure
        met = store.make("small", {"step": name}, {}, partial(copy_to, made))
    assert structure["layers"] == [0] and len(structure["heads"]) == len(structure["neurons"]) == 1
    kept, total = structure["vocabulary"]
    assert kept < total
    assert np.isfinite(load_predictor(met.local(), threads=1).predict(sentences(world))).all()


def copy_to(made, draft):
    shutil.copytree(made, draft.path, dirs_exist_ok=True)


def context_of(world):
    return Context(Task.make("text_classification"), world[1], lambda *_: None, 1, lambda _: None)


def test_units_are_ranked_in_each_layer_or_in_the_whole_model():
    import torch

    scores = [torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([40.0, 1.0, 2.0, 3.0])]
    assert keep_best(scores, [2, 2], "layer") == [[0, 1], [0, 3]]
    assert keep_best(scores, [2, 2], "global") == [[0, 1, 2], [0]]
    assert keep_best([torch.zeros(3), torch.ones(3)], [1, 1], "global") == [[0], [0]], "no layer is left empty"


@pytest.mark.parametrize("share", [{"heads": -0.1}, {"heads": 1.0}, {"neurons": 1.0}, {"neurons": -1}, {"steps": 0}])
def test_shares_outside_their_range_are_refused(share):
    with pytest.raises(ConfigError, match=next(iter(share))):
        Method.make({"method": "prune"} | share)


def test_pruning_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"nothing would be removed"):
        Method.make({"method": "prune", "heads": 0, "neurons": 0})


FULL_WIDTH = Shape("bert", 2, 64, hidden=32, heads=2, neurons=64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 3}, r"distill_transformer\.layers: a student is not larger.* has 2 \(got 3\); valid: 1 to 2"),
        ({"hidden_size": 64}, r"distill_transformer\.hidden_size: .* has 32 \(got 64\)"),
        ({"hidden_size": 16, "heads": 4}, r"distill_transformer\.heads: .* has 2 \(got 4\)"),
        ({"neurons": 65}, r"distill_transformer\.neurons: .* has 64 \(got 65\)"),
        ({"hidden_size": 15, "heads": 2}, r"heads must share the hidden size of 15 equally \(got 2\); valid: 1"),
        ({"hidden_size": 32, "heads": 1}, r"1 heads would be wider \(32\) than the teacher's \(16\).*valid: 2 to 2"),
        ({"train": {"frozen_layers": 3}}, r"distill_transformer\.train\.frozen_layers"),
    ],
)
def test_students_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        Method.make({"method": "distill_transformer"} | fields).check(FULL_WIDTH)


def test_the_student_is_half_as_wide_if_nothing_is_said():
    made = Method.make({"method": "distill_transformer", "layers": 1}).check(FULL_WIDTH)
    assert (made.layers, made.hidden, made.heads, made.neurons) == (1, 16, 1, 32)


@pytest.mark.parametrize("family", ["bert", "electra", "roberta"])
def test_a_student_keeps_the_weights_of_what_matters(world, family):
    """Where the rest of a model does nothing, what is left computes the same, but for normalisation."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(family, vocab_size=90, max_position_embeddings=64, embedding_size=32, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    scores = Importance(
        [torch.tensor([0.0, 1.0])] * 2, [torch.arange(64.0)] * 2, [torch.ones(2, 16)] * 2, torch.arange(32.0)
    )
    student = narrow(model, scores, 16, 1, 8)
    old, new = encoder_layers(model)[1], encoder_layers(student)[1]
    assert torch.equal(new.attention.self.value.weight, old.attention.self.value.weight[16:, 16:])
    assert torch.equal(new.attention.self.query.weight, old.attention.self.query.weight[16:, 16:])
    assert torch.equal(new.attention.output.dense.weight, old.attention.output.dense.weight[16:, 16:])
    assert torch.equal(new.intermediate.dense.weight, old.intermediate.dense.weight[56:, 16:])
    assert torch.equal(new.output.dense.weight, old.output.dense.weight[16:, 56:])
    assert torch.equal(new.output.LayerNorm.bias, old.output.LayerNorm.bias[16:])
    assert torch.equal(student.get_input_embeddings().weight, model.get_input_embeddings().weight[:, 16:])
    assert student.config.hidden_size == 16 and student.config.model_type == family
    whole = narrow(model, scores, 32, 2, 64)
    assert torch_equal(whole, model)


def test_smaller_heads_keep_the_size_of_their_scores(world):
    import torch

    model = toy_model()
    attention = encoder_layers(model)[0].attention.self
    with torch.no_grad():  # only the last eight channels of each head say anything
        for projection in (attention.query, attention.key):
            projection.weight.unflatten(0, (2, 16))[:, :8] = 0
            projection.bias.unflatten(0, (2, 16))[:, :8] = 0
    scores = Importance([torch.ones(2)] * 2, [torch.ones(64)] * 2, [torch.ones(2, 16)] * 2, torch.ones(32))
    small = encoder_layers(narrow(model, scores, 16, 2, 64))[0].attention.self
    inputs = torch.zeros(5, 32)
    inputs[:, :16] = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    products = [
        (part.query(x).unflatten(1, (2, -1)).transpose(0, 1) @ part.key(x).unflatten(1, (2, -1)).permute(1, 2, 0))
        / part.attention_head_size**0.5
        for part, x in ((attention, inputs), (small, inputs[:, :16]))
    ]
    assert torch.allclose(*products, atol=1e-5)


def test_word_vectors_of_a_student_are_those_of_its_teacher():
    import torch

    model = toy_model()
    vectors = token_vectors(model, 32)
    centred = model.get_input_embeddings().weight.detach() - model.get_input_embeddings().weight.detach().mean(0)
    ratio = torch.cdist(vectors, vectors) / torch.cdist(centred, centred).clamp(min=1e-9)
    off = ~torch.eye(len(vectors), dtype=torch.bool)
    assert torch.allclose(ratio[off], ratio[off].mean(), rtol=1e-3), "rotated and scaled, nothing else"
    assert token_vectors(model, 8).shape == (len(toy_tokenizer()), 8)
    assert token_vectors(model, 33) is None
    assert token_vectors(toy_model("bag"), 8) is None


def test_what_is_left_is_told_by_every_later_step(world):
    store, data, full, _ = world
    config = CompressConfig.parse({"variants": {"small": {"recipe": ["trim_vocabulary", "onnx"]}}})
    task = Task.make("text_classification")
    made = compress(config, task, full, data, store, lambda _: None, here=1)["small"]
    kept, total = made.manifest.summary["structure"]["vocabulary"]
    assert 0 < kept < total
    assert read_variant(made.local()).structure == {"vocabulary": [kept, total]}
    assert [step["method"] for step in read_variant(made.local()).recipe] == ["trim_vocabulary", "onnx"]


def test_a_student_without_layers_forgets_what_was_left_of_others(world, tmp_path):
    spec = SPECS["distill_bag"] | {"train": FAST | {"epochs": 1}}
    assert read_variant(apply(world, spec, tmp_path / "out", "forgets")).structure == {}


def test_a_recipe_can_match_the_full_models_inner_states(world):
    store, data, full, _ = world
    plain = {"method": "distill_layers", "layers": 1, "train": FAST | {"epochs": 1}}
    matched = plain | {"distill": {"hidden": 1, "attention": 1, "relations": 1}}
    sparse = {"method": "sparsify", "sparsity": 0.5, "train": FAST | {"epochs": 1}, "distill": {"hidden": 1}}
    config = CompressConfig.parse(
        {"variants": {"plain": {"recipe": [plain]}, "matched": {"recipe": [matched]}, "sparse": {"recipe": [sparse]}}}
    )
    made = compress(config, Task.make("text_classification"), full, data, store, lambda _: None, here=1)
    assert made["matched"].manifest.parents["full"] == full.digest
    assert "full" not in made["plain"].manifest.parents
    assert not torch_equal(load_model(made["matched"].local()), load_model(made["plain"].local()))
    weight = next(iter(layer_linears(load_model(made["sparse"].local())).values())).weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
