"""Structured pruning: whole attention heads and feed-forward neurons go, the rest is trained to make up for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lspm_ray.compression.method import Context, Method
from lspm_ray.corpus.shards import split_files
from lspm_ray.models.directory import load_model, load_tokenizer, save_model
from lspm_ray.models.pruned import (
    Layer,
    PrunedConfig,
    PrunedForSequenceClassification,
    check_family,
    encoder_layers,
    head_count,
    head_size,
    shrink,
)
from lspm_ray.models.shape import Shape
from lspm_ray.training.batches import TRAIN_COLUMNS, batches
from lspm_ray.training.config import DistillConfig, TrainConfig
from lspm_ray.training.trainer import file_chunks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Prune(Method):
    """Remove the least important heads and neurons of every layer by first-order Taylor importance.

    Importance of a unit is the mean absolute product of its activation and the loss gradient (Molchanov et al. 2017;
    for heads: Michel et al. 2019). Every layer loses the same share, so that all stay fast.

    Attributes:
        heads: share of attention heads removed from each layer; at least one stays.
        neurons: share of feed-forward neurons removed from each layer; at least one stays.
        importance_rows: training rows that importance is measured on.
        train: recovery fine-tuning.
        distill: recovery learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    heads: float = Field(1 / 3, ge=0, lt=1)
    neurons: float = Field(0.5, ge=0, lt=1)
    importance_rows: int = Field(256, ge=1)
    train: TrainConfig = TrainConfig(epochs=1, learning_rate=5e-5)
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits BERT-like models and those already pruned; the layers of its result can no longer be left out.

        Raises:
            ModelError: the model's family is not supported, or `train.frozen_layers` is more than none.
        """
        if shape.model_type != PrunedConfig.model_type:
            check_family(shape.model_type)
        made = replace(shape, model_type=PrunedConfig.model_type, layers=0)
        made.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return made

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the pruned and recovered model.

        Raises:
            ModelError: the model's family is not supported.
        """
        model = load_model(source)
        encoder_layers(model)
        context.report("prune: measuring the importance of heads and neurons")
        heads, neurons = importance(model, self._batches(model, context), context)
        start = target / "start"
        save_model(self._pruned(model, heads, neurons), load_tokenizer(source), start)
        context.train(start, target, self.train, self.distill)

    def _batches(self, model: PreTrainedModel, context: Context) -> Iterator[dict[str, torch.Tensor]]:
        size = min(32, self.importance_rows)
        chunks = file_chunks(split_files(context.data, "train"), TRAIN_COLUMNS, self.importance_rows)
        stream = batches(chunks, size, int(model.config.pad_token_id or 0), self.train.seed, 0)
        return itertools.islice(stream, -(-self.importance_rows // size))

    def _pruned(
        self, model: PreTrainedModel, heads: list[torch.Tensor], neurons: list[torch.Tensor]
    ) -> PrunedForSequenceClassification:
        layers = encoder_layers(model)
        for layer, head_scores, neuron_scores in zip(layers, heads, neurons, strict=True):
            shrink(layer, _best(head_scores, self.heads), _best(neuron_scores, self.neurons))
        base = model.config.to_dict()
        config = PrunedConfig(
            base=base | {"model_type": model.config.model_type},
            heads=[head_count(layer) for layer in layers],
            neurons=[layer.intermediate.dense.out_features for layer in layers],
            id2label=model.config.id2label,
            label2id=model.config.label2id,
            pad_token_id=model.config.pad_token_id,
            vocab_size=model.config.vocab_size,
        )
        pruned = PrunedForSequenceClassification(config)
        pruned.inner.load_state_dict(model.state_dict())
        return pruned


def importance(
    model: PreTrainedModel, stream: Iterator[dict[str, torch.Tensor]], context: Context
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Importance of every head [heads] and neuron [neurons] of each layer, averaged over the batches."""
    import torch

    torch.set_num_threads(context.threads)
    layers, model = encoder_layers(model), model.eval()
    taps = [_Tap(layer) for layer in layers]
    for batch in stream:
        model.zero_grad(set_to_none=True)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        context.task.loss(logits, batch).backward()
        for tap in taps:
            tap.collect()
    for tap in taps:
        tap.remove()
    model.zero_grad(set_to_none=True)
    return [tap.heads for tap in taps], [tap.neurons for tap in taps]


class _Tap:
    """Listens to what enters a layer's two output projections: the heads' and the neurons' activations."""

    def __init__(self, layer: Layer) -> None:
        import torch

        self._size = head_size(layer)
        self.heads = torch.zeros(head_count(layer))
        self.neurons = torch.zeros(layer.intermediate.dense.out_features)
        self._inputs: dict[str, torch.Tensor] = {}
        self._hooks = [
            layer.attention.output.dense.register_forward_pre_hook(self._keep("heads")),
            layer.output.dense.register_forward_pre_hook(self._keep("neurons")),
        ]

    def _keep(self, name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            inputs[0].retain_grad()
            self._inputs[name] = inputs[0]

        return hook

    def collect(self) -> None:
        import torch

        for name, tensor in self._inputs.items():
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            effect = (tensor * gradient).detach().flatten(0, 1)
            if name == "heads":
                self.heads += effect.unflatten(1, (-1, self._size)).sum(2).abs().mean(0)
            else:
                self.neurons += effect.abs().mean(0)
        self._inputs.clear()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _best(scores: torch.Tensor, removed: float) -> list[int]:
    keep = max(1, round(len(scores) * (1 - removed)))
    return sorted(scores.argsort(descending=True, stable=True)[:keep].tolist())
