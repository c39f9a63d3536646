import functools
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.compression.export import export
from lspm_ray.compression.graph import rewrite
from lspm_ray.compression.int8 import Int8
from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ConfigError, ModelError, ResourceError
from lspm_ray.inference.batching import micro_batches, pad
from lspm_ray.inference.compiled import remove_unfinished
from lspm_ray.inference.predictor import Runtime, load_predictor
from lspm_ray.models.directory import Variant, read_variant, save_model, write_variant
from lspm_ray.models.fresh import ARCHITECTURES, build_classifier, classifier_config
from lspm_ray.tasks import Task
from tests.toys import LABELS, toy_model_dir, toy_tokenizer


@given(lengths=st.lists(st.integers(1, 300), max_size=80), limit=st.integers(1, 2000), call_tokens=st.integers(0, 100))
def test_micro_batches_hold_every_row_once_and_keep_the_limits(lengths, limit, call_tokens):
    batches = list(micro_batches(lengths, limit, call_tokens))
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        found = [lengths[row] for row in batch]
        assert found == sorted(found)
        assert len(batch) == 1 or len(batch) * found[-1] <= limit
        for rows, (length, longer) in enumerate(pairwise(found), start=1):
            assert rows * (longer - length) <= call_tokens


@pytest.mark.parametrize(
    ("call_tokens", "batches"), [(0, [[1, 3], [0, 2], [4]]), (9, [[1, 3], [0, 2, 4]]), (10, [[1, 3, 0, 2, 4]])]
)
def test_micro_batches_weigh_padding_against_another_forward_pass(call_tokens, batches):
    found = micro_batches([10, 5, 10, 5, 12], 1000, call_tokens)
    assert [rows.tolist() for rows in found] == batches


def test_padding():
    ids, mask = pad([np.array([5, 6]), np.array([7])], pad_id=9)
    assert ids.tolist() == [[5, 6], [7, 9]]
    assert mask.tolist() == [[1, 1], [1, 0]]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch_dir = toy_model_dir(root / "torch")
    for name in ("onnx", "int8"):
        (root / name).mkdir()
        file = export(torch_dir, root / name, "fp32" if name == "onnx" else "int8")
        if name == "int8":
            rewrite(file, lambda graph: Int8(graph, reduce_range=True))
    toy_model_dir(root / "bag", kind="bag")
    return root


OPTIONAL = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("openvino", "torchao")
}
needs_torchao = OPTIONAL["torchao"]
TORCHAO = {"method": "torchao", "compile": False}
# Name -> method, how far any logit may be from that in other company, and half of them from the full model's. Most
# answers are the same to the last digit; where values are rounded, a sum in another order may round to another one.
MADE = {
    "bf16": ({"method": "cast", "dtype": "bf16"}, 0.06, 0.04),
    "fp16": ({"method": "cast", "dtype": "fp16"}, 0.02, 0.005),
    "openvino": ({"method": "openvino"}, 1e-4, 1e-4),
    "compile": ({"method": "compile"}, 1e-4, 1e-4),
    "int8_weight_only": (TORCHAO | {"scheme": "int8_weight_only"}, 1e-4, 0.06),
    "int8_dynamic": (TORCHAO | {"scheme": "int8_dynamic"}, 0.3, 0.15),
    "int4_weight_only": (TORCHAO | {"scheme": "int4_weight_only", "group_size": 16}, 1e-4, 1.0),
    "compiled int8": (TORCHAO | {"scheme": "int8_weight_only", "compile": True}, 1e-4, 0.06),
}
MADE_NAMES = [pytest.param(name, marks=OPTIONAL.get(spec["method"], ())) for name, (spec, *_) in MADE.items()]


@pytest.fixture(scope="module")
def make(directories):
    """Makes a model of `directories` with a method, once."""

    def make(name):
        target = directories / f"made {name}"
        if not target.exists():
            target.mkdir()
            context = Context(Task.make("text_classification"), None, lambda *_: None, 1, lambda _: None)
            Method.make(MADE[name][0]).apply(directories / "torch", target, context)
        return target

    return make


@pytest.fixture(scope="module")
def load(make):
    """Loads what `make` makes, once: it may have to be compiled."""
    return functools.cache(lambda name: load_predictor(make(name), threads=1))


