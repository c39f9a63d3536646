"""The contract of a pretraining objective: which part of a block the model sees, and which it must predict."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.split import mix
from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.directory import vocabulary_size
from lspm_ray.models.shape import first_position, shape_of
from lspm_ray.plugin import Plugin
from lspm_ray.training.attention import attention_mask, check_apart, document_numbers, position_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that is not predicted."""

DOCUMENTS = "documents"
"""What a batch calls the number of the document of each position; `loss` makes the attention mask of it."""

Batch = dict[str, NDArray[np.int64]]
"""What the model is called with, by name, and `labels`, each of shape [blocks, positions]; perhaps `documents`."""

Segments = Sequence[NDArray[np.int64]]
"""Per block, the tokens of each (piece of a) document in it, in order. They add up to the block's tokens."""

_WEYL = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Positions:
    """What a model computes for one full block.

    Attributes:
        inputs: positions of the model's input; of an encoder-decoder, of the encoder's.
        targets: positions of the decoder of an encoder-decoder; else 0.
        predicted: positions whose token is predicted: the vocabulary's logits are needed there only.
    """

    inputs: int
    targets: int
    predicted: int


class Objective(Plugin):
    """A way to learn from unlabelled blocks of tokens.

    Class attributes:
        auto_class: name of the transformers Auto class that builds the model with the head it needs.
        architectures: `model_type` of the presets that it can train, the usual one first.
        separates_documents: whether `corrupt` takes `segments`.
        causal: whether a position sees only itself and those before it.
    """

    package: ClassVar[str] = "lspm_ray.training.objectives"
    kind: ClassVar[str] = "objective"
    auto_class: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    separates_documents: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    def check(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        length: int,
        *,
        across_documents: bool = True,
    ) -> None:
        """Refuse a tokenizer or a model that the objective cannot work with, before any work.

        Args:
            tokenizer: of the blocks.
            config: of the model.
            length: tokens per block.
            across_documents: whether a token may see the other documents of its block.

        Raises:
            ConfigError: as `check_model`.
            ModelError: as `check_model`, or the tokenizer lacks something, which is named.
        """
        self.check_model(config, Vocabulary.of(tokenizer).size, length, across_documents=across_documents)
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "the tokenizer has no padding token, so texts of different lengths cannot share a batch",
                field="pad_token",
                hint="Train the tokenizer with one, or set pad_token in its tokenizer_config.json",
            )

    def check_model(
        self, config: PreTrainedConfig, vocabulary: int, length: int, *, across_documents: bool = True
    ) -> None:
        """The part of `check` that needs no tokenizer, for one that is still to be trained.

        Args:
            config: of the model.
            vocabulary: token ids of the tokenizer.
            length: tokens per block.
            across_documents: whether a token may see the other documents of its block.

        Raises:
            ConfigError: blocks are longer than the model's positions, or documents cannot be kept apart.
            ModelError: the tokenizer's vocabulary does not fit the model, or the model is of another kind.
        """
        self.check_kind(config)
        check_fit(vocabulary, length, config)
        if not across_documents:
            check_apart(config, length)

    def check_kind(self, config: PreTrainedConfig) -> None:
        """Refuse a model that sees too much or too little for the objective: it would load, and learn nothing of use.

        Raises:
            ModelError: names the model's family and an objective for it.
        """
        if looks_ahead(config) == self.causal:
            kind, other = ("an encoder", "masked_lm") if self.causal else ("a decoder", "causal_lm")
            raise ModelError(
                f"{self.name} cannot train {kind}, whose positions see "
                + ("those after them" if self.causal else "only those before them"),
                field="model_type",
                value=config.model_type,
                hint=f"Take the objective {other}, or another model",
            )

    def sentinels(self, length: int) -> int:
        """How many of T5's sentinels (`<extra_id_0>` and so on) the tokenizer must have for blocks of that length."""
        return 0

    @abstractmethod
    def corrupt(
        self,
        blocks: NDArray[np.int64],
        tokens: NDArray[np.int64],
        keys: NDArray[np.uint64],
        vocabulary: Vocabulary,
        segments: Segments | None = None,
    ) -> Batch:
        """Inputs and labels of some blocks.

        Args:
            blocks: token ids, shape [blocks, length]; padding only at the end.
            tokens: how many of each are no padding, shape [blocks].
            keys: one pseudo-random number per block, shape [blocks]. All randomness comes from it: the result of a
                block is the same whatever blocks it shares a batch with, and on every machine.
            vocabulary: what is to be known about the token ids.
            segments: the documents of each block, to keep attention inside each; None to let a token see the others of
                its block. Only for objectives with `separates_documents`.

        Returns:
            At least `input_ids` and `labels` (`IGNORED` where nothing is predicted).

        Raises:
            ConfigError: `segments` was given to an objective that cannot keep documents apart.
        """

    def positions(self, length: int) -> Positions:
        """How many positions the model computes for a full block of `length` tokens."""
        return Positions(inputs=length, targets=0, predicted=length)

    def inputs(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass.

        The attention mask between documents is made here, on the model's device: it has `length` times as many
        elements as the batch that is sent there.

        Raises:
            ConfigError: documents are to be kept apart with an attention that takes no mask.
        """
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in ("labels", DOCUMENTS)}
        if DOCUMENTS in batch:
            inputs["position_ids"] = batch["position_ids"] + first_position(model.config)
            inputs["attention_mask"] = attention_mask(model, batch[DOCUMENTS], batch["position_ids"], self.causal)
        return inputs

    def loss(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over all predicted positions of the cross entropy in nats, in float32.

        It may call parts of the model instead of the whole. With several workers, what is wrapped for gradient
        averaging must therefore be a module whose `forward` is this function, not the model.

        Args:
            model: with the head of `auto_class`.
            batch: what `corrupt` returned, as tensors on the model's device.
        """
        return cross_entropy(model(**self.inputs(model, batch)).logits, batch["labels"])


def looks_ahead(config: PreTrainedConfig) -> bool:
    """Whether a position of the model's input sees those after it: encoders and encoder-decoders, not decoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encodes = config.is_encoder_decoder or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return encodes and not getattr(config, "is_decoder", False)


def check_fit(vocabulary: int, length: int, config: PreTrainedConfig) -> None:
    """Refuse a model with fewer token ids than the tokenizer, or fewer positions than a block.

    Args:
        vocabulary: token ids of the tokenizer.
        length: tokens per block.
        config: of the model.

    Raises:
        ConfigError: blocks are longer than the model's positions.
        ModelError: the tokenizer's vocabulary does not fit.
    """
    there = int(config.vocab_size)
    if vocabulary > there:
        raise ModelError(
            f"a tokenizer whose vocabulary does not fit the model: {vocabulary} token ids, but the model knows {there}",
            field="vocab_size",
            value=there,
            hint=f"Set vocab_size to {vocabulary} or more, or take the tokenizer that the model was made for",
        )
    longest = shape_of(config.to_dict(), config.model_type).max_tokens
    if longest is not None and length > longest:
        raise ConfigError(
            f"blocks of {length} tokens are longer than the {longest} positions of the model",
            field="length",
            value=length,
            hint=f"Make blocks of {longest} tokens or fewer, or a model with more positions",
        )


class Vocabulary:
    """What objectives need of a tokenizer, without carrying it to every worker.

    Attributes:
        size: one more than the highest token id, those added later included.
        special: whether a token id is special (never masked, never put in at random), shape [size].
        ids: ids of the special tokens by role: `pad`, `mask`, `bos`, `eos`, `cls`, `sep`; None where there is none.
        sentinels: ids of T5's sentinels, `<extra_id_0>` first; empty where there are none.
    """

    def __init__(self, size: int, special: NDArray[np.bool_], ids: dict[str, int | None], sentinels: list[int]) -> None:
        self.size, self.special, self.ids, self.sentinels = size, special, ids, sentinels

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read it off a tokenizer."""
        known = tokenizer.get_vocab()
        used = np.fromiter(known.values(), dtype=np.int64)
        special = np.ones(vocabulary_size(tokenizer), dtype=bool)
        special[used] = False  # an id in a gap names no token: it must not be put in at random either
        special[tokenizer.all_special_ids] = True
        ids: dict[str, int | None] = {
            role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "mask", "bos", "eos", "cls", "sep")
        }
        sentinels: list[int] = []
        while (found := known.get(f"<extra_id_{len(sentinels)}>")) is not None:
            sentinels.append(found)
        special[sentinels] = True
        return cls(len(special), special, ids, sentinels)

    def id(self, role: str) -> int:
        """Id of the special token with this role.

        Raises:
            ModelError: the tokenizer has none.
        """
        found = self.ids[role]
        if found is None:
            raise ModelError(f"the tokenizer has no {role} token", field=f"{role}_token")
        return found


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum in nats, in float32, over the positions that are not `IGNORED`.

    Args:
        logits: shape [..., vocabulary].
        labels: shape [...].
    """
    import torch.nn.functional as F

    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )


def random_bits(keys: NDArray[np.uint64], stream: int, count: int) -> NDArray[np.uint64]:
    """Independent numbers uniform in [0, 2**64): splitmix64 (Steele, Lea, Flood 2014), seeded by key and stream.

    Args:
        keys: pseudo-random, shape [blocks].
        stream: different ones give unrelated numbers.
        count: how many per block.

    Returns:
        Shape [blocks, count]. The first n numbers of a block are the same whatever `count` is.
    """
    seeds = mix(keys ^ mix(np.array([stream], dtype=np.uint64)))
    return mix(seeds[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _WEYL)


def with_documents(batch: Batch, segments: Segments) -> Batch:
    """The batch with what keeps attention inside each document, in place of an attention mask."""
    numbers = document_numbers(segments, batch["input_ids"].shape[1])
    rest = {name: values for name, values in batch.items() if name != "attention_mask"}
    return rest | {DOCUMENTS: numbers, "position_ids": position_ids(numbers)}
