"""The contract of a compression method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lspm_ray.artifact import Artifact
from lspm_ray.models.shape import Shape
from lspm_ray.plugin import Plugin
from lspm_ray.progress import Report
from lspm_ray.tasks import Task
from lspm_ray.training.config import DistillConfig, TrainConfig


@dataclass(frozen=True)
class Context:
    """What a method may use beside the model.

    Attributes:
        task: the task the model is for.
        data: the prepared corpus.
        train: trains the model directory given first and writes the best epoch to the one given second.
        threads: CPU threads of this process.
        report: progress.
    """

    task: Task
    data: Artifact
    train: Callable[[Path, Path, TrainConfig, DistillConfig | None], None]
    threads: int
    report: Report


class Method(Plugin):
    """One step of a recipe: makes a smaller or faster model directory from another.

    Class attributes:
        needs_teacher: whether it learns from the full model's outputs on the training rows.
        final: whether its result can only be run, not changed any further.
    """

    package: ClassVar[str] = "lspm_ray.compression.methods"
    kind: ClassVar[str] = "method"
    needs_teacher: ClassVar[bool] = False
    final: ClassVar[bool] = False

    def check(self, shape: Shape) -> Shape:
        """Refuse a model that the method does not fit, before anything is trained.

        Args:
            shape: of the model it would be applied to.

        Returns:
            The shape of the result, for the next step of the recipe.

        Raises:
            UserError: the method does not fit this model.
        """
        return shape

    def check_data(self, data: Artifact) -> None:
        """Refuse a corpus that the method cannot work with, before anything is trained.

        Args:
            data: the prepared corpus.

        Raises:
            UserError: there is not enough of it.
        """
        return

    @abstractmethod
    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write a model directory to `target` (empty), with `variant.json` if it is not run by plain torch.

        Raises:
            UserError: the method does not fit this model.
        """
