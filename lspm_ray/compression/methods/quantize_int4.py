"""Int4 weights on ONNX Runtime."""

from pathlib import Path
from typing import ClassVar, Literal

from lspm_ray.compression.export import check_export, export
from lspm_ray.compression.graph import rewrite
from lspm_ray.compression.int4 import Int4
from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.models.shape import Shape


class QuantizeInt4(Method):
    """Weights of four bits, the table of embeddings included; activations stay float32. Needs no data.

    It is about size: a sixth of float32 (MiniLM-L6: 14.7 of 90.9 MB). It is not about speed: every product unpacks its
    weights first, so one text takes as long as in float32 and 2.4 times as long as with `quantize_int8` (AVX-512; more
    without it).

    Attributes:
        block_size: weights that share a scale. Larger blocks are smaller files and less exact.
    """

    final: ClassVar[bool] = True

    block_size: Literal[16, 32, 64, 128, 256] = 32

    def check(self, shape: Shape) -> Shape:
        """Fits transformers.

        Raises:
            ModelError: a bag of n-grams, or an LSTM, for which ONNX Runtime has no product of four bits.
        """
        if shape.family == "lspm_lstm":
            raise ModelError(
                "the weights of an LSTM cannot have four bits",
                field="model_type",
                value=shape.family,
                hint="Take quantize_int8",
            )
        return check_export(shape)

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write a quantised `model.onnx`."""
        rewrite(export(source, target, "int4"), lambda graph: Int4(graph, self.block_size))
