"""Int4 weights for ONNX Runtime: `MatMulNBits` for matrix products, `GatherBlockQuantized` for embedding tables.

The weights are packed here, in the layout that the two operators document: ONNX Runtime's own packer needs a library
that it does not install.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.compression.graph import CONTRIB, Graph
from lspm_ray.compression.int8 import Product, product_of, table_of


class Int4:
    """Replaces nodes of a graph; made anew for every graph that is built.

    Weights are rounded to the nearest of 16 values between the least and the greatest of their block; activations stay
    float32.

    Args:
        graph: whose nodes they are.
        block_size: weights that share a scale, along the rows of a matrix and along an embedding.
    """

    def __init__(self, graph: Graph, block_size: int) -> None:
        self._graph = graph
        self._block = block_size

    def __call__(self, node: Any) -> list[Any] | None:
        """See `Replace`."""
        if node.op_type == "Gather":
            return self._table(node)
        product = product_of(node, self._graph)
        return None if product is None else [self._product(node, product)]

    def _product(self, node: Any, product: Product) -> Any:
        from onnx.helper import make_node

        rows, columns = product.weight.shape
        names = self._packed(product.name, product.weight.T)
        return make_node(
            "MatMulNBits",
            [product.input, *names, "", product.bias],
            [node.output[0]],
            f"{node.name}_int4",
            domain=CONTRIB,
            K=rows,
            N=columns,
            bits=4,
            block_size=self._block,
        )

    def _packed(self, name: str, weight: NDArray[np.float32], is_table: bool = False) -> list[str]:
        """Names of the packed rows of a matrix, their scales and their zero points."""
        names = [f"{name}_int4_{self._block}{suffix}" for suffix in ("", "_scale", "_zero")]
        if not self._graph.has(names[0]):
            data, scale, zero = blocks(weight, self._block)
            # The padding of the last block would count as a part of the embedding.
            self._graph.add(names[0], data.reshape(len(data), -1)[:, : weight.shape[1] // 2] if is_table else data)
            self._graph.add(names[1], scale)
            self._graph.add(names[2], zero)
        return names

    def _table(self, node: Any) -> list[Any] | None:
        from onnx.helper import make_node

        table = table_of(node, self._graph)
        if table is None or table.shape[1] % 2:
            return None
        weight, scale, zero = self._packed(node.input[0], table, is_table=True)
        return [
            make_node(
                "GatherBlockQuantized",
                [weight, node.input[1], scale, zero],
                node.output,
                node.name,
                domain=CONTRIB,
                gather_axis=0,
                quantize_axis=1,
                block_size=self._block,
                bits=4,
            )
        ]


def blocks(weight: NDArray[np.float32], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Rows of a matrix [rows, columns] in blocks, each with a scale and a zero point of its own.

    Returns:
        Two numbers per byte, the lower first [rows, blocks, size / 2]; scales [rows, blocks]; zero points, two per byte
        [rows, ceil(blocks / 2)].
    """
    rows, columns = weight.shape
    count = -(-columns // size)
    padded = np.zeros((rows, count * size), dtype=np.float32)
    padded[:, :columns] = weight
    values = padded.reshape(rows, count, size)
    low, high = np.minimum(values.min(axis=2), 0), np.maximum(values.max(axis=2), 0)
    scale = (high - low) / np.float32(15)
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    data = np.clip(np.rint(values / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)
    zeros = np.zeros((rows, count + count % 2), dtype=np.uint8)
    zeros[:, :count] = zero
    return _pairs(data), scale, _pairs(zeros)


def _pairs(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(values[..., ::2] | values[..., 1::2] << 4, dtype=np.uint8)
