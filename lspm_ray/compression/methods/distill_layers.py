"""A shallower transformer, initialised from the full model's layers and taught by its outputs."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from lspm_ray.compression.importance import least_missed_layers, sample, stack
from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, read_variant, save_model, write_variant
from lspm_ray.models.pruned import PrunedForSequenceClassification, bare, compact
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Keep = Literal["even", "first", "importance"]
_NOT_ONE_STACK = ("albert", "bart", "longt5", "mbart", "mt5", "pegasus", "t5", "umt5")
"""Families whose layers share their weights, or that have a decoder too."""


class DistillLayers(Method):
    """Keep some layers, then distil (Sanh et al. 2019, "DistilBERT", section 3).

    Attributes:
        layers: transformer layers of the student.
        keep: which ones: evenly spaced, the first, or those without which the answers change most, which takes
            forward passes over `importance_rows` rows for every layer that is left, as often as one is removed.
        importance_rows: training rows that the change is measured on.
        train: how it is trained.
        distill: how it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    layers: int = Field(2, ge=1)
    keep: Keep = "even"
    importance_rows: int = Field(128, ge=1)
    train: TrainConfig = TrainConfig(epochs=3, learning_rate=1e-4)
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits a model of at least `layers` layers.

        Raises:
            ModelError: it has fewer, or no single stack of them, or its result has fewer than `train.frozen_layers`.
        """
        if shape.family in _NOT_ONE_STACK:
            raise ModelError("the model has not one stack of layers", field="model_type", value=shape.family)
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
        kept, structure = choose(model, self.layers, self.keep, self.importance_rows, self.train.seed, context)
        start = target / "start"
        save_model(take_layers(model, kept), load_tokenizer(source), start)
        context.train(start, target, self.train, self.distill)
        write_variant(target, Variant(structure=kept_of(read_variant(source), kept) | structure))


def choose(
    model: "PreTrainedModel", count: int, keep: Keep, rows: int, seed: int, context: Context
) -> tuple[list[int], dict[str, Any]]:
    """The layers to keep, and what is to be remembered about the choice.

    Raises:
        ModelError: the model has fewer than `count`, or none that can be told apart.
    """
    total = _count(model)
    _check_count(total, count)
    if keep == "even":
        return evenly(total, count), {}
    if keep == "first":
        return list(range(count)), {}
    context.report("measuring what the answers lose without each layer")
    removed = least_missed_layers(model, count, sample(model, context, rows, seed), context)
    gone = [layer for layer, _ in removed]
    return [layer for layer in range(total) if layer not in gone], {"removed_layers": removed}


def kept_of(before: Variant, kept: Sequence[int]) -> dict[str, Any]:
    """What is left of the full model when these of its, or of an earlier student's, layers are kept."""
    structure = dict(before.structure or {})
    names = structure.get("layers")
    structure["layers"] = [int(layer) if names is None else names[layer] for layer in kept]
    for part in ("heads", "neurons"):
        if part in structure:
            structure[part] = [structure[part][layer] for layer in kept]
    return structure


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` layers, first and last included where count > 1."""
    return [int(index) for index in np.linspace(0, total - 1, count).round()] if count > 1 else [0]


def keep_layers(model: "PreTrainedModel", count: int) -> "PreTrainedModel":
    """A copy of `model` with `count` of its transformer layers, evenly spaced.

    Raises:
        ModelError: fewer layers than `count`, or the layers cannot be found.
    """
    total = _count(model)
    _check_count(total, count)
    return take_layers(model, evenly(total, count))


def take_layers(model: "PreTrainedModel", kept: Sequence[int]) -> "PreTrainedModel":
    """A copy of `model` with these of its transformer layers.

    Raises:
        ModelError: the layers cannot be found.
    """
    student = copy.deepcopy(model)
    whole = stack(student)
    whole.put(whole.layers[index] for index in kept)
    bare(student).config.num_hidden_layers = len(kept)
    return compact(student) if isinstance(student, PrunedForSequenceClassification) else student


def _count(model: "PreTrainedModel") -> int:
    return int(getattr(bare(model).config, "num_hidden_layers", 0) or 0)


def _check_count(total: int, count: int) -> None:
    if total < count:
        raise ModelError(f"the model has {total} layers", field="distill_layers.layers", value=count)
