"""Run a model with PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ResourceError
from lspm_ray.inference.batching import CPU_BATCH_TOKENS, CPU_CALL_TOKENS, GPU_BATCH_TOKENS
from lspm_ray.inference.predictor import PaddedPredictor, Predictor, Runtime, pad_id_of
from lspm_ray.models.directory import load_as_stored, read_labels
from lspm_ray.models.sparse import SPARSE_FILE, use_sparse_kernels


class TorchRuntime(Runtime):
    """Eager PyTorch in the precision of the weights; on a GPU float32 weights compute in bfloat16 autocast."""

    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load onto the device. On the CPU the number of threads is set for the whole process.

        Raises:
            ResourceError: a GPU is asked for and there is none.
        """
        device = prepare_device(threads, gpu)
        model = load_as_stored(directory).eval().to(device)
        if gpu and (directory / SPARSE_FILE).is_file():
            use_sparse_kernels(model)
        return TorchPredictor(model, read_labels(directory), pad_id_of(directory))


def prepare_device(threads: int, gpu: bool) -> str:
    """Name of the device to load onto. On the CPU the number of threads is set for the whole process.

    Raises:
        ResourceError: a GPU is asked for and there is none.
    """
    import torch

    if gpu and not torch.cuda.is_available():
        raise ResourceError("a GPU is asked for, and this process sees none", field="gpu")
    if not gpu:
        torch.set_num_threads(threads)
    return "cuda" if gpu else "cpu"


class TorchPredictor(PaddedPredictor):
    """A transformers model in evaluation mode. Rows of similar length share a forward pass.

    Args:
        model: may say in `call_tokens` how many tokens of padding are as dear as another forward pass.
        labels: label names in the order of the logits.
        pad_id: token id used for padding.
    """

    def __init__(self, model: Any, labels: list[str], pad_id: int) -> None:
        import torch

        on_cpu = model.device.type == "cpu"
        super().__init__(
            labels,
            pad_id,
            CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS,
            getattr(model, "call_tokens", CPU_CALL_TOKENS) if on_cpu else GPU_BATCH_TOKENS,
        )
        self.model = model
        self._autocast = not on_cpu and model.dtype == torch.float32

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `PaddedPredictor.forward`."""
        import torch

        device = self.model.device
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=self._autocast):
            tokens, attended = (torch.from_numpy(array).to(device) for array in (ids, mask))
            logits = self.call(tokens, attended)
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    def call(self, ids: Any, mask: Any) -> Any:
        """Logits, as tensors of the model's device."""
        # By name: the second argument of decoders is another one.
        return self.model(input_ids=ids, attention_mask=mask).logits
