"""The embeddings, layers and dropout of a model, whatever its family calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lspm_ray.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Stack(NamedTuple):
    """Where a family's base model has its parts.

    Attributes:
        embeddings: of tokens and positions.
        layers: the transformer layers; of an encoder and a decoder, those of the encoder.
    """

    embeddings: tuple[str, ...]
    layers: str


_BERT_LIKE = Stack(("embeddings",), "encoder.layer")
STACKS = {
    "bert": _BERT_LIKE,
    "camembert": _BERT_LIKE,
    "distilbert": Stack(("embeddings",), "transformer.layer"),
    "gpt2": Stack(("wte", "wpe"), "h"),
    "llama": Stack(("embed_tokens",), "layers"),
    "roberta": _BERT_LIKE,
    "t5": Stack(("shared",), "encoder.block"),
    "xlm-roberta": _BERT_LIKE,
}
"""transformers model type -> its parts."""


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Give every dropout of the model this probability, in training mode; config and weights stay as they are."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
            continue
        # Attention of many families, and recurrent layers, hand a number of their own to a function.
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, probability)


def check_frozen(model_type: str, layers: int, count: int, field: str = "finetune.frozen_layers") -> None:
    """Refuse to freeze more layers than a model has, or any where they are not known.

    Args:
        model_type: family, as transformers calls it.
        layers: that the model has.
        count: that are to be frozen.
        field: the setting, for the message.

    Raises:
        ModelError: says how many may be frozen.
    """
    if model_type not in STACKS and count:
        raise ModelError(
            f"the layers of a {model_type} model cannot be told apart",
            field=field,
            value=count,
            valid=[0],
            hint=f"They can be frozen in: {', '.join(STACKS)}",
        )
    if count > layers:
        raise ModelError(f"the model has {layers} layers", field=field, value=count, valid=[f"0 to {layers}"])


def freeze(model: PreTrainedModel, count: int) -> None:
    """Leave the embeddings and the first `count` layers out of training; nothing if it is 0.

    Raises:
        ModelError: the model has fewer layers, or its layers are not known.
    """
    if not count:
        return
    model_type = model.config.model_type
    check_frozen(model_type, int(getattr(model.config, "num_hidden_layers", 0) or 0), count)
    stack, base = STACKS[model_type], model.base_model
    layers = list(base.get_submodule(stack.layers).children())
    for part in (*map(base.get_submodule, stack.embeddings), *layers[:count]):
        part.requires_grad_(requires_grad=False)


def check_linears(model_type: str, inside: str = "") -> None:
    """Refuse a model whose transformer layers, or the linear layers in them, are not known.

    Args:
        model_type: family, as transformers calls it.
        inside: family of the model inside a wrapper.

    Raises:
        ModelError: lists the families whose are.
    """
    from lspm_ray.models.pruned import FAMILIES, PrunedConfig

    # GPT-2 has no linear layers: it calls them convolutions, and their matrices stand the other way round.
    known = sorted({*STACKS, *FAMILIES, PrunedConfig.model_type} - {"gpt2"})
    if model_type == PrunedConfig.model_type and inside:
        model_type, known = inside, sorted(FAMILIES)
    if model_type not in known:
        raise ModelError(
            "the linear layers of this model family cannot be told apart",
            field="model_type",
            value=model_type,
            valid=known,
        )


def layer_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name in the model -> linear layer, of all in the transformer layers; those of a decoder are left out.

    Raises:
        ModelError: the family is not known.
    """
    from torch import nn

    from lspm_ray.models.pruned import encoder_layers

    model_type = model.config.model_type
    check_linears(model_type)
    if model_type in STACKS:
        layers = list(model.base_model.get_submodule(STACKS[model_type].layers).children())
    else:
        layers = [layer for layer in encoder_layers(model) if isinstance(layer, nn.Module)]
    within = {id(module) for layer in layers for module in layer.modules()}
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in within}
