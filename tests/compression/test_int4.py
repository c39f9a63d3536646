"""Int4 weights: how they are packed, and that ONNX Runtime reads them as they are meant."""

import numpy as np
import onnx
import pytest

from lspm_ray.compression.graph import Graph, session_of
from lspm_ray.compression.int4 import Int4, blocks


def restored(weight, size):
    """The matrix [rows, columns] that the packed blocks stand for."""
    data, scale, zero = blocks(weight, size)
    codes = np.stack([data & 15, data >> 4], axis=-1).reshape(*scale.shape, size)
    zeros = np.stack([zero & 15, zero >> 4], axis=-1).reshape(len(weight), -1)[:, : scale.shape[1], None]
    values = (codes.astype(np.float32) - zeros) * scale[..., None]
    return values.reshape(len(weight), -1)[:, : weight.shape[1]], scale


@pytest.mark.parametrize(("columns", "size"), [(64, 16), (96, 32), (40, 32), (10, 16)])
def test_weights_are_within_a_step_of_their_block(columns, size):
    weight = np.random.default_rng(0).normal(0.3, 1, (7, columns)).astype(np.float32)
    found, scale = restored(weight, size)
    step = np.repeat(scale, size, axis=1)[:, :columns]
    assert (np.abs(found - weight) <= step * 1.01).all()
    assert np.abs(found - weight).mean() < step.mean() * 0.3


def test_blocks_of_zeros_stay_zero():
    found, _ = restored(np.zeros((3, 32), dtype=np.float32), 16)
    assert not found.any()


def graph_of(nodes, constants, ids=False):
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.INT64 if ids else TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", kind, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(graph, size, x):
    return session_of(graph.rebuilt(Int4(graph, size))).run(["y"], {"x": x})[0]


@pytest.mark.parametrize(("rows", "size"), [(64, 16), (40, 32), (32, 128)])
def test_a_product_is_that_of_the_restored_matrix(rows, size):
    random = np.random.default_rng(1)
    weight, bias = random.normal(size=(rows, 24)).astype(np.float32), random.normal(size=24).astype(np.float32)
    x = random.normal(size=(3, rows)).astype(np.float32)
    plain = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    expected = x @ restored(weight.T, size)[0].T
    assert np.abs(run(graph_of([plain], {"w": weight}), size, x) - expected).max() < 1e-4
    gemm = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "product", transB=1)
    transposed = graph_of([gemm], {"w": np.ascontiguousarray(weight.T), "b": bias})
    assert np.abs(run(transposed, size, x) - expected - bias).max() < 1e-4


@pytest.mark.parametrize(("width", "size"), [(64, 16), (48, 32), (24, 128)])
def test_an_embedding_is_the_restored_row(width, size):
    table = np.random.default_rng(2).normal(size=(80, width)).astype(np.float32)
    ids = np.array([[3, 79, 0], [1, 1, 2]])
    gather = onnx.helper.make_node("Gather", ["w", "x"], ["y"], "table")
    found = run(graph_of([gather], {"w": table}, ids=True), size, ids)
    assert np.abs(found - restored(table, size)[0][ids]).max() < 1e-6


def test_what_has_no_constant_matrix_stays():
    square = onnx.helper.make_node("MatMul", ["x", "x"], ["y"], "product")
    graph = graph_of([square], {})
    assert [node.op_type for node in graph.rebuilt(Int4(graph, 32)).graph.node] == ["MatMul"]
