"""Encoders with fewer attention heads and feed-forward neurons per layer than their family's config can say.

BERT derives the head size as hidden / heads, so a layer with heads removed cannot be rebuilt from a BertConfig. This
architecture keeps the original config and, per layer, how many heads and neurons are left; it builds the original
and shrinks it before the weights are loaded.
"""

from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from lspm_ray.errors import ModelError

FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Model types whose layers look like BERT's: attention.self.{query,key,value}, intermediate.dense, output.dense."""


class PrunedConfig(PretrainedConfig):
    """The original config plus what is left in each layer.

    Args:
        base: the original model's config as a dict (its `model_type` included).
        heads: attention heads left, per layer.
        neurons: feed-forward neurons left, per layer.
    """

    model_type = "lspm_pruned"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        heads: list[int] | None = None,
        neurons: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.base = base or {}
        self.heads = heads or []
        self.neurons = neurons or []
        super().__init__(**kwargs)


class PrunedForSequenceClassification(PreTrainedModel):
    """A sequence classifier with physically smaller layers."""

    config_class = PrunedConfig
    base_model_prefix = "pruned"
    supports_gradient_checkpointing = False
    _supports_sdpa = True

    def __init__(self, config: PrunedConfig) -> None:
        super().__init__(config)
        base = config.base | {"id2label": config.id2label, "label2id": config.label2id}
        base_config = AutoConfig.for_model(base.pop("model_type"), **base)
        base_config._attn_implementation = config._attn_implementation
        self.inner = AutoModelForSequenceClassification.from_config(base_config)
        for layer, heads, neurons in zip(encoder_layers(self.inner), config.heads, config.neurons, strict=True):
            shrink(layer, list(range(heads)), list(range(neurons)))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        self.inner._init_weights(module)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [batch, labels] for token ids [batch, tokens]."""
        return SequenceClassifierOutput(logits=self.inner(input_ids, attention_mask=attention_mask).logits)


class Layer(Protocol):
    """The parts of a BERT-like layer that pruning touches."""

    attention: Any
    intermediate: Any
    output: Any


def encoder_layers(model: PreTrainedModel) -> list[Layer]:
    """The transformer layers of a supported model.

    Raises:
        ModelError: the family is not one of `FAMILIES`.
    """
    if isinstance(model, PrunedForSequenceClassification):
        return encoder_layers(model.inner)
    check_family(model.config.model_type)
    base: Any = model.base_model
    return list(base.encoder.layer)


def check_family(model_type: str) -> None:
    """Refuse what cannot be pruned.

    Raises:
        ModelError: the family is not one of `FAMILIES`.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            "heads and neurons of this model family cannot be pruned",
            field="model_type",
            value=model_type,
            valid=FAMILIES,
        )


def head_size(layer: Layer) -> int:
    """Width of one attention head."""
    return int(getattr(layer.attention, "self").attention_head_size)


def head_count(layer: Layer) -> int:
    """Attention heads left in the layer."""
    return int(getattr(layer.attention, "self").query.out_features) // head_size(layer)


def shrink(layer: Layer, heads: list[int], neurons: list[int]) -> None:
    """Keep only the given attention heads and feed-forward neurons of a layer, in place."""
    attention, size = getattr(layer.attention, "self"), head_size(layer)
    rows = torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads])
    for name in ("query", "key", "value"):
        setattr(attention, name, _linear(getattr(attention, name), rows, dim=0))
    layer.attention.output.dense = _linear(layer.attention.output.dense, rows, dim=1)
    attention.num_attention_heads = len(heads)
    attention.all_head_size = len(rows)
    kept = torch.tensor(neurons)
    layer.intermediate.dense = _linear(layer.intermediate.dense, kept, dim=0)
    layer.output.dense = _linear(layer.output.dense, kept, dim=1)


def _linear(old: nn.Linear, index: torch.Tensor, dim: int) -> nn.Linear:
    weight = old.weight.detach().index_select(dim, index.to(old.weight.device)).clone()
    new = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    new.weight = nn.Parameter(weight)
    if old.bias is not None:
        bias = old.bias.detach()
        new.bias = nn.Parameter((bias.index_select(0, index.to(bias.device)) if dim == 0 else bias).clone())
    return new
