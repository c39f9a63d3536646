"""Stage `base` of a model that is not taken over: fresh weights, to be trained on labelled data alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.models.base import STAGE
from lspm_ray.models.directory import load_tokenizer, save_model
from lspm_ray.models.fresh import build_classifier, classifier_config
from lspm_ray.training.objective import Vocabulary
from lspm_ray.training.start_config import FreshConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def fresh_base(config: FreshConfig, tokenizer: Artifact, max_length: int, store: ArtifactStore) -> Artifact:
    """The fresh model, or find it if it is made already.

    Args:
        config: what the user says.
        tokenizer: made already.
        max_length: tokens of the longest text.
        store: where the artifact goes.

    Returns:
        A model directory whose classification head is fresh too, so of any number of labels.

    Raises:
        ConfigError: unknown architecture, size or field, or values that do not go together.
    """
    what = {"fresh": config.model_dump(mode="json", exclude={"tokenizer"}), "max_length": max_length}

    def build(draft: Draft) -> None:
        found = load_tokenizer(tokenizer.local(), eos_pads=True)
        model = build_classifier(fresh_config(config, found, max_length), config.seed)
        save_model(model, found, draft.path)
        draft.summary["parameters"] = sum(parameter.numel() for parameter in model.parameters())

    return store.make(STAGE, what, {"tokenizer": tokenizer.digest}, build)


def fresh_config(config: FreshConfig, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> PreTrainedConfig:
    """The model's config.

    Args:
        config: what the user says.
        tokenizer: None for one that is to be trained: then the config has as many token ids as it may get.
        max_length: tokens of the longest text.

    Raises:
        ConfigError: unknown architecture, size or field, or values that do not go together.
    """
    size: int = config.tokenizer.vocab_size
    ids: dict[str, int | None] = dict.fromkeys(("pad", "mask", "bos", "eos", "cls", "sep"), 0)
    if tokenizer is not None:
        vocabulary = Vocabulary.of(tokenizer)
        size, ids = vocabulary.size, vocabulary.ids
    return classifier_config(
        config.architecture, config.size, config.config, vocab_size=size, length=max_length, ids=ids
    )
