"""Classifiers with fresh weights: an LSTM, or a transformer of some size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lspm_ray.errors import ConfigError
from lspm_ray.models import presets
from lspm_ray.models.presets import build_config, build_model, make_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ARCHITECTURES = ("lstm", *presets.ARCHITECTURES)
DEFAULT_SIZE = "mini"

_SECTION = "model"


def classifier_config(
    architecture: str,
    size: str | None,
    overrides: Mapping[str, Any],
    *,
    vocab_size: int,
    length: int,
    ids: Mapping[str, int | None],
) -> PreTrainedConfig:
    """The config of a classifier.

    Args:
        architecture: one of `ARCHITECTURES`.
        size: of a transformer, one of `presets.SIZES`; None for `DEFAULT_SIZE`.
        overrides: any fields of the architecture's config, which win.
        vocab_size: token ids of the tokenizer.
        length: tokens of the longest text.
        ids: of the special tokens, by role.

    Raises:
        ConfigError: unknown architecture, size or field, or values that do not go together.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            "unknown architecture", field=f"{_SECTION}.architecture", value=architecture, valid=ARCHITECTURES
        )
    if architecture == "lstm":
        made = _lstm_config(size, overrides, vocab_size, ids)
    else:
        made = build_config(
            architecture,
            size or DEFAULT_SIZE,
            vocab_size=vocab_size,
            length=length,
            ids=ids,
            overrides=overrides,
            section=_SECTION,
        )
    if made.vocab_size < vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} token ids", field=f"{_SECTION}.config.vocab_size", value=made.vocab_size
        )
    return made


def build_classifier(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """The classifier; its weights depend on config and seed alone."""
    from lspm_ray.models.directory import register

    register()
    return build_model("AutoModelForSequenceClassification", config, seed)


def _lstm_config(
    size: str | None, overrides: Mapping[str, Any], vocab_size: int, ids: Mapping[str, int | None]
) -> PreTrainedConfig:
    from lspm_ray.models.lstm import LstmConfig

    if size is not None:
        raise ConfigError(
            "an LSTM has no sizes by name",
            field=f"{_SECTION}.size",
            value=size,
            hint="Set model.config.hidden_size, embedding_size and layers",
        )
    fields = {"vocab_size": vocab_size} | {f"{role}_token_id": ids.get(role) for role in ("pad", "bos", "eos")}
    return make_config(LstmConfig, fields, overrides, _SECTION)
