"""Transformers with fresh weights, to pretrain or to train from scratch.

A size has about as many parameters in every architecture. Millions of them, with 32,000 token ids and 1,024 positions:

| size   | layers | hidden | heads | feed-forward | gated | bert  | gpt2  | llama | t5    |
|--------|--------|--------|-------|--------------|-------|-------|-------|-------|-------|
| toy    | 2      | 32     | 2     | 64           | 64    | 1.1   | 1.1   | 1.0   | 1.0   |
| mini   | 4      | 256    | 4     | 1024         | 704   | 11.7  | 11.6  | 11.4  | 11.9  |
| small  | 4      | 512    | 8     | 2048         | 1408  | 29.8  | 29.5  | 29.2  | 31.3  |
| medium | 8      | 512    | 8     | 2048         | 1408  | 42.4  | 42.1  | 42.1  | 46.3  |
| base   | 12     | 768    | 12    | 3072         | 2048  | 111.0 | 110.4 | 109.5 | 123.7 |
| large  | 24     | 1024   | 16    | 4096         | 2752  | 337.2 | 336.1 | 336.4 | 357.2 |

They are BERT's (Devlin et al. 2019, section 3; the small ones: Turc et al. 2019). Llama and T5 have gated feed-forward
layers (Touvron et al. 2023, section 2.2; T5 since its version 1.1); T5 has half the layers on each side, 11 in `large`.
Input and output embeddings are one matrix everywhere, and BERT has no token types. BERT has dropout 0.1, the others
none: text that is seen once cannot be learnt by heart. Every field can be overridden.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lspm_ray.errors import ConfigError
from lspm_ray.models.directory import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ARCHITECTURES = ("bert", "gpt2", "llama", "t5")
VOCABULARY_MULTIPLE = 64
"""Vocabularies are rounded up to a multiple of this: matrix units work on tiles. What is added is never a label."""


class _Size(NamedTuple):
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    t5_layers: int


_SIZES = {
    "toy": _Size(2, 32, 2, 64, 1),
    "mini": _Size(4, 256, 4, 1024, 2),
    "small": _Size(4, 512, 8, 2048, 2),
    "medium": _Size(8, 512, 8, 2048, 4),
    "base": _Size(12, 768, 12, 3072, 6),
    "large": _Size(24, 1024, 16, 4096, 11),
}
SIZES = tuple(_SIZES)


def preset(architecture: str, size: str, section: str = "pretrain.model") -> dict[str, Any]:
    """What a size of an architecture sets in its transformers config.

    Args:
        architecture: one of `ARCHITECTURES`.
        size: one of `SIZES`.
        section: of the settings, for messages.

    Raises:
        ConfigError: there is no such architecture or size; lists those there are.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            "unknown architecture", field=f"{section}.architecture", value=architecture, valid=ARCHITECTURES
        )
    if size not in _SIZES:
        raise ConfigError("unknown size", field=f"{section}.size", value=size, valid=SIZES)
    shape = _SIZES[size]
    # Three matrices instead of two: as many parameters with two thirds of the width (Shazeer 2020, section 2).
    gated = -(-2 * shape.feed_forward // 3 // 64) * 64
    common = {"hidden_size": shape.hidden, "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers}
    if architecture == "bert":
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        return common | dropout | {"intermediate_size": shape.feed_forward, "type_vocab_size": 1}
    if architecture == "llama":
        return common | {"intermediate_size": gated, "tie_word_embeddings": True, "attention_dropout": 0.0}
    if architecture == "gpt2":
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        names = {"n_embd": shape.hidden, "n_head": shape.heads, "n_layer": shape.layers}
        return names | none | {"n_inner": shape.feed_forward}
    return {
        "d_model": shape.hidden,
        "d_kv": shape.hidden // shape.heads,
        "num_heads": shape.heads,
        "num_layers": shape.t5_layers,
        "num_decoder_layers": shape.t5_layers,
        "d_ff": gated,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }


def build_config(
    architecture: str,
    size: str,
    *,
    vocab_size: int,
    length: int,
    ids: Mapping[str, int | None],
    overrides: Mapping[str, Any] | None = None,
    section: str = "pretrain.model",
) -> PreTrainedConfig:
    """The config of a model with fresh weights.

    Args:
        architecture: one of `ARCHITECTURES`.
        size: one of `SIZES`.
        vocab_size: token ids of the tokenizer; rounded up to a multiple of `VOCABULARY_MULTIPLE`.
        length: tokens per block; the model gets as many positions (T5's are relative and have no end).
        ids: of the special tokens, by role (`pad`, `bos`, `eos`, `cls`, `sep`, `mask`); those that the architecture's
            config has no field for are left to the tokenizer.
        overrides: any fields of the architecture's config, which win.
        section: of the settings, for messages.

    Raises:
        ConfigError: unknown architecture, size or field, or values that do not go together.
    """
    from transformers import AutoConfig

    fields = preset(architecture, size, section)
    kind = type(AutoConfig.for_model(architecture))
    known = {field.name for field in dataclasses.fields(kind)}
    fields["vocab_size"] = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    fields |= {f"{role}_token_id": found for role, found in ids.items() if f"{role}_token_id" in known}
    if architecture == "t5":
        fields["decoder_start_token_id"] = ids.get("pad")
    else:
        fields[kind.attribute_map.get("max_position_embeddings", "max_position_embeddings")] = length
    config = make_config(kind, fields, overrides or {}, section)
    heads = config.num_attention_heads
    if heads < 1 or (architecture != "t5" and config.hidden_size % heads):
        raise ConfigError(
            f"a hidden size of {config.hidden_size} cannot be divided among {heads} heads", field=f"{section}.config"
        )
    return config


def make_config(
    kind: type[PreTrainedConfig], fields: Mapping[str, Any], overrides: Mapping[str, Any], section: str
) -> PreTrainedConfig:
    """A config of these fields, of which those that the user overrides are checked.

    Args:
        kind: its class.
        fields: by name.
        overrides: any fields of the class, which win.
        section: of the settings, for messages.

    Raises:
        ConfigError: the class has no such field, or the values do not go together.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return kind(**{**fields, **_resolve(overrides, kind, section)})
    except (StrictDataclassError, ValueError, TypeError, ZeroDivisionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(
            f"not a {kind.model_type} model: {' '.join(lines)[:300]}", field=f"{section}.config"
        ) from None


def build_model(auto_class: str, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model with fresh weights, on the CPU in float32, in training mode.

    The weights depend on config and seed alone, and no random state is touched.

    Args:
        auto_class: name of the transformers Auto class with the head that is needed.
        config: of the model.
        seed: of the weights.

    Raises:
        ConfigError: the architecture has no such head.
    """
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quiet():
        # Not torch.manual_seed: that would seed the GPUs too, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        try:
            model: PreTrainedModel = getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise ConfigError(
                f"{config.model_type} has no head for {auto_class}",
                field="pretrain.model.architecture",
                value=config.model_type,
            ) from None
    model.train()
    return model


def _resolve(overrides: Mapping[str, Any], kind: type[PreTrainedConfig], section: str) -> dict[str, Any]:
    """Overrides under the names of the config's own fields."""
    aliases: Mapping[str, str] = kind.attribute_map
    valid = sorted({field.name for field in dataclasses.fields(kind)} | set(aliases))
    for name in overrides:
        if name not in valid:
            close = difflib.get_close_matches(name, valid, n=5, cutoff=0.5)
            raise ConfigError(
                "the model's config has no such field",
                field=f"{section}.config.{name}",
                value=overrides[name],
                valid=close or valid,
            )
    return {aliases.get(name, name): value for name, value in overrides.items()}
