"""Run a model's `model.onnx` with ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ModelError
from lspm_ray.inference.batching import CPU_BATCH_TOKENS
from lspm_ray.inference.predictor import Predictor, Runtime, pad_id_of
from lspm_ray.models.directory import read_labels

ONNX_FILE = "model.onnx"


class OnnxRuntime(Runtime):
    """ONNX Runtime, CPU execution provider."""

    def load(self, directory: Path, threads: int) -> Predictor:
        """Load `model.onnx`.

        Raises:
            ModelError: the directory has no `model.onnx`.
        """
        import onnxruntime as ort

        file = directory / ONNX_FILE
        if not file.is_file():
            raise ModelError(f"no {ONNX_FILE}: this variant was not exported", field="runtime", value=str(directory))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the core away from the other replicas of the node.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return OnnxPredictor(session, read_labels(directory), pad_id_of(directory))


class OnnxPredictor(Predictor):
    """An ONNX Runtime session with inputs `input_ids`, `attention_mask` and output `logits`."""

    def __init__(self, session: Any, labels: list[str], pad_id: int, max_batch_tokens: int = CPU_BATCH_TOKENS) -> None:
        super().__init__(labels, pad_id, max_batch_tokens)
        self.session = session

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """One run of the session."""
        logits: NDArray[np.float32] = self.session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        return logits
