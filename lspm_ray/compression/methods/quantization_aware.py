"""Quantisation-aware fine-tuning: the model learns to live with int8 before it is made int8."""

from pathlib import Path
from typing import ClassVar

from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import load_model, load_tokenizer, save_model
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig, TrainConfig


class QuantizationAware(Method):
    """Fine-tune with the rounding that `quantize_int8` will do, distilling from the full model.

    Quantisation-aware training (Jacob et al. 2018, section 3). Its result is a model in full precision; use it as
    `[quantization_aware, quantize_int8]`. The best epoch is the one whose rounded model is best.

    Attributes:
        train: how it is trained.
        distill: it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(epochs=1, learning_rate=2e-5)
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits transformers: of other models the runtime rounds other things.

        Raises:
            ModelError: the model has no transformer layers, or fewer than `train.frozen_layers`.
        """
        if not shape.layers:
            raise ModelError("the model has no transformer layers", field="model_type", value=shape.family)
        shape.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return shape

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the fine-tuned model in full precision."""
        from lspm_ray.training.reparametrizations.fake_quantization import FakeQuantization

        start = target / "start"
        save_model(load_model(source), load_tokenizer(source), start)
        context.train(start, target, self.train, self.distill, FakeQuantization())
