"""Full precision on OpenVINO: no other weights, another engine."""

from pathlib import Path
from typing import ClassVar

from lspm_ray.compression.export import check_export, export
from lspm_ray.compression.method import Context, Method
from lspm_ray.library import Library
from lspm_ray.models.directory import read_variant, write_variant
from lspm_ray.models.shape import Shape


class Openvino(Method):
    """Export without changing a weight; for CPUs."""

    final: ClassVar[bool] = True
    needs: ClassVar[Library | None] = Library("openvino", "openvino")

    def check(self, shape: Shape) -> Shape:
        """See `check_export`."""
        return check_export(shape)

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write `model.onnx`, which OpenVINO reads as it is."""
        export(source, target, "fp32")
        write_variant(target, read_variant(target).model_copy(update={"runtime": "openvino"}))
