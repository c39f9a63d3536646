from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.compression.export import export
from lspm_ray.compression.graph import rewrite
from lspm_ray.compression.int8 import Int8
from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.inference.batching import micro_batches, pad
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import Variant, read_variant, save_model, write_variant
from lspm_ray.models.fresh import ARCHITECTURES, build_classifier, classifier_config
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
    with pytest.raises(ConfigError, match=r"unknown runtime.*abacus.*valid: onnxruntime, torch"):
        load_predictor(directory, threads=1)
    write_variant(directory, Variant(runtime="onnxruntime"))
    with pytest.raises(ModelError, match=r"no model\.onnx"):
        load_predictor(directory, threads=1)
