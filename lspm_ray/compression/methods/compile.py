"""The same weights, compiled by PyTorch."""

from pathlib import Path
from typing import ClassVar

from lspm_ray.compression.method import Context, Method
from lspm_ray.models.directory import read_variant, write_variant
from lspm_ray.models.source import copy


class Compile(Method):
    """Run with `torch.compile`; the graphs are made on every machine that loads the model.

    For GPUs. On a CPU, where most of the time goes into matrix products that are the same either way, a MiniLM gained
    nothing in float32.
    """

    final: ClassVar[bool] = True

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the model as it is, for another runtime."""
        copy(source, target)
        write_variant(target, read_variant(source).model_copy(update={"runtime": "torch_compile"}))
