"""Classifiers of which less is left than their family's config can say: heads, neurons, token embeddings.

BERT derives the head size as hidden / heads, so a layer with heads removed cannot be rebuilt from a BertConfig. This
architecture keeps the original config and what is left of each part; it builds the original and shrinks it before the
weights are loaded. Whatever is removed, and in whichever order, there is one such wrapper and never one in another.
"""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from lspm_ray.errors import ModelError
from lspm_ray.models.shape import PRUNED

FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Model types whose layers look like BERT's: attention.self.{query,key,value}, intermediate.dense, output.dense."""

LOOKUP_FAMILIES = (*FAMILIES, "distilbert", "gpt2", "llama", "lspm_lstm")
"""Model types that look token embeddings up in one table, which nothing else uses."""


class PrunedConfig(PretrainedConfig):
    """The original config plus what is left of it.

    Args:
        base: the original model's config as a dict (its `model_type` included).
        heads: attention heads left, per layer; none for a family whose heads cannot be removed.
        neurons: feed-forward neurons left, per layer; likewise.
        vocabulary: token embeddings left; None if every token id has its own.
    """

    model_type = PRUNED

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        heads: list[int] | None = None,
        neurons: list[int] | None = None,
        vocabulary: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.base = base or {}
        self.heads = heads or []
        self.neurons = neurons or []
        self.vocabulary = vocabulary
        super().__init__(**kwargs)

    def base_config(self) -> PretrainedConfig:
        """The original config, with this one's labels."""
        fields = self.base | {"id2label": self.id2label, "label2id": self.label2id}
        made: PretrainedConfig = AutoConfig.for_model(fields.pop("model_type"), **fields)
        return made


class PrunedForSequenceClassification(PreTrainedModel):
    """A sequence classifier with physically smaller layers and embeddings."""

    config_class = PrunedConfig
    base_model_prefix = "pruned"
    supports_gradient_checkpointing = False
    _supports_sdpa = True

    def __init__(self, config: PrunedConfig) -> None:
        super().__init__(config)
        base_config = config.base_config()
        base_config._attn_implementation = config._attn_implementation
        self.inner = AutoModelForSequenceClassification.from_config(base_config)
        if config.heads:
            for layer, heads, neurons in zip(encoder_layers(self.inner), config.heads, config.neurons, strict=True):
                shrink(layer, list(range(heads)), list(range(neurons)))
        if config.vocabulary is not None:
            table = self.inner.get_input_embeddings()
            trimmed = TrimmedEmbedding(table.num_embeddings, config.vocabulary, table.embedding_dim)
            replace_embeddings(self.inner, trimmed)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the model inside."""
        found: nn.Module = self.inner.get_input_embeddings()
        return found

    def _init_weights(self, module: nn.Module) -> None:
        self.inner._init_weights(module)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [batch, labels] for token ids [batch, tokens]."""
        return SequenceClassifierOutput(logits=self.inner(input_ids, attention_mask=attention_mask).logits)


class TrimmedEmbedding(nn.Module):
    """Token embeddings with fewer rows than there are token ids: [...] ids in, [..., width] vectors out.

    Args:
        ids: token ids that may come.
        kept: rows of the table.
        width: of a row.
    """

    def __init__(self, ids: int, kept: int, width: int) -> None:
        super().__init__()
        # The ids stay those of the full model's tokenizer: all variants are given the same ones.
        self.register_buffer("rows", torch.zeros(ids, dtype=torch.int32))
        self.rows: torch.Tensor
        self.embedding = nn.Embedding(kept, width)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Vectors of the rows that the ids share."""
        vectors: torch.Tensor = self.embedding(self.rows[input_ids])
        return vectors


def trim(
    model: PreTrainedModel, ids: Sequence[int], stand_ins: Sequence[int] | None
) -> "PrunedForSequenceClassification":
    """A copy of the model with token embeddings of its own for some ids only.

    Args:
        model: of a family in `LOOKUP_FAMILIES`.
        ids: that keep theirs, ascending and unique.
        stand_ins: for each of the others, ascending, the kept id whose embedding it gets; None gives them all a new
            one, the mean of what is removed.
    """
    smaller = copy.deepcopy(bare(model))
    table = smaller.get_input_embeddings()
    total = int(smaller.config.vocab_size)
    kept, rows = torch.tensor(ids), torch.full((total,), -1, dtype=torch.int32)
    rows[kept] = torch.arange(len(ids), dtype=torch.int32)
    removed = (rows < 0).nonzero().flatten()
    with torch.no_grad():
        weight = table(kept)
        if stand_ins is None and len(removed):
            weight = torch.cat([weight, table(removed).mean(0, keepdim=True)])
        rows[removed] = rows[torch.tensor(stand_ins, dtype=torch.int64)] if stand_ins is not None else len(ids)
        trimmed = TrimmedEmbedding(total, *weight.shape)
        trimmed.rows.copy_(rows)
        trimmed.embedding.weight.copy_(weight)
    replace_embeddings(smaller, trimmed)
    return compact(smaller)


def replace_embeddings(model: PreTrainedModel, new: nn.Module) -> None:
    """Put another module in the place of the token embeddings, wherever the family keeps them."""
    old = model.get_input_embeddings()
    places = [(parent, name) for parent in model.modules() for name, part in parent.named_children() if part is old]
    for parent, name in places:
        setattr(parent, name, new)


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """The model inside the wrapper; one that is not wrapped is returned as it is."""
    while isinstance(model, PrunedForSequenceClassification):
        model = model.inner
    return model


def compact(model: PreTrainedModel) -> PrunedForSequenceClassification:
    """A copy of the model in the wrapper, whose config says what is left of each part."""
    inner = bare(model)
    family, table = inner.config.model_type, inner.get_input_embeddings()
    layers = encoder_layers(inner) if family in FAMILIES else []
    special = {name: getattr(inner.config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = PrunedConfig(
        base=inner.config.to_dict() | {"model_type": family},
        heads=[head_count(layer) for layer in layers],
        neurons=[layer.intermediate.dense.out_features for layer in layers],
        vocabulary=table.embedding.num_embeddings if isinstance(table, TrimmedEmbedding) else None,
        id2label=inner.config.id2label,
        label2id=inner.config.label2id,
        vocab_size=inner.config.vocab_size,
        **special,
    )
    made = PrunedForSequenceClassification(config)
    made.inner.load_state_dict(inner.state_dict())
    return made


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
    model = bare(model)
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


def check_lookup(model_type: str) -> None:
    """Refuse what cannot do with fewer token embeddings.

    Raises:
        ModelError: the family is not one of `LOOKUP_FAMILIES`.
    """
    if model_type not in LOOKUP_FAMILIES:
        raise ModelError(
            "token embeddings of this model family cannot be removed",
            field="model_type",
            value=model_type,
            valid=LOOKUP_FAMILIES,
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
