"""Run a model with PyTorch, compiled."""

from pathlib import Path

from lspm_ray.inference.compiled import CompiledPredictor, check_compiler
from lspm_ray.inference.predictor import Predictor, Runtime, pad_id_of
from lspm_ray.inference.runtimes.torch import prepare_device
from lspm_ray.models.directory import load_as_stored, read_labels


class TorchCompileRuntime(Runtime):
    """As the runtime `torch`, compiled by TorchInductor. Loading takes a minute or two where nothing is cached."""

    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load and compile.

        Raises:
            ResourceError: no GPU, or no compiler on this machine.
            ModelError: the model cannot be compiled.
        """
        device = prepare_device(threads, gpu)
        check_compiler(device)
        model = load_as_stored(directory).eval().to(device)
        return CompiledPredictor(model, read_labels(directory), pad_id_of(directory), threads)
