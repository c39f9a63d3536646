"""Dynamic int8 quantisation on ONNX Runtime."""

from pathlib import Path
from typing import ClassVar

from lspm_ray.compression.export import export, quantize_dynamic
from lspm_ray.compression.method import Context, Method


class QuantizeInt8(Method):
    """Weights int8 per channel ahead of time, activations int8 at run time; needs no data."""

    final: ClassVar[bool] = True

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write a quantised `model.onnx`."""
        quantize_dynamic(export(source, target, "int8"))
