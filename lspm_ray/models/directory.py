"""A model directory: Hugging Face layout plus `variant.json`, which says what runs it.

Every model of the project, full or compressed, is such a directory, and these functions are the only way in and out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lspm_ray.config import Config
from lspm_ray.errors import ModelError
from lspm_ray.models.source import check, read_config
from lspm_ray.models.sparse import dense_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VARIANT_FILE = "variant.json"


class Variant(Config):
    """How a model directory is meant to be run.

    Attributes:
        runtime: the runtime plugin that loads it.
        precision: of the weights that the runtime executes.
        recipe: the compression steps that led here, oldest first, as their YAML forms.
        structure: what compression left of the full model's parts, by part; None for the same as before the last step.
    """

    runtime: str = "torch"
    precision: str = "fp32"
    recipe: list[dict[str, Any]] = Field(default_factory=list)
    structure: dict[str, Any] | None = None


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest token id, those added later included: there may be gaps between the ids."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def load_tokenizer(directory: Path, *, eos_pads: bool = False, field: str = "model.name") -> PreTrainedTokenizerBase:
    """The directory's tokenizer.

    Args:
        directory: of a model or of a tokenizer alone.
        eos_pads: a tokenizer without a padding token (GPT-2's, Llama's) gets its eos token as one. That is right where
            padding is told by position, not by token.
        field: the setting that names it, for messages.

    Raises:
        ModelError: it has none that loads, or one without a padding token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"the tokenizer does not load: {first}", field=field, value=str(directory)) from None
    if tokenizer.pad_token_id is None and eos_pads:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no padding token, so texts of different lengths cannot share a batch",
            field=field,
            value=str(directory),
            hint="Take an encoder (BERT, RoBERTa, ...), or a copy with pad_token in tokenizer_config.json and "
            "pad_token_id in config.json",
        )
    return tokenizer


def load_model(directory: Path, labels: list[str] | None = None, **options: Any) -> PreTrainedModel:
    """The classifier in `directory`, on the CPU, in float32 unless `options` say otherwise; sparse weights are rebuilt.

    Args:
        directory: a model directory.
        labels: label names for a fresh classification head; None keeps the directory's own.
        options: passed on to `from_pretrained`, e.g. `attn_implementation="eager"`.

    Raises:
        ModelError: the weights do not fit the architecture, or it has no classification head.
    """
    check(directory, str(directory))
    with dense_directory(directory) as dense:
        return _load(dense, str(directory), labels, options)


def _load(directory: Path, name: str, labels: list[str] | None, options: dict[str, Any]) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    register()
    if labels is not None:
        options |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    try:
        with quiet():
            model: PreTrainedModel
            model, found = AutoModelForSequenceClassification.from_pretrained(
                directory,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **{"dtype": torch.float32} | options,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"the model does not load: {first}", field="model.name", value=name) from None
    # They would be random. With labels of its own a model has a fresh head, and some bases lack more than that.
    if labels is None and found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise ModelError(f"weights are missing: {missing}", field="model.name", value=name)
    return model


def load_as_stored(directory: Path) -> PreTrainedModel:
    """The classifier in `directory`, on the CPU, in the precision that `variant.json` names.

    Raises:
        ModelError: see `load_model`, or a precision that torch does not compute in.
    """
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    precision = read_variant(directory).precision
    if precision not in dtypes:
        raise ModelError("torch has no such precision", field="precision", value=precision, valid=dtypes)
    return load_model(directory, dtype=dtypes[precision])


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, variant: Variant | None = None
) -> None:
    """Write a model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_variant(directory, variant or Variant())


def write_variant(directory: Path, variant: Variant) -> None:
    """Write or replace `variant.json`."""
    (directory / VARIANT_FILE).write_text(variant.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_variant(directory: Path) -> Variant:
    """`variant.json`, or the default for a plain Hugging Face directory."""
    file = directory / VARIANT_FILE
    return Variant.parse(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Variant()


def read_labels(directory: Path) -> list[str]:
    """Label names in the order of the logits.

    Raises:
        ModelError: config.json names no labels.
    """
    config = read_config(directory)
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise ModelError("config.json has no id2label", field="id2label", value=str(directory))
    return [names[key] for key in sorted(names, key=int)]


def register() -> None:
    """Teach the transformers Auto classes our own architectures. Safe to call again."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from lspm_ray.models.bag_of_ngrams import BagOfNgramsConfig, BagOfNgramsForSequenceClassification
    from lspm_ray.models.lstm import LstmConfig, LstmForSequenceClassification
    from lspm_ray.models.pruned import PrunedConfig, PrunedForSequenceClassification

    for config, model in (
        (BagOfNgramsConfig, BagOfNgramsForSequenceClassification),
        (LstmConfig, LstmForSequenceClassification),
        (PrunedConfig, PrunedForSequenceClassification),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)


class quiet:  # noqa: N801
    """Silence transformers' chatter on loading and saving: a fresh head is expected here, and errors still raise."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
