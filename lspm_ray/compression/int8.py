"""Int8 operators of ONNX Runtime for the matrix products, embeddings and LSTMs of a float graph.

The operators take int8 and give float32 (`MatMulIntegerToFloat`), so LayerNorm, softmax and GELU stay
float and nothing is rounded between products. With fixed scales, MiniLM-L6 (ONNX Runtime 1.32, AVX-512 with VNNI, one
thread, 64 tokens) took 4.9 ms with these and attention merged into one operator, which `export` does no more: it
takes a fifth less time without. Operators that round their output too (`QLinearMatMul`) took 5.4 ms at seven times the
mean error; pairs of QuantizeLinear and DequantizeLinear 13 ms, more than the 12.4 of float32: ONNX Runtime turns them
into products that unpack their weights first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.compression.graph import CONTRIB, Graph

_LEAST_TABLE = 1024

Ranges = Mapping[str, tuple[float, float]]
"""Tensor name -> least and greatest value that it can hold when quantised."""


@dataclass(frozen=True)
class Product:
    """A product of activations with a constant matrix.

    Attributes:
        input: name of the activations [..., rows].
        name: of the matrix, with what was done to it.
        weight: the matrix [rows, columns].
        bias: name of the constant that is added, or "".
    """

    input: str
    name: str
    weight: NDArray[np.float32]
    bias: str


def product_of(node: Any, graph: Graph) -> Product | None:
    """The product that a MatMul or a Gemm computes; None for other nodes and those without a constant matrix."""
    if node.op_type not in ("MatMul", "Gemm") or not _is_plain(node):
        return None
    weight = graph.matrix(node.input[1])
    if weight is None:
        return None
    bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
    if node.op_type == "Gemm" and bias and getattr(graph.constant(bias), "shape", None) != (_columns(node, weight),):
        return None
    if attributes(node).get("transB"):
        return Product(node.input[0], f"{node.input[1]}_transposed", weight.T, bias)
    return Product(node.input[0], node.input[1], weight, bias)


def table_of(node: Any, graph: Graph) -> NDArray[np.float32] | None:
    """The embedding table [rows, width] that a Gather reads, or None; one of a few numbers counts for nothing."""
    if node.op_type != "Gather" or attributes(node).get("axis", 0) != 0:
        return None
    table = graph.matrix(node.input[0])
    return table if table is not None and table.size >= _LEAST_TABLE else None


def attributes(node: Any) -> dict[str, Any]:
    """Attribute name -> value."""
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _columns(node: Any, weight: NDArray[np.float32]) -> int:
    return int(weight.shape[0 if attributes(node).get("transB") else 1])


def _is_plain(node: Any) -> bool:
    found = attributes(node)
    return not found.get("transA") and found.get("alpha", 1.0) == 1.0 and found.get("beta", 1.0) == 1.0


def watched_by(graph: Graph) -> list[str]:
    """Names of all activations that enter a product, in the order of the graph, each once."""
    products = (product_of(node, graph) for node in graph.nodes)
    return list(dict.fromkeys(product.input for product in products if product is not None))


def scale_and_zero(low: float, high: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scale and zero point with which uint8 spans a range; zero is always in it, and exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    return np.array(scale), np.array(np.clip(np.rint(-low / scale), 0, 255), dtype=np.uint8)


class Int8:
    """Replaces nodes of a graph; made anew for every graph that is built.

    Weights are int8, symmetric, with one scale per output channel; an embedding table has one per row, and a table of
    a few numbers stays. Activations are uint8 with one scale per tensor.

    Args:
        graph: whose nodes they are.
        reduce_range: seven bits for the weights of products. Instructions before VNNI add pairs of products in 16
            bits, where those of eight bits can overflow.
        ranges: of the activations; None has their range measured in every run.
    """

    def __init__(self, graph: Graph, reduce_range: bool, ranges: Ranges | None = None) -> None:
        self._graph = graph
        self._bits, self._limit = (7, 64) if reduce_range else (8, 127)
        self._ranges = ranges
        self._quantized: dict[str, list[str]] = {}

    def __call__(self, node: Any) -> list[Any] | None:
        """See `Replace`."""
        if node.op_type == "Gather":
            return self._table(node)
        if node.op_type == "LSTM" and self._ranges is None:
            return self._lstm(node)
        product = product_of(node, self._graph)
        return None if product is None else self._product(node, product)

    def _product(self, node: Any, product: Product) -> list[Any]:
        from onnx.helper import make_node

        nodes, (data, scale, zero) = self._activation(product.input)
        weight, weight_scale = self._weight(product)
        inputs = [data, weight, scale, weight_scale, zero, "", product.bias]
        inputs = inputs if product.bias else inputs[:5]
        return [*nodes, make_node("MatMulIntegerToFloat", inputs, node.output, node.name, domain=CONTRIB)]

    def _activation(self, name: str) -> tuple[list[Any], list[str]]:
        """Nodes that quantise a tensor, none if that was done, and the names of its data, scale and zero point."""
        from onnx.helper import make_node

        found = self._quantized.get(name)
        if found is not None:
            return [], found
        kind = "dynamic" if self._ranges is None else "static"
        found = self._quantized[name] = [f"{name}_{kind}_{suffix}" for suffix in ("uint8", "scale", "zero")]
        if self._ranges is None:
            return [make_node("DynamicQuantizeLinear", [name], found, f"{name}_quantize")], found
        self._add(found[1:], *scale_and_zero(*self._ranges[name]))
        return [make_node("QuantizeLinear", [name, *found[1:]], found[:1], f"{name}_quantize")], found

    def _weight(self, product: Product) -> list[str]:
        names = self._names(product.name)
        if not self._graph.has(names[0]):
            self._add(names, *_symmetric(product.weight, 0, self._limit))
        return names

    def _names(self, name: str) -> list[str]:
        return [f"{name}_int{self._bits}{suffix}" for suffix in ("", "_scale")]

    def _add(self, names: Iterable[str], *values: NDArray[Any]) -> None:
        for name, value in zip(names, values, strict=True):
            self._graph.add(name, value)

    def _table(self, node: Any) -> list[Any] | None:
        from onnx import TensorProto
        from onnx.helper import make_node

        table = table_of(node, self._graph)
        if table is None:
            return None
        names = f"{node.input[0]}_rows", f"{node.input[0]}_rows_scale"
        if not self._graph.has(names[0]):
            data, scale = _symmetric(table, 1, 127)
            self._add(names, data, scale[:, None])
        out = node.output[0]
        return [
            make_node("Gather", [names[0], node.input[1]], [f"{out}_int8"], f"{node.name}_int8"),
            make_node("Gather", [names[1], node.input[1]], [f"{out}_scale"], f"{node.name}_scale"),
            make_node("Cast", [f"{out}_int8"], [f"{out}_float"], f"{node.name}_float", to=TensorProto.FLOAT),
            make_node("Mul", [f"{out}_float", f"{out}_scale"], [out], node.name),
        ]

    def _lstm(self, node: Any) -> list[Any] | None:
        from onnx.helper import make_node

        if attributes(node).get("layout"):
            return None
        extra: list[str] = []
        weights: list[str] = []
        for name in node.input[1:3]:
            weight = self._graph.constant(name)
            if weight is None:
                return None
            data, scale = _symmetric(weight, 2, self._limit)
            names = [*self._names(name), f"{name}_zero"]
            self._add(names, data.transpose(0, 2, 1), scale, np.zeros_like(scale, dtype=np.int8))
            weights.append(names[0])
            extra += names[1:]
        optional = [*node.input[3:], "", "", "", "", ""][:5]
        kept = {name: value for name, value in attributes(node).items() if name != "layout"}
        inputs = [node.input[0], *weights, *optional, *extra]
        return [make_node("DynamicQuantizeLSTM", inputs, node.output, node.name, domain=CONTRIB, **kept)]


def _symmetric(weight: NDArray[np.float32], axis: int, limit: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 in [-limit, limit] and the scales, one for every position along the other axes."""
    scale = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(limit)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), scale.squeeze(axis).astype(np.float32)