@pytest.mark.parametrize("name", MADE_NAMES)
def test_answers_stay_within_the_rounding(directories, load, name):
    _, in_company, against_full = MADE[name]
    batch = examples(60)
    reference = load_predictor(directories / "torch", threads=1).predict(batch)
    predictor = load(name)
    together = predictor.predict(batch)
    alone = np.concatenate([predictor.predict([example]) for example in batch])
    assert together.dtype == np.float32
    assert np.abs(together - alone).max() < in_company
    assert np.median(np.abs(together - alone)) < 1e-5
    assert np.median(np.abs(alone - reference)) < against_full
    assert (alone.argmax(1) == reference.argmax(1)).mean() > 0.85


def test_nothing_is_compiled_while_serving(load, monkeypatch):
    predictor = load("compile")
    monkeypatch.setattr(predictor, "stance", "fail_on_recompile")
    batch = [np.append(example, 7) for example in examples()]
    with ThreadPoolExecutor(1) as other:  # an endpoint computes in another thread than it loads in
        assert other.submit(predictor.predict, batch).result().shape == (len(batch), 2)
    assert predictor.predict(batch[:1]).shape == (1, 2)


@pytest.mark.parametrize("name", [name for name in MADE_NAMES if "compile" not in str(name)])
def test_several_threads_get_the_answers_of_one(load, name):
    predictor, batch = load(name), examples(60)
    expected = predictor.predict(batch)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(predictor.predict, [batch] * 8):
            assert np.array_equal(found, expected)


@needs_torchao
def test_quantised_models_differ_from_the_full_one(directories, load):
    batch = examples()
    reference = load_predictor(directories / "torch", threads=1).predict(batch)
    errors = [np.abs(load(name).predict(batch) - reference).mean() for name in MADE if "_" in name]
    assert 1e-3 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("bf16", 0.55),
        ("fp16", 0.55),
        pytest.param("int8_weight_only", 0.6, marks=needs_torchao),
        pytest.param("int4_weight_only", 0.55, marks=needs_torchao),
    ],
)
def test_fewer_bits_take_less_room(directories, make, name, share):
    full = (directories / "torch" / "model.safetensors").stat().st_size
    assert (make(name) / "model.safetensors").stat().st_size < share * full


def test_runtimes_say_which_files_they_load():
    assert {name: Runtime.find(name).weights for name in Runtime.names()} == {
        "onnxruntime": ".onnx",
        "openvino": ".onnx",
        "torch": ".safetensors",
        "torch_compile": ".safetensors",
        "torchao": ".safetensors",
    }


def test_a_runtime_whose_library_is_not_installed(tmp_path, monkeypatch):
    directory = toy_model_dir(tmp_path / "m")
    write_variant(directory, Variant(runtime="torchao", precision="int8"))
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"runtime: needs the library torchao.*lspm-ray\[torchao\]"):
        load_predictor(directory, threads=1)


def test_compiling_without_a_compiler_says_what_is_missing(make, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ResourceError, match=r"needs a C\+\+ compiler.*no-such-compiler"):
        load_predictor(make("compile"), threads=1)


