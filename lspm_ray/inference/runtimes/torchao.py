"""Run a model that torchao quantised."""

from pathlib import Path
from typing import Any, ClassVar

from lspm_ray.errors import ResourceError
from lspm_ray.inference.compiled import CompiledPredictor, check_compiler
from lspm_ray.inference.predictor import Predictor, Runtime, pad_id_of
from lspm_ray.inference.runtimes.torch import TorchPredictor, prepare_device
from lspm_ray.library import Library
from lspm_ray.models.directory import read_labels
from lspm_ray.models.quantized import load_quantized, read_quantization

_FP8_CAPABILITY = (8, 9)


class TorchaoRuntime(Runtime):
    """PyTorch with torchao's kernels: float32 between them on the CPU, bfloat16 on a GPU."""

    needs: ClassVar[Library | None] = Library("torchao", "torchao")

    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load, and compile if the variant says so.

        Raises:
            ResourceError: no GPU, one that cannot do what the variant needs, or no compiler on this machine.
            ModelError: the directory is not complete, or the model cannot be compiled.
        """
        import torch

        quantization = read_quantization(directory)
        if quantization.scheme == "fp8_dynamic":
            check_fp8(gpu)
        device = prepare_device(threads, gpu)
        if quantization.compile:
            check_compiler(device)
        model: Any = load_quantized(directory, torch.bfloat16 if gpu else torch.float32)
        model.to(device)
        labels, pad_id = read_labels(directory), pad_id_of(directory)
        if quantization.compile:
            return CompiledPredictor(model, labels, pad_id, threads)
        return TorchPredictor(model, labels, pad_id)


def check_fp8(gpu: bool) -> None:
    """Refuse to compute in fp8 where there is no such arithmetic.

    Raises:
        ResourceError: names the device that it takes.
    """
    import torch

    needed = "fp8 takes a GPU of compute capability 8.9 or more (Ada, Hopper or later)"
    if not gpu:
        raise ResourceError(f"{needed}, and the model is loaded on a CPU", field="gpu", value=gpu)
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < _FP8_CAPABILITY:
        raise ResourceError(
            f"{needed}, this one has {'.'.join(map(str, torch.cuda.get_device_capability()))}",
            field="gpu",
            value=torch.cuda.get_device_name(),
        )
