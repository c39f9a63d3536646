"""What the two int8 methods share: which parts they leave in float."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from lspm_ray.artifact import Artifact
from lspm_ray.compression.calibration import check_rows, training_rows
from lspm_ray.compression.export import check_export
from lspm_ray.compression.graph import Graph, save
from lspm_ray.compression.int8 import Int8, Ranges
from lspm_ray.compression.method import Context, Method
from lspm_ray.compression.sensitivity import measure_sensitivity, write_sensitivity
from lspm_ray.models.shape import Shape
from lspm_ray.tasks import Encoded


class MixedInt8(Method):
    """Int8 weights, with the parts that bear it least left in float.

    How much is left in float is said by the change that is allowed and not by a number of parts: the number means
    something else in every model, and is what one wants to find out. A part is the attention or the feed-forward half
    of a layer, the embeddings, or what comes after the layers; `sensitivity.json` shows them all.

    Attributes:
        reduce_range: seven bits instead of eight for weights. Needed on machines without VNNI instructions, where sums
            of eight bits can overflow; on others it makes no clear difference (MiniLM-L6), and the variant may be
            served on another machine than it was made on.
        max_divergence: how far the answers may be from those of the float model, in nats (mean KL divergence on
            training rows); the most sensitive parts stay float until that holds, all of them if it must be. None
            quantises everything and measures nothing.
        sensitivity_rows: training rows that it is measured on.
    """

    final: ClassVar[bool] = True

    reduce_range: bool = True
    max_divergence: float | None = Field(None, gt=0)
    sensitivity_rows: int = Field(128, ge=16)

    def check(self, shape: Shape) -> Shape:
        """See `check_export`."""
        return check_export(shape)

    def check_data(self, data: Artifact) -> None:
        """See `Method.check_data`.

        Raises:
            ConfigError: there are fewer training rows than asked for.
        """
        if self.max_divergence is not None:
            check_rows(data, self.sensitivity_rows, f"{self.name}.sensitivity_rows")

    def write(self, graph: Graph, file: Path, ranges: Ranges | None, first: int, context: Context) -> None:
        """Quantise a graph into a file, `sensitivity.json` beside it if `max_divergence` is set.

        Args:
            graph: in float.
            file: to write.
            ranges: of the activations, or None.
            first: training rows to leave out.
            context: of `apply`.
        """

        def rule() -> Int8:
            return Int8(graph, self.reduce_range, ranges)

        parts = list(graph.parts(rule()))
        if self.max_divergence is not None:
            rows: list[Encoded] = training_rows(context.data, first + self.sensitivity_rows)[first:]
            table = measure_sensitivity(graph, rule, rows, self.max_divergence, context.threads, context.report)
            write_sensitivity(file.parent, table)
            parts = [part.part for part in table.parts if not part.kept]
        save(graph.rebuilt(rule(), parts), file)