def test_no_gpu_where_one_is_asked_for(make, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("compile", "bf16"):
        with pytest.raises(ResourceError, match="a GPU is asked for"):
            load_predictor(make(name), threads=1, gpu=True)


def test_a_file_that_a_killed_compiler_left_is_removed(tmp_path, monkeypatch):
    from torch._inductor.exc import InductorError

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    inside, outside = tmp_path / "cache" / "a.so", tmp_path / "b.so"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_bytes(b"\x7fELF")
    errors = [InductorError(ImportError("file too short", path=str(file)), None) for file in (inside, outside)]
    assert [remove_unfinished(error) for error in errors] == [True, False]
    assert not remove_unfinished(errors[0]) and not remove_unfinished(InductorError(ValueError("x"), None))
    assert not inside.exists() and outside.exists()


def examples(count=23, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(5, 90, random.integers(1, 40)) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["torch", "onnx", "int8", "bag"])
def test_the_company_does_not_change_an_answer(directories, name, threads):
    predictor = load_predictor(directories / name, threads)
    assert predictor.labels == list(LABELS)
    batch = examples()
    together = predictor.predict(batch)
    alone = np.concatenate([predictor.predict([example]) for example in batch])
    assert together.dtype == np.float32 and together.shape == (len(batch), 2)
    assert np.abs(together - alone).max() < (1e-4 if name in ("torch", "bag") else 1e-6)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A classifier of each family that can be made from fresh weights."""
    root = tmp_path_factory.mktemp("families")
    tokenizer = toy_tokenizer()
    ids = dict.fromkeys(("bos", "eos", "cls", "sep"), tokenizer.sep_token_id) | {"pad": tokenizer.pad_token_id}
    for family in ARCHITECTURES:
        size = None if family == "lstm" else "toy"
        config = classifier_config(family, size, {}, vocab_size=len(tokenizer), length=64, ids=ids)
        config.id2label = dict(enumerate(LABELS))
        model = build_classifier(config, seed=0).eval()
        save_model(model, tokenizer, root / family)
    return root


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_is_answered_for_alone_as_in_company(families, family):
    eos = toy_tokenizer().sep_token_id
    batch = [np.append(example, eos) for example in examples()]  # T5 classifies at its end token
    predictor = load_predictor(families / family, threads=1)
    together = predictor.predict(batch)
    assert together.std(axis=0).min() > 1e-4
    alone = np.concatenate([predictor.predict([example]) for example in batch])
    assert np.abs(together - alone).max() < 1e-4


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_can_be_exported(families, family, tmp_path):
    export(families / family, tmp_path, "fp32")
    batch = [np.append(example, toy_tokenizer().sep_token_id) for example in examples()]
    reference = load_predictor(families / family, threads=1).predict(batch)
    assert np.abs(load_predictor(tmp_path, threads=1).predict(batch) - reference).max() < 1e-3


def test_an_lstm_is_quantised_too(tmp_path):
    source, target = toy_model_dir(tmp_path / "torch", kind="lstm"), tmp_path / "int8"
    target.mkdir()
    rewrite(export(source, target, "int8"), lambda graph: Int8(graph, reduce_range=True))
    batch = examples(200)
    reference, found = (load_predictor(directory, threads=1).predict(batch) for directory in (source, target))
    assert (found.argmax(1) == reference.argmax(1)).mean() > 0.9


@pytest.mark.parametrize("name", ["torch", "int8"])
def test_empty_batch(directories, name):
    assert load_predictor(directories / name, threads=2).predict([]).shape == (0, 2)


def test_onnx_equals_torch(directories):
    batch = examples()
    reference = load_predictor(directories / "torch", threads=1).predict(batch)
    assert np.abs(load_predictor(directories / "onnx", threads=1).predict(batch) - reference).max() < 1e-3


def test_int8_is_close_and_smaller(directories):
    batch = examples(200)
    reference = load_predictor(directories / "torch", threads=1).predict(batch)
    found = load_predictor(directories / "int8", threads=1).predict(batch)
    assert (found.argmax(1) == reference.argmax(1)).mean() > 0.9
    size = {name: (directories / name / "model.onnx").stat().st_size for name in ("onnx", "int8")}
    assert size["int8"] < 0.8 * size["onnx"]


def test_variant_file_names_the_runtime(directories):
    assert read_variant(directories / "torch").runtime == "torch"
    assert read_variant(directories / "int8") == Variant(runtime="onnxruntime", precision="int8")


def test_unknown_runtime_and_missing_export(tmp_path):
    directory = toy_model_dir(tmp_path / "m")
    write_variant(directory, Variant(runtime="abacus"))
    with pytest.raises(
        ConfigError, match=r"unknown runtime.*abacus.*valid: onnxruntime, openvino, torch, torch_compile, torchao"
    ):
        load_predictor(directory, threads=1)
    for runtime in ("onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])):
        write_variant(directory, Variant(runtime=runtime))
        with pytest.raises(ModelError, match=r"no model\.onnx"):
            load_predictor(directory, threads=1)


@needs_torchao
@pytest.mark.gpu
@pytest.mark.parametrize("spec", [{"method": "cast"}, TORCHAO, TORCHAO | {"scheme": "fp8_dynamic"}], ids=str)
def test_answers_on_a_gpu_stay_within_the_rounding(directories, tmp_path, spec):
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that computes in fp8")
    Method.make(spec).apply(directories / "torch", tmp_path, None)
    batch = examples(60)
    reference = load_predictor(directories / "torch", threads=1).predict(batch)
    predictor = load_predictor(tmp_path, threads=1, gpu=True)
    found = predictor.predict(batch)
    assert np.median(np.abs(found - reference)) < 0.3
    alone = np.concatenate([predictor.predict([example]) for example in batch])
    assert np.median(np.abs(found - alone)) < 0.1
