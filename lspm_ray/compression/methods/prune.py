"""Structured pruning: whole attention heads and feed-forward neurons go, the rest is trained to make up for them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lspm_ray.compression.importance import highest, importance, sample
from lspm_ray.compression.method import Context, Method
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, read_variant, save_model, write_variant
from lspm_ray.models.pruned import PrunedConfig, check_family, compact, encoder_layers, head_count, shrink
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig, TrainConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Scope = Literal["layer", "global"]


class Prune(Method):
    """Remove the least important heads and neurons by first-order Taylor importance.

    Importance of a unit is the mean absolute product of its activation and the loss gradient (Molchanov et al. 2017;
    for heads: Michel et al. 2019).

    Attributes:
        heads: share of attention heads removed; at least one stays in each layer.
        neurons: share of feed-forward neurons removed; at least one stays in each layer.
        scope: `layer` removes the same share from every layer; `global` what is least important in the whole model,
            importance in a layer having norm 1 (Molchanov et al. 2017, section 2.2).
        steps: the share is reached in so many equal parts, each measured anew and followed by `train`, which so costs
            as many times as much.
        importance_rows: training rows that importance is measured on.
        train: recovery fine-tuning.
        distill: recovery learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    heads: float = Field(1 / 3, ge=0, lt=1)
    neurons: float = Field(0.5, ge=0, lt=1)
    scope: Scope = "layer"
    steps: int = Field(1, ge=1, le=100)
    importance_rows: int = Field(256, ge=1)
    train: TrainConfig = TrainConfig(epochs=1, learning_rate=5e-5)
    distill: DistillConfig = DistillConfig()

    @model_validator(mode="after")
    def _removes_something(self) -> Self:
        if not self.heads and not self.neurons:
            raise ValueError("nothing would be removed: set heads or neurons to more than 0")
        return self

    def check(self, shape: Shape) -> Shape:
        """Fits BERT-like models, those already pruned included.

        Raises:
            ModelError: the model's family is not supported, or `train.frozen_layers` is more than none.
        """
        check_family(shape.family)
        made = replace(shape, model_type=PrunedConfig.model_type, inside=shape.family)
        made.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return made

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the pruned and recovered model.

        Raises:
            ModelError: the model's family is not supported.
        """
        heads, neurons = _units(load_model(source))
        with tempfile.TemporaryDirectory() as temporary:
            met = source
            for step in range(1, self.steps + 1):
                made = target if step == self.steps else Path(temporary) / str(step)
                made.mkdir(exist_ok=True)
                part = step / self.steps
                self._step(met, made, context, _left(heads, self.heads * part), _left(neurons, self.neurons * part))
                met = made
        heads, neurons = _units(load_model(target))
        structure = (read_variant(source).structure or {}) | {"heads": heads, "neurons": neurons}
        write_variant(target, Variant(structure=structure))

    def _step(self, source: Path, target: Path, context: Context, heads: list[int], neurons: list[int]) -> None:
        """Prune to so many heads and neurons per layer, or in the whole model as many as these together."""
        model = load_model(source)
        layers = encoder_layers(model)
        context.report("measuring the importance of heads and neurons")
        rows = sample(model, context, self.importance_rows, self.train.seed)
        scores = importance(model, rows, context)
        kept_heads = keep_best(scores.heads, heads, self.scope)
        kept_neurons = keep_best(scores.neurons, neurons, self.scope)
        for layer, stay_heads, stay_neurons in zip(layers, kept_heads, kept_neurons, strict=True):
            shrink(layer, stay_heads, stay_neurons)
        start = target / "start"
        save_model(compact(model), load_tokenizer(source), start)
        context.train(start, target, self.train, self.distill)


def keep_best(scores: Sequence[torch.Tensor], counts: Sequence[int], scope: Scope) -> list[list[int]]:
    """Positions of the units that stay, per layer.

    Args:
        scores: importance of the units of each layer.
        counts: units that stay in each layer; with scope `global` their sum, wherever they are.
        scope: see `Prune`.
    """
    if scope == "layer":
        return [highest(layer, count) for layer, count in zip(scores, counts, strict=True)]
    import torch

    scaled = [layer / layer.norm().clamp(min=torch.finfo(layer.dtype).tiny) for layer in scores]
    for layer in scaled:
        layer[layer.argmax()] = torch.inf  # no layer may be left without any
    chosen = set(highest(torch.cat(scaled), sum(counts)))
    starts = [sum(len(layer) for layer in scaled[:number]) for number in range(len(scaled))]
    return [
        [unit for unit in range(len(layer)) if start + unit in chosen]
        for start, layer in zip(starts, scaled, strict=True)
    ]


def _units(model: PreTrainedModel) -> tuple[list[int], list[int]]:
    """Heads and neurons of each layer."""
    layers = encoder_layers(model)
    return [head_count(layer) for layer in layers], [layer.intermediate.dense.out_features for layer in layers]


def _left(units: list[int], removed: float) -> list[int]:
    return [max(1, round(count * (1 - removed))) for count in units]
