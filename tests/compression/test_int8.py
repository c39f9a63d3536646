"""Int8 graphs of a toy BERT, run by ONNX Runtime."""

import numpy as np
import onnx
import pytest

from lspm_ray.compression.calibration import collect_ranges
from lspm_ray.compression.export import export
from lspm_ray.compression.graph import Graph, load, logits_of, session_of
from lspm_ray.compression.int8 import Int8, product_of, scale_and_zero, watched_by
from tests.toys import toy_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("int8")
    (root / "onnx").mkdir()
    return load(export(toy_model_dir(root / "torch"), root / "onnx", "fp32"))


@pytest.fixture
def graph(model):
    return Graph(model)


def examples(count=40, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(5, 90, random.integers(2, 30)) for _ in range(count)]


def ranges(graph, calibration="minmax", threads=1):
    return collect_ranges(graph, examples(seed=1), calibration, 99.9, threads)


def constants(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_all_products_and_the_embeddings_are_int8_and_the_rest_float(graph):
    made = graph.rebuilt(Int8(graph, reduce_range=True))
    found = operators(made)
    assert found.count("MatMulIntegerToFloat") == 2 * 6 + 2 and "Gemm" not in found
    assert found.count("MatMul") == 2 * 2  # of activations with each other
    floats = {name: value for name, value in constants(made).items() if value.dtype == np.float32 and value.ndim > 1}
    assert all("scale" in name or value.size < 1024 for name, value in floats.items())


@pytest.mark.parametrize(("reduce_range", "limit"), [(True, 64), (False, 127)])
def test_weights_use_the_bits_they_may(graph, reduce_range, limit):
    made = constants(graph.rebuilt(Int8(graph, reduce_range)))
    weights = [value for name, value in made.items() if value.dtype == np.int8 and "embeddings" not in name]
    assert len(weights) == 2 * 6 + 2
    for weight in weights:
        assert np.abs(weight.astype(int)).max(axis=0).tolist() == [limit] * weight.shape[1]  # each channel has a scale


def test_weights_are_within_half_a_step(graph):
    made = constants(graph.rebuilt(Int8(graph, reduce_range=True)))
    products = [product for node in graph.nodes if (product := product_of(node, graph)) is not None]
    assert len(products) == 14
    for product in products:
        scale = made[f"{product.name}_int7_scale"]
        assert (np.abs(made[f"{product.name}_int7"] * scale - product.weight) <= scale * 0.501).all()


def test_parts_that_are_kept_compute_as_before(graph):
    kept = set(graph.parts(Int8(graph, reduce_range=True)))
    assert kept == {
        "embedding",
        "classifier",
        *(f"layer.{layer}.{half}" for layer in (0, 1) for half in ("attention", "ffn")),
    }
    made = graph.rebuilt(Int8(graph, reduce_range=True), {"layer.1.ffn"})
    assert operators(made).count("MatMulIntegerToFloat") == 2
    before, after = (logits_of(graph.rebuilt(lambda _: None, parts), examples(), 1) for parts in (None, ()))
    assert (before == after).all()
    assert 0 < np.abs(logits_of(made, examples(), 1) - before).max() < 1


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_static_is_close_to_float(graph, calibration):
    made = graph.rebuilt(Int8(graph, reduce_range=True, ranges=ranges(graph, calibration)))
    assert "DynamicQuantizeLinear" not in operators(made)
    truth, found = logits_of(graph.rebuilt(lambda _: None), examples(), 1), logits_of(made, examples(), 1)
    assert (truth.argmax(1) == found.argmax(1)).mean() > 0.9


def test_a_tensor_is_quantised_once(graph):
    made = graph.rebuilt(Int8(graph, reduce_range=True))
    inputs = [node.input[0] for node in made.graph.node if node.op_type == "DynamicQuantizeLinear"]
    assert sorted(inputs) == sorted(watched_by(graph)) and len(set(inputs)) == len(inputs)


def test_static_scales_do_not_depend_on_the_other_rows_of_a_run(graph):
    random = np.random.default_rng(3)
    ids = random.integers(5, 90, (6, 12))

    def shared(model):
        session = session_of(model)
        together = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        alone = [session.run(["logits"], {"input_ids": i[None], "attention_mask": np.ones((1, 12), int)}) for i in ids]
        return np.abs(together - np.concatenate([logits[0] for logits in alone])).max()

    assert shared(graph.rebuilt(Int8(graph, True, ranges(graph)))) < 1e-4
    assert shared(graph.rebuilt(Int8(graph, True))) > 1e-3


def test_same_rows_give_the_same_bytes_on_any_number_of_threads(model):
    def made(threads):
        graph = Graph(model)
        found = graph.rebuilt(Int8(graph, True, ranges(graph, "entropy", threads)))
        return found.SerializeToString(deterministic=True)

    assert made(1) == made(2)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0)])
def test_zero_is_exact_and_the_ends_are_reached(low, high):
    scale, zero = scale_and_zero(low, high)
    for value in (low, 0.0, high):
        code = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs((code - zero) * scale - value) <= scale * 0.51
    assert (np.float32(zero) - zero) * scale == 0


def test_a_file_is_a_quarter_of_float32(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    from lspm_ray.compression.graph import rewrite
    from lspm_ray.models.directory import save_model
    from tests.toys import toy_tokenizer

    config = BertConfig(
        vocab_size=4000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    save_model(BertForSequenceClassification(config), toy_tokenizer(), tmp_path / "torch")
    (tmp_path / "int8").mkdir()
    file = export(tmp_path / "torch", tmp_path / "int8", "int8")
    before = file.stat().st_size
    rewrite(file, lambda graph: Int8(graph, reduce_range=True))
    assert file.stat().st_size <= 0.29 * before  # a scale per row of 128 costs 3 %; at 384 it is 1 %
