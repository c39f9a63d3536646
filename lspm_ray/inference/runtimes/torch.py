"""Run a model with PyTorch, on the GPU where there is one."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.inference.batching import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from lspm_ray.inference.predictor import Predictor, Runtime, pad_id_of
from lspm_ray.models.directory import load_model, read_labels


class TorchRuntime(Runtime):
    """Eager PyTorch in float32 on the CPU, bfloat16 autocast on a GPU.

    Attributes:
        device: `cpu`, `cuda`, or None for the GPU if this process was given one.
    """

    device: str | None = None

    def load(self, directory: Path, threads: int) -> Predictor:
        """Load onto the device. On the CPU the number of threads is set for the whole process."""
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cpu":
            torch.set_num_threads(threads)
        tokens = CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS
        model = load_model(directory).eval().to(device)
        return TorchPredictor(model, read_labels(directory), pad_id_of(directory), tokens)


class TorchPredictor(Predictor):
    """A transformers model in evaluation mode."""

    def __init__(self, model: Any, labels: list[str], pad_id: int, max_batch_tokens: int = CPU_BATCH_TOKENS) -> None:
        super().__init__(labels, pad_id, max_batch_tokens)
        self.model = model

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """One forward pass."""
        import torch

        device = self.model.device
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            tensors = (torch.from_numpy(array).to(device) for array in (ids, mask))
            logits = self.model(*tensors).logits
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result
