"""What a model could do without: importance of its heads, neurons, hidden dimensions and layers, on training rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lspm_ray.compression.method import Context
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import split_files
from lspm_ray.errors import ModelError
from lspm_ray.models.pruned import Layer, bare, encoder_layers, head_count, head_size
from lspm_ray.training.batches import TRAIN_COLUMNS, batches
from lspm_ray.training.trainer import file_chunks

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_BATCH_ROWS = 32


def sample(model: PreTrainedModel, context: Context, rows: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the first `rows` training rows, in an order that the seed decides."""
    size = min(_BATCH_ROWS, rows)
    # This process holds CPUs of the cluster: tasks that it waited for might never get any.
    chunks = file_chunks(split_files(context.data, "train", run_serially), TRAIN_COLUMNS, rows)
    stream = batches(chunks, size, int(model.config.pad_token_id or 0), seed, 0)
    return itertools.islice(stream, -(-rows // size))


@dataclass
class Importance:
    """Mean absolute product of activation and loss gradient (Molchanov et al. 2017; heads: Michel et al. 2019).

    Attributes:
        heads: per layer [heads].
        neurons: per layer [neurons].
        channels: of what the heads put out, per layer [heads, head size].
        hidden: of what the layers put out, summed over them [hidden].
    """

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]
    channels: list[torch.Tensor]
    hidden: torch.Tensor


def importance(model: PreTrainedModel, stream: Iterable[dict[str, torch.Tensor]], context: Context) -> Importance:
    """Importance of every unit of each layer, averaged over the batches.

    Raises:
        ModelError: the model's family is not one that can be pruned.
    """
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
    hidden = torch.stack([tap.hidden for tap in taps]).sum(0)
    return Importance(
        [tap.heads for tap in taps], [tap.neurons for tap in taps], [tap.channels for tap in taps], hidden
    )


class _Tap:
    """Listens to a layer's two output projections (what enters is heads and neurons) and to what leaves the layer."""

    def __init__(self, layer: Layer) -> None:
        import torch

        heads, self._size = head_count(layer), head_size(layer)
        self.heads = torch.zeros(heads)
        self.channels = torch.zeros(heads, self._size)
        self.neurons = torch.zeros(layer.intermediate.dense.out_features)
        self.hidden = torch.zeros(layer.output.dense.out_features)
        self._seen: dict[str, torch.Tensor] = {}
        self._hooks = [
            layer.attention.output.dense.register_forward_pre_hook(lambda _, inputs: self._keep("heads", inputs[0])),
            layer.output.dense.register_forward_pre_hook(lambda _, inputs: self._keep("neurons", inputs[0])),
            layer.output.register_forward_hook(lambda _, inputs, output: self._keep("hidden", output)),
        ]

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        tensor.retain_grad()
        self._seen[name] = tensor

    def collect(self) -> None:
        import torch

        for name, tensor in self._seen.items():
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            effect = (tensor * gradient).detach().flatten(0, 1)
            if name == "heads":
                each = effect.unflatten(1, (-1, self._size))
                self.heads += each.sum(2).abs().mean(0)
                self.channels += each.abs().mean(0)
            elif name == "neurons":
                self.neurons += effect.abs().mean(0)
            else:
                self.hidden += effect.abs().mean(0)
        self._seen.clear()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def highest(scores: torch.Tensor, count: int) -> list[int]:
    """Positions of the highest scores, ascending; of equal ones the first."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


class Stack(NamedTuple):
    """Where a model keeps its transformer layers."""

    parent: nn.Module
    name: str
    layers: list[nn.Module]

    def put(self, layers: Iterable[nn.Module]) -> None:
        """Let the model have these layers and no others."""
        from torch import nn

        setattr(self.parent, self.name, nn.ModuleList(layers))


def stack(model: PreTrainedModel) -> Stack:
    """The model's layers.

    Raises:
        ModelError: they cannot be told from other parts.
    """
    from torch import nn

    inner = bare(model)
    total = int(getattr(inner.config, "num_hidden_layers", 0) or 0)
    found = [
        Stack(parent, name, list(part))
        for parent in inner.modules()
        for name, part in parent.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == total
    ]
    if len(found) != 1:
        raise ModelError(
            f"found {len(found)} stacks of {total} layers, need exactly one",
            field="model_type",
            value=inner.config.model_type,
        )
    return found[0]


def least_missed_layers(
    model: PreTrainedModel, count: int, stream: Iterable[dict[str, torch.Tensor]], context: Context
) -> list[tuple[int, float]]:
    """Leave layers out one after the other, each time the one that the answers change least without.

    Interaction between layers is seen because all that are left are measured again after each removal (Song et al.
    2024, "SLEB", section 3; the measure there is perplexity).

    Args:
        model: to measure; it is left as it was.
        count: layers to keep.
        stream: training batches.
        context: see `Method.apply`.

    Returns:
        Removed layers, in order: number, and the mean Kullback-Leibler divergence, in nats, of the answers from the
        whole model's.
    """
    import torch

    torch.set_num_threads(context.threads)
    rows, whole, model = list(stream), stack(model), model.eval()
    left, removed = list(range(len(whole.layers))), []
    with torch.inference_mode():
        reference = [_answers(model, batch) for batch in rows]
        try:
            while len(left) > count:
                damage = {}
                for layer in left:
                    whole.put(whole.layers[other] for other in left if other != layer)
                    damage[layer] = _divergence(model, rows, reference)
                least = min(left, key=lambda layer: damage[layer])
                left.remove(least)
                removed.append((least, damage[least]))
                context.report(f"layer {least} is left out: the answers differ by {damage[least]:.4f} nats")
        finally:
            whole.put(whole.layers)
    return removed


def _answers(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities [rows, labels]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    answers: torch.Tensor = logits.double().log_softmax(-1)
    return answers


def _divergence(model: PreTrainedModel, rows: list[dict[str, torch.Tensor]], reference: list[torch.Tensor]) -> float:
    total = 0.0
    for batch, expected in zip(rows, reference, strict=True):
        total += float((expected.exp() * (expected - _answers(model, batch))).sum())
    return total / sum(len(expected) for expected in reference)
