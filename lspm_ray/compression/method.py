"""The contract of a compression method."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from lspm_ray.artifact import Artifact
from lspm_ray.library import Library
from lspm_ray.models.shape import Shape
from lspm_ray.plugin import Plugin
from lspm_ray.progress import Report
from lspm_ray.tasks import Task
from lspm_ray.training.config import DistillConfig, TrainConfig
from lspm_ray.training.reparametrization import Reparametrization


class Train(Protocol):
    """Trains a model for a method."""

    def __call__(
        self,
        start: Path,
        target: Path,
        config: TrainConfig,
        distill: DistillConfig | None,
        reparametrization: Reparametrization | None = None,
    ) -> None:
        """Train the model directory `start` and write the best epoch to `target`; weights may be shaped on the way."""


@dataclass(frozen=True)
class Context:
    """What a method may use beside the model.

    Attributes:
        task: the task the model is for.
        data: the prepared corpus.
        train: trains a model directory, which must lie in the method's target.
        threads: CPU threads of this process.
        report: progress.
    """

    task: Task
    data: Artifact
    train: Train
    threads: int
    report: Report


class Method(Plugin):
    """One step of a recipe: makes a smaller or faster model directory from another.

    Class attributes:
        needs_teacher: whether it learns from the full model's outputs on the training rows.
        final: whether its result can only be run, not changed any further.
        needs: the optional library it cannot do without.
    """

    package: ClassVar[str] = "lspm_ray.compression.methods"
    kind: ClassVar[str] = "method"
    needs_teacher: ClassVar[bool] = False
    final: ClassVar[bool] = False
    needs: ClassVar[Library | None] = None

    @property
    def needs_gpu(self) -> bool:
        """Whether the result can only be run on a GPU."""
        return False

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU would do something for it: it trains, or its result runs on one alone."""
        return self.needs_gpu or hasattr(self, "train")

    @property
    def distillation(self) -> DistillConfig | None:
        """Its field `distill`; None of a method that has none."""
        found = getattr(self, "distill", None)
        return found if isinstance(found, DistillConfig) else None

    @property
    def learns_unlabelled(self) -> bool:
        """Whether it learns from rows without labels too."""
        return self.needs_teacher and self.distillation is not None and self.distillation.unlabelled

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
