"""Run a model's `model.onnx` with OpenVINO on the CPU."""

import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ModelError
from lspm_ray.inference.batching import CPU_BATCH_TOKENS, CPU_CALL_TOKENS
from lspm_ray.inference.predictor import PaddedPredictor, Predictor, Runtime, pad_id_of
from lspm_ray.inference.runtimes.onnxruntime import ONNX_FILE, check_external_data
from lspm_ray.library import Library
from lspm_ray.models.directory import read_labels


class OpenvinoRuntime(Runtime):
    """OpenVINO, CPU plugin, in float32."""

    weights: ClassVar[str] = ".onnx"
    needs: ClassVar[Library | None] = Library("openvino", "openvino")

    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load `model.onnx`; it has no use for a GPU.

        Raises:
            ModelError: the directory has no `model.onnx`, or its weights lie outside the directory.
        """
        import openvino

        file = directory / ONNX_FILE
        if not file.is_file():
            raise ModelError(f"no {ONNX_FILE}: this variant was not exported", field="runtime", value=str(directory))
        check_external_data(file)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it: other answers on another machine
            "ENABLE_CPU_PINNING": False,  # replicas that pin themselves to the same cores wait for each other
        }
        model = openvino.Core().compile_model(str(file), "CPU", options)
        return OpenvinoPredictor(model, read_labels(directory), pad_id_of(directory))


class OpenvinoPredictor(PaddedPredictor):
    """A compiled OpenVINO model with inputs `input_ids`, `attention_mask` and output `logits`.

    Args:
        model: to run.
        labels: label names in the order of the logits.
        pad_id: token id used for padding.
    """

    def __init__(self, model: Any, labels: list[str], pad_id: int) -> None:
        super().__init__(labels, pad_id, CPU_BATCH_TOKENS, CPU_CALL_TOKENS)
        self._model = model
        self._of_thread = threading.local()

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `PaddedPredictor.forward`."""
        # A request computes one thing at a time, and an endpoint computes short inputs beside its worker thread.
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._model.create_infer_request()
        found = self._of_thread.request.infer({"input_ids": ids, "attention_mask": mask})
        logits: NDArray[np.float32] = found["logits"]
        return logits
