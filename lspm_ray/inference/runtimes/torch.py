"""Run a model with PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ResourceError
from lspm_ray.inference.batching import CPU_BATCH_TOKENS, CPU_CALL_TOKENS, GPU_BATCH_TOKENS, micro_batches, pad
from lspm_ray.inference.predictor import Predictor, Runtime, pad_id_of
from lspm_ray.models.directory import load_model, read_labels
from lspm_ray.models.sparse import SPARSE_FILE, use_sparse_kernels
from lspm_ray.tasks import Encoded


class TorchRuntime(Runtime):
    """Eager PyTorch in float32 on the CPU, bfloat16 autocast on a GPU."""

    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load onto the device. On the CPU the number of threads is set for the whole process.

        Raises:
            ResourceError: a GPU is asked for and there is none.
        """
        import torch

        if gpu and not torch.cuda.is_available():
            raise ResourceError("a GPU is asked for, and this process sees none", field="gpu")
        if not gpu:
            torch.set_num_threads(threads)
        model = load_model(directory).eval().to("cuda" if gpu else "cpu")
        if gpu and (directory / SPARSE_FILE).is_file():
            use_sparse_kernels(model)
        return TorchPredictor(model, read_labels(directory), pad_id_of(directory))


class TorchPredictor(Predictor):
    """A transformers model in evaluation mode. Rows of similar length share a forward pass.

    Args:
        model: may say in `call_tokens` how many tokens of padding are as dear as another forward pass.
        labels: label names in the order of the logits.
        pad_id: token id used for padding.
    """

    def __init__(self, model: Any, labels: list[str], pad_id: int) -> None:
        super().__init__(labels)
        self.model = model
        self.pad_id = pad_id
        on_cpu = model.device.type == "cpu"
        self._max_tokens = CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS
        self._call_tokens = getattr(model, "call_tokens", CPU_CALL_TOKENS) if on_cpu else GPU_BATCH_TOKENS

    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        logits = np.empty((len(batch), len(self.labels)), dtype=np.float32)
        for rows in micro_batches([len(example) for example in batch], self._max_tokens, self._call_tokens):
            ids, mask = pad([batch[row] for row in rows], self.pad_id)
            logits[rows] = self.forward(ids, mask)
        return logits

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """One forward pass: logits [rows, labels] for padded token ids and their mask, both [rows, tokens]."""
        import torch

        device = self.model.device
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            tokens, attended = (torch.from_numpy(array).to(device) for array in (ids, mask))
            # By name: the second argument of decoders is another one.
            logits = self.model(input_ids=tokens, attention_mask=attended).logits
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result
