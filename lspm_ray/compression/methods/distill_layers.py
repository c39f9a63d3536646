"""A shallower transformer, initialised from the full model's layers and taught by its outputs."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import load_model, load_tokenizer, save_model
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig, TrainConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class DistillLayers(Method):
    """Keep evenly spaced layers, then distil (Sanh et al. 2019, "DistilBERT", section 3).

    Attributes:
        layers: transformer layers of the student.
        train: how it is trained.
        distill: how it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    layers: int = Field(2, ge=1)
    train: TrainConfig = TrainConfig(epochs=3, learning_rate=1e-4)
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits a model of at least `layers` layers.

        Raises:
            ModelError: it has fewer, or its result fewer than `train.frozen_layers`.
        """
        _check_count(shape.layers, self.layers)
        made = replace(shape, layers=self.layers)
        made.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return made

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the distilled student.

        Raises:
            ModelError: the model has fewer layers than asked for, or none that can be told apart.
        """
        model = load_model(source)
        start = target / "start"
        save_model(keep_layers(model, self.layers), load_tokenizer(source), start)
        context.train(start, target, self.train, self.distill)


def keep_layers(model: "PreTrainedModel", count: int) -> "PreTrainedModel":
    """A copy of `model` with `count` of its transformer layers, first and last included where count > 1.

    Raises:
        ModelError: fewer layers than `count`, or the layers cannot be found.
    """
    from torch import nn

    student = copy.deepcopy(model)
    total = int(getattr(student.config, "num_hidden_layers", 0) or 0)
    _check_count(total, count)
    lists = [(p, n, m) for p in student.modules() for n, m in p.named_children() if _is_stack(m, total)]
    if len(lists) != 1:
        raise ModelError(
            f"found {len(lists)} stacks of {total} layers, need exactly one",
            field="model_type",
            value=student.config.model_type,
        )
    parent, name, stack = lists[0]
    layers = list(stack.children())
    kept = np.unique(np.linspace(0, total - 1, count).round().astype(int)) if count > 1 else [0]
    setattr(parent, name, nn.ModuleList(layers[int(index)] for index in kept))
    student.config.num_hidden_layers = count
    return student


def _check_count(total: int, count: int) -> None:
    if total < count:
        raise ModelError(f"the model has {total} layers", field="distill_layers.layers", value=count)


def _is_stack(module: "nn.Module", total: int) -> bool:
    from torch import nn

    return isinstance(module, nn.ModuleList) and len(module) == total
