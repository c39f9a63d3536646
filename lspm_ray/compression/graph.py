"""ONNX graphs in memory: their constants, their parts, and how nodes are replaced. Nothing here knows a precision."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ModelError
from lspm_ray.inference.runtimes.onnxruntime import ONNX_FILE, OnnxPredictor, open_session
from lspm_ray.tasks import Encoded

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

DATA_FILE = "model.data.onnx"
"""Weights of a model that one file cannot hold; its suffix has it counted with `model.onnx`."""

MAX_FILE_BYTES = 2_000_000_000
"""A protocol buffer may hold 2 GiB; more goes to `DATA_FILE`."""

_LAYER = re.compile(r"(?<![a-z])(?:layers?|block|h)\.(\d+)")

Replace = Callable[[Any], list[Any] | None]
"""The nodes that take a node's place; None leaves it."""


def load(file: Path) -> Any:
    """The graph in a file, external data included."""
    import onnx

    return onnx.load(str(file))


def save(model: Any, file: Path) -> None:
    """Write a graph; the weights of a large one go to `DATA_FILE` beside it."""
    import onnx

    # What was there before: onnx would append to it, or nobody would read it.
    (file.parent / DATA_FILE).unlink(missing_ok=True)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < MAX_FILE_BYTES:
        onnx.save(model, str(file))
        return
    onnx.save(model, str(file), save_as_external_data=True, location=DATA_FILE, size_threshold=1024)


def rewrite(file: Path, rule: Callable[[Graph], Replace]) -> None:
    """Replace nodes of the graph in a file.

    Args:
        file: read, and written anew.
        rule: given the graph, what replaces its nodes.

    Raises:
        ModelError: there is nothing to replace.
    """
    graph = Graph(load(file))
    graph.parts(rule(graph))
    save(graph.rebuilt(rule(graph)), file)


def session_of(model: Any) -> Any:
    """An ONNX Runtime session of a graph in memory, one thread per run."""
    with tempfile.TemporaryDirectory() as directory:
        save(model, Path(directory) / ONNX_FILE)
        return open_session(Path(directory) / ONNX_FILE)


def logits_of(model: Any, rows: Sequence[Encoded], threads: int) -> NDArray[np.float32]:
    """Logits [rows, labels] of a graph, computed as they are when it is served: one row per run."""
    return OnnxPredictor(session_of(model), [], threads).predict(rows)


def part_of(node: Any) -> str:
    """The part of a transformer that a node belongs to.

    Returns:
        `embedding`, `recurrent`, `layer.N.attention` or `layer.N.ffn` (with `decoder.` in front where there are two
        stacks), or `classifier`, which is everything behind the layers.
    """
    if node.op_type == "Gather":
        return "embedding"
    if node.op_type == "LSTM":
        return "recurrent"
    path = f"{node.name} {node.output[0]}"
    layer = _LAYER.search(path)
    if layer is None:
        return "classifier"
    stack = "decoder." if "/decoder/" in path else ""
    return f"{stack}layer.{layer[1]}.{'attention' if 'att' in path.lower() else 'ffn'}"


class Graph:
    """A float graph, from which graphs with some nodes replaced are made. Quantised weights are made once.

    Args:
        model: an ONNX ModelProto; it is not changed.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made: dict[str, Any] = {}
        self._frame = onnx.ModelProto()
        self._frame.CopyFrom(model)
        del self._frame.graph.initializer[:], self._frame.graph.node[:]
        self._same = {
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "Identity" and node.input[0] in self._constants
        }
        self.nodes = [_renamed(node, self._same) for node in model.graph.node]

    def constant(self, name: str) -> NDArray[np.float32] | None:
        """A float32 constant, or None if there is none of that name."""
        import onnx

        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        value: NDArray[np.float32] = onnx.numpy_helper.to_array(tensor)
        return value

    def matrix(self, name: str) -> NDArray[np.float32] | None:
        """A float32 constant of two dimensions, or None if there is none of that name."""
        found = self.constant(name)
        return found if found is not None and found.ndim == 2 else None

    def add(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant for the graphs to be made; returns its name."""
        import onnx

        self._made[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def has(self, name: str) -> bool:
        """Whether `add` has been called with this name."""
        return name in self._made

    def parts(self, replace: Replace) -> dict[str, int]:
        """Parts with nodes that `replace` has a replacement for -> numbers in their matrices, in the graph's order.

        Raises:
            ModelError: there are none.
        """
        sizes: dict[str, int] = {}
        for node in self.nodes:
            if replace(node) is not None:
                found = [self.constant(name) for name in node.input]
                size = sum(value.size for value in found if value is not None and value.ndim > 1)
                sizes[part_of(node)] = sizes.get(part_of(node), 0) + size
        if not sizes:
            raise ModelError("the graph has no weights that can be quantised", field="model_type")
        return sizes

    def rebuilt(self, replace: Replace, parts: Collection[str] | None = None) -> Any:
        """A ModelProto in which `replace` was asked about every node of some parts (None: of all).

        Constants that no node uses any more are left out.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._frame)
        for node in self.nodes:
            wanted = parts is None or part_of(node) in parts
            made = replace(node) if wanted else None
            model.graph.node.extend([node] if made is None else made)
        used = set(_inputs(model.graph))
        tensors = self._constants | self._made
        model.graph.initializer.extend(tensors[name] for name in tensors if name in used)
        if CONTRIB not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
        return model

    def watched(self, tensors: Sequence[str]) -> Any:
        """A ModelProto whose outputs are these tensors."""
        import onnx

        model = self.rebuilt(lambda _: None)
        del model.graph.output[:]
        outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors]
        model.graph.output.extend(outputs)
        return model


def _renamed(node: Any, same: dict[str, str]) -> Any:
    if not any(name in same for name in node.input):
        return node
    import onnx

    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[:] = [same.get(name, name) for name in node.input]
    return changed


def _inputs(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _inputs(inner)
    for output in graph.output:
        yield output.name
