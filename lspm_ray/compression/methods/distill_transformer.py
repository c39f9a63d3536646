"""A shallower and narrower transformer, cut out of the full model and taught by its outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lspm_ray.compression.importance import Importance, highest, importance, sample
from lspm_ray.compression.method import Context, Method
from lspm_ray.compression.methods.distill_layers import Keep, choose, kept_of, take_layers
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, read_variant, save_model, write_variant
from lspm_ray.models.pruned import (
    Layer,
    PrunedForSequenceClassification,
    TrimmedEmbedding,
    bare,
    check_family,
    compact,
    encoder_layers,
    head_count,
    head_size,
    replace_embeddings,
    shrink,
)
from lspm_ray.models.shape import Shape, shape_of
from lspm_ray.models.source import read_config
from lspm_ray.training.config import DistillConfig, TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


class DistillTransformer(Method):
    """Keep the most important layers, hidden dimensions, heads and neurons, then distil.

    What stays starts with its weights (Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge
    Distillation", section 2; importance here is of first-order Taylor form, as in `prune`).

    Attributes:
        layers: transformer layers of the student; None for as many as the full model has.
        hidden_size: width between the layers; None for half.
        heads: attention heads of a layer; None for as many as keep their size.
        neurons: feed-forward neurons of a layer; None for as many per hidden dimension as the full model has.
        keep: which layers, see `distill_layers`.
        importance_rows: training rows that importance is measured on.
        train: how it is trained.
        distill: how it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    neurons: int | None = Field(None, ge=1)
    keep: Keep = "even"
    importance_rows: int = Field(256, ge=1)
    train: TrainConfig = TrainConfig(epochs=5, learning_rate=2e-4)
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits BERT-like models that are at least as deep and wide as the student in every respect.

        Raises:
            ModelError: another family, a student that is larger somewhere, or whose heads cannot share its width.
        """
        check_family(shape.family)
        made = self._student(shape)
        made.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return made

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the distilled student.

        Raises:
            ModelError: see `check`.
        """
        size = self._student(shape_of(read_config(source), str(source)))
        model, seed = load_model(source), self.train.seed
        kept, structure = choose(model, size.layers, self.keep, self.importance_rows, seed, context)
        shallow = take_layers(model, kept)
        context.report("measuring the importance of hidden dimensions, heads and neurons")
        scores = importance(shallow, sample(shallow, context, self.importance_rows, seed), context)
        start = target / "start"
        student = narrow(shallow, scores, size.hidden, size.heads, size.neurons)
        save_model(student, load_tokenizer(source), start)
        context.train(start, target, self.train, self.distill)
        layers = encoder_layers(student)
        structure |= {
            "hidden_size": size.hidden,
            "heads": [head_count(layer) for layer in layers],
            "neurons": [layer.intermediate.dense.out_features for layer in layers],
        }
        write_variant(target, Variant(structure=kept_of(read_variant(source), kept) | structure))

    def _student(self, shape: Shape) -> Shape:
        if not (shape.hidden and shape.heads):
            return replace(shape, layers=self.layers or shape.layers)  # not known before the model is loaded
        hidden = self.hidden_size or max(1, shape.hidden // 2)
        heads = self.heads or max(1, hidden * shape.heads // shape.hidden)
        neurons = self.neurons or max(1, hidden * shape.neurons // shape.hidden)
        layers = self.layers or shape.layers
        most = {
            "layers": (layers, shape.layers),
            "hidden_size": (hidden, shape.hidden),
            "heads": (heads, shape.heads),
            "neurons": (neurons, shape.neurons),
        }
        for name, (asked, limit) in most.items():
            if asked > limit:
                self._refuse(
                    f"a student is not larger than its teacher, which has {limit}", name, asked, f"1 to {limit}"
                )
        if hidden % heads:
            divisors = [str(count) for count in range(1, shape.heads + 1) if hidden % count == 0]
            self._refuse(f"heads must share the hidden size of {hidden} equally", "heads", heads, ", ".join(divisors))
        if hidden * shape.heads > heads * shape.hidden:
            least = -(-hidden * shape.heads // shape.hidden)
            self._refuse(
                f"{heads} heads would be wider ({hidden // heads}) than the teacher's ({shape.hidden // shape.heads})",
                "heads",
                heads,
                f"{least} to {shape.heads}",
            )
        return replace(shape, layers=layers, hidden=hidden, heads=heads, neurons=neurons)

    def _refuse(self, message: str, field: str, value: int, valid: str) -> None:
        raise ModelError(message, field=f"{self.name}.{field}", value=value, valid=[valid])


def narrow(model: PreTrainedModel, scores: Importance, hidden: int, heads: int, neurons: int) -> PreTrainedModel:
    """A copy of the model with the most important of its units, which keep their weights.

    Args:
        model: of a family that can be pruned.
        scores: see `importance`.
        hidden: dimensions between the layers.
        heads: per layer; a layer that has fewer keeps them all.
        neurons: per layer; likewise.
    """
    teacher = bare(model)
    student = _empty(teacher, hidden, heads, neurons)
    dimensions = highest(scores.hidden, hidden)
    for number, (new, old) in enumerate(zip(encoder_layers(student), encoder_layers(teacher), strict=True)):
        kept_heads = highest(scores.heads[number], min(heads, head_count(old)))
        kept_neurons = highest(scores.neurons[number], min(neurons, len(scores.neurons[number])))
        shrink(new, list(range(len(kept_heads))), list(range(len(kept_neurons))))
        _fill_attention(new, old, kept_heads, scores.channels[number], dimensions)
        _fill(new.intermediate.dense, old.intermediate.dense, kept_neurons, dimensions)
        _fill(new.output.dense, old.output.dense, dimensions, kept_neurons)
        for mine, theirs in ((new.attention.output, old.attention.output), (new.output, old.output)):
            _copy(mine.LayerNorm.weight, theirs.LayerNorm.weight[dimensions])
            _copy(mine.LayerNorm.bias, theirs.LayerNorm.bias[dimensions])
    _fill_rest(student, teacher, dimensions)
    return compact(student) if isinstance(model, PrunedForSequenceClassification) else student


def _empty(teacher: PreTrainedModel, hidden: int, heads: int, neurons: int) -> PreTrainedModel:
    """The student's architecture."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(teacher.config)
    if getattr(config, "embedding_size", None) == config.hidden_size:
        config.embedding_size = hidden
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, heads, neurons
    student: Any = AutoModelForSequenceClassification.from_config(config)
    table = teacher.get_input_embeddings()
    if isinstance(table, TrimmedEmbedding):
        width = student.get_input_embeddings().embedding_dim
        replace_embeddings(student, TrimmedEmbedding(len(table.rows), table.embedding.num_embeddings, width))
    made: PreTrainedModel = student.eval()
    return made


def _fill_attention(
    new: Layer, old: Layer, heads: list[int], channels: torch.Tensor, dimensions: Sequence[int]
) -> None:
    mine, theirs, size = getattr(new.attention, "self"), getattr(old.attention, "self"), head_size(new)
    # A score is the product of two channels: those count whose weights are large in both.
    products = theirs.query.weight.norm(dim=1) * theirs.key.weight.norm(dim=1)
    scored = _rows(heads, products.detach().unflatten(0, (-1, head_size(old))), size)
    carried = _rows(heads, channels, size)
    _fill(mine.query, theirs.query, scored, dimensions)
    _fill(mine.key, theirs.key, scored, dimensions)
    _fill(mine.value, theirs.value, carried, dimensions)
    _fill(new.attention.output.dense, old.attention.output.dense, dimensions, carried)
    # Scores are divided by the root of the head size, which has changed.
    scale = (size / head_size(old)) ** 0.5
    for parameter in (mine.query.weight, mine.query.bias):
        _copy(parameter, parameter * scale)


def _rows(heads: list[int], scores: torch.Tensor, size: int) -> list[int]:
    """Rows of a projection that belong to the best `size` channels of each of these heads."""
    width = scores.shape[1]
    return [head * width + channel for head in heads for channel in highest(scores[head], size)]


def _fill(new: nn.Linear, old: nn.Linear, rows: Sequence[int], columns: Sequence[int]) -> None:
    _copy(new.weight, old.weight[list(rows)][:, list(columns)])
    if old.bias is not None:
        _copy(new.bias, old.bias[list(rows)])


def _fill_rest(student: PreTrainedModel, teacher: PreTrainedModel, dimensions: Sequence[int]) -> None:
    """Embeddings and head: an axis whose length differs is one of hidden dimensions."""
    import torch

    layers, values = encoder_layers(student), teacher.state_dict()
    inside = tuple(f"{name}." for name, module in student.named_modules() if any(module is layer for layer in layers))
    index = torch.tensor(dimensions)
    for name, tensor in student.state_dict().items():
        if name.startswith(inside):
            continue
        value = values[name]
        for axis, (mine, theirs) in enumerate(zip(tensor.shape, value.shape, strict=True)):
            if mine != theirs:
                value = value.index_select(axis, index)
        _copy(tensor, value)


def _copy(target: torch.Tensor, value: torch.Tensor) -> None:
    import torch

    with torch.no_grad():
        target.copy_(value)
