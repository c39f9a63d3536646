"""Static int8 quantisation on ONNX Runtime."""

from pathlib import Path

from pydantic import Field

from lspm_ray.artifact import Artifact
from lspm_ray.compression.calibration import Calibration, check_rows, collect_ranges, training_rows
from lspm_ray.compression.export import export
from lspm_ray.compression.graph import Graph, load
from lspm_ray.compression.method import Context
from lspm_ray.compression.mixed import MixedInt8
from lspm_ray.errors import ModelError
from lspm_ray.models.shape import Shape


class QuantizeStatic(MixedInt8):
    """Weights int8 per channel, activations int8 with scales that training rows fix ahead of time.

    One scale serves all rows, so a row's answer does not depend on what shares its run, as it does with
    `quantize_int8` (docs/decisions/one-row-per-run.md): rows could share a run. No range is computed at run time, which
    gains little: MiniLM-L6 at 64 tokens takes 4.9 ms, 5.0 with `quantize_int8` and 12.2 in float32 (one thread). The
    price: activations beyond those of the calibration rows are clipped.

    `minmax` is the default for a reason: transformers need their few very large activations. On 400 reviews logits were
    off by 0.034 in the mean with it (0.032 with `quantize_int8`), by 0.10 with 99.99 per cent of the values, by 0.20
    with `entropy`. Softmax, LayerNorm, GELU and the sums of embeddings stay float: see `lspm_ray.compression.int8`.

    Attributes:
        calibration_rows: training rows that the scales are taken from; sensitivity is measured on the rows after them.
        calibration: see `collect_ranges`.
        percentile: percentage of a tensor's values inside its range; for `percentile` only.
    """

    calibration_rows: int = Field(256, ge=32)
    calibration: Calibration = "minmax"
    percentile: float = Field(99.99, gt=90, le=100)

    def check(self, shape: Shape) -> Shape:
        """Fits transformers.

        Raises:
            ModelError: a bag of n-grams, or an LSTM, which ONNX Runtime quantises at run time only.
        """
        if shape.family == "lspm_lstm":
            raise ModelError(
                "an LSTM cannot have fixed scales",
                field="model_type",
                value=shape.family,
                hint="Take quantize_int8",
            )
        return super().check(shape)

    def check_data(self, data: Artifact) -> None:
        """See `Method.check_data`.

        Raises:
            ConfigError: there are fewer training rows than asked for.
        """
        check_rows(data, self.calibration_rows, f"{self.name}.calibration_rows")
        if self.max_divergence is not None:
            wanted = self.calibration_rows + self.sensitivity_rows
            check_rows(data, wanted, f"{self.name}.calibration_rows + sensitivity_rows")

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write a quantised `model.onnx`.

        Raises:
            UserError: see `check` and `check_data`.
        """
        self.check_data(context.data)
        file = export(source, target, "int8")
        graph = Graph(load(file))
        rows = training_rows(context.data, self.calibration_rows)
        ranges = collect_ranges(graph, rows, self.calibration, self.percentile, context.threads)
        self.write(graph, file, ranges, self.calibration_rows, context)
