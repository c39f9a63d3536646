import numpy as np
import pytest

from lspm_ray.compression.export import export
from lspm_ray.compression.graph import Graph, load, logits_of
from lspm_ray.compression.int8 import Int8
from lspm_ray.compression.sensitivity import (
    _least,
    divergence,
    measure_sensitivity,
    read_sensitivity,
    write_sensitivity,
)
from tests.toys import toy_model_dir


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A toy with one great weight in each channel of its second feed-forward layer, next to which the others vanish."""
    root = tmp_path_factory.mktemp("sensitivity")
    (root / "onnx").mkdir()
    model = load(export(toy_model_dir(root / "torch"), root / "onnx", "fp32"))
    import onnx

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and "layer.1/intermediate" in node.name:
            value = onnx.numpy_helper.to_array(weights[node.input[1]]).copy()
            value[0] = 60
            weights[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(value, node.input[1]))
    return Graph(model)


def rows(count=32):
    random = np.random.default_rng(0)
    return [random.integers(5, 90, random.integers(2, 20)) for _ in range(count)]


def measured(graph, limit):
    return measure_sensitivity(graph, lambda: Int8(graph, True), rows(), limit, 2, lambda _: None)


def test_the_part_that_suffers_most_comes_first_and_stays_float(graph, tmp_path):
    limit = measured(graph, 100.0).all_quantized / 2
    table = measured(graph, limit)
    found = [part.divergence for part in table.parts]
    assert len(found) == 6 and found == sorted(found, reverse=True)
    assert table.parts[0].part == "layer.1.ffn"
    order, kept = [part.part for part in table.parts], [part.kept for part in table.parts]
    assert kept == sorted(kept, reverse=True) and kept[0] and not kept[-1]
    truth = logits_of(graph.rebuilt(lambda _: None), rows(), 1)
    mixed, one_more = (
        divergence(truth, logits_of(graph.rebuilt(Int8(graph, True), order[count:]), rows(), 1))
        for count in (sum(kept), sum(kept) - 1)
    )
    assert mixed == pytest.approx(table.divergence)
    assert mixed <= limit < one_more
    assert {part.part: part.weights for part in table.parts}["layer.0.attention"] == 32 * 96 + 32 * 32
    write_sensitivity(tmp_path, table)
    assert read_sensitivity(tmp_path) == table


def test_everything_is_quantised_where_that_does(graph):
    table = measured(graph, 100.0)
    assert not any(part.kept for part in table.parts)
    assert table.divergence == table.all_quantized


@pytest.mark.parametrize(("share", "bisected"), [(1.0, 0), (0.5, 3)])
def test_no_combination_is_measured_twice(graph, monkeypatch, share, bisected):
    limit = measured(graph, 100.0).all_quantized * share
    runs = []

    def counted(*given):
        runs.append(given)
        return logits_of(*given)

    monkeypatch.setattr("lspm_ray.compression.sensitivity.logits_of", counted)
    table = measured(graph, limit)
    assert len(runs) <= 1 + len(table.parts) + 1 + bisected  # float, every part alone, all parts


def test_where_no_part_keeps_the_limit_all_stay_float(graph):
    table = measured(graph, 1e-12)
    assert all(part.kept for part in table.parts) and table.divergence == 0.0 < table.all_quantized


def test_no_table(tmp_path):
    assert read_sensitivity(tmp_path) is None


def test_divergence_by_hand():
    truth, other = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert divergence(truth + 3, other - 1) == pytest.approx(expected)


@pytest.mark.parametrize("end", [1, 2, 7])
def test_bisection_finds_the_least(end):
    for least in range(end + 1):
        assert _least(end, lambda kept, least=least: kept >= least) == least
