"""Dynamic int8 quantisation on ONNX Runtime."""

from pathlib import Path

from lspm_ray.compression.export import export
from lspm_ray.compression.graph import Graph, load
from lspm_ray.compression.method import Context
from lspm_ray.compression.mixed import MixedInt8


class QuantizeInt8(MixedInt8):
    """Weights int8 per channel ahead of time, activations int8 at run time; needs no data."""

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write a quantised `model.onnx`.

        Raises:
            UserError: see `check` and `check_data`.
        """
        self.check_data(context.data)
        file = export(source, target, "int8")
        self.write(Graph(load(file)), file, None, 0, context)
