"""Run a model's `model.onnx` with ONNX Runtime on the CPU."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ModelError
from lspm_ray.inference.predictor import Predictor, Runtime
from lspm_ray.models.directory import read_labels
from lspm_ray.tasks import Encoded

ONNX_FILE = "model.onnx"


class OnnxRuntime(Runtime):
    """ONNX Runtime, CPU execution provider."""

    weights: ClassVar[str] = ".onnx"

    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load `model.onnx`; it has no use for a GPU.

        Raises:
            ModelError: the directory has no `model.onnx`, or its weights lie outside the directory.
        """
        file = directory / ONNX_FILE
        if not file.is_file():
            raise ModelError(f"no {ONNX_FILE}: this variant was not exported", field="runtime", value=str(directory))
        check_external_data(file)
        return OnnxPredictor(open_session(file), read_labels(directory), threads)


def check_external_data(file: Path) -> None:
    """Refuse a graph with weights in files outside its own directory: no digest vouches for those.

    Raises:
        ModelError: names the weight and the file; or `file` is no ONNX graph.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError:
        raise ModelError("this is not an ONNX graph", field=ONNX_FILE, value=str(file)) from None
    directory = file.parent.resolve()
    functions = [node for function in model.functions for node in function.node]
    for tensor in (*_tensors(model.graph), *_node_tensors(functions)):
        for entry in tensor.external_data:
            if entry.key == "location" and not _is_inside(entry.value, directory):
                raise ModelError(
                    "weights must be in files of the model's directory",
                    field=f"{ONNX_FILE}: {tensor.name}",
                    value=entry.value,
                )


def _is_inside(location: str, directory: Path) -> bool:
    path = PurePath(location)
    if path.is_absolute() or ".." in path.parts:
        return False
    found = (directory / path).resolve()
    return found.is_file() and found.is_relative_to(directory)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)


def open_session(file: Path) -> Any:
    """A session for `OnnxPredictor`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the threads work on different rows
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class OnnxPredictor(Predictor):
    """An ONNX Runtime session with inputs `input_ids`, `attention_mask` and output `logits`; one row per run.

    Dynamic quantisation takes its scale from everything in a run. Alone, a row is quantised the same way in any
    company, and no padding is computed: see docs/decisions/one-row-per-run.md.

    Args:
        session: to run; may be used by several threads.
        labels: label names in the order of the logits.
        threads: rows computed at the same time.
    """

    joins_rows: ClassVar[bool] = False

    def __init__(self, session: Any, labels: list[str], threads: int = 1) -> None:
        super().__init__(labels)
        self.session = session
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx") if threads > 1 else None

    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        run = map if self._pool is None or len(batch) < 2 else self._pool.map
        rows = list(run(self._row, batch))
        return np.stack(rows) if rows else np.empty((0, len(self.labels)), dtype=np.float32)

    def _row(self, example: Encoded) -> NDArray[np.float32]:
        ids = np.asarray(example, dtype=np.int64)[None]
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        logits: NDArray[np.float32] = self.session.run(["logits"], inputs)[0][0]
        return logits
