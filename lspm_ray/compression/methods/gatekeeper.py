"""A last phase of training that makes a model confident only where it is right, so that a cascade escalates less."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from lspm_ray.compression.method import Context, Method
from lspm_ray.models.directory import load_model, load_tokenizer, save_model
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig, GatekeeperConfig, TrainConfig


class Gatekeeper(Method):
    """Go on training with less confidence in wrong answers (Rabanser et al. 2025, "Gatekeeper", section 3).

    The model keeps its architecture and speed. Put it after a student has been distilled:
    `[distill_layers, gatekeeper, quantize_int8]`.

    Attributes:
        alpha: see `GatekeeperConfig`.
        wrong_when: see `GatekeeperConfig`.
        train: how it is trained.
        distill: the loss of the rows that are right; `weight: 0` is the paper's cross-entropy.
    """

    needs_teacher: ClassVar[bool] = True

    alpha: float = Field(0.5, gt=0, lt=1)
    wrong_when: Literal["regret", "disagreement", "label"] = "regret"
    train: TrainConfig = TrainConfig(epochs=2, learning_rate=3e-5, metric="selective_accuracy")
    distill: DistillConfig = DistillConfig(temperature=1.0)

    @field_validator("distill")
    @classmethod
    def _said_once(cls, distill: DistillConfig) -> DistillConfig:
        if distill.gatekeeper is not None:
            raise ValueError("set alpha and wrong_when of the method itself, not distill.gatekeeper")
        return distill

    def check(self, shape: Shape) -> Shape:
        """Fits every model.

        Raises:
            ModelError: the model has fewer layers than `train.frozen_layers`.
        """
        shape.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return shape

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the model with new weights."""
        start = target / "start"
        save_model(load_model(source), load_tokenizer(source), start)
        keeper = GatekeeperConfig(alpha=self.alpha, wrong_when=self.wrong_when)
        context.train(start, target, self.train, self.distill.model_copy(update={"gatekeeper": keeper}))
