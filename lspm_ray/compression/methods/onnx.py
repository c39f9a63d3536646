"""Full-precision ONNX Runtime with fused attention: no other weights, another engine."""

from pathlib import Path
from typing import ClassVar

from lspm_ray.compression.export import check_export, export
from lspm_ray.compression.method import Context, Method
from lspm_ray.models.shape import Shape


class Onnx(Method):
    """Export without changing a weight."""

    final: ClassVar[bool] = True

    def check(self, shape: Shape) -> Shape:
        """See `check_export`."""
        return check_export(shape)

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write `model.onnx`."""
        export(source, target, "fp32")
