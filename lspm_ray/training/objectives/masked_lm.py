"""Predict tokens that were hidden, from both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lspm_ray.errors import ModelError
from lspm_ray.training.objective import (
    IGNORED,
    Batch,
    Objective,
    Positions,
    Segments,
    Vocabulary,
    cross_entropy,
    random_bits,
    with_documents,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HEADS = {"bert": "cls"}
"""Module that turns hidden states into logits, of the families whose head treats each position on its own."""

_CHOOSE, _TREAT, _REPLACE = range(3)


class MaskedLM(Objective):
    """Masked language modelling (Devlin et al. 2019, section 3.1), with new masks in every pass over the data.

    Special tokens are never chosen and never put in; of every block with any other token at least one is chosen.

    Attributes:
        share: of a block's ordinary tokens that are predicted.
        mask_share: of those, how many are replaced by the mask token.
        random_share: of those, how many are replaced by a random ordinary token; the rest stay as they are.
    """

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    architectures: ClassVar[tuple[str, ...]] = ("bert",)
    separates_documents: ClassVar[bool] = True

    share: float = Field(0.15, gt=0, lt=1)
    mask_share: float = Field(0.8, ge=0, le=1)
    random_share: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError("mask_share and random_share add up to more than 1")
        return self

    def check(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        length: int,
        *,
        across_documents: bool = True,
    ) -> None:
        """As every objective; also refuses a tokenizer without a mask token."""
        super().check(tokenizer, config, length, across_documents=across_documents)
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token",
                field="mask_token",
                hint="Train the tokenizer with one, or take the objective causal_lm, which needs none",
            )

    def corrupt(
        self,
        blocks: NDArray[np.int64],
        tokens: NDArray[np.int64],
        keys: NDArray[np.uint64],
        vocabulary: Vocabulary,
        segments: Segments | None = None,
    ) -> Batch:
        """`input_ids` with tokens hidden, `labels`, and `attention_mask` or what keeps documents apart."""
        length = blocks.shape[1]
        padding = np.arange(length) >= tokens[:, None]
        chosen = self._chosen(~(vocabulary.special[blocks] | padding), random_bits(keys, _CHOOSE, length))
        treat = (random_bits(keys, _TREAT, length) >> np.uint64(11)) * 2.0**-53
        inputs = np.where(chosen & (treat < self.mask_share), vocabulary.id("mask"), blocks)
        replaced = chosen & (treat >= self.mask_share) & (treat < self.mask_share + self.random_share)
        inputs[replaced] = _pick(np.flatnonzero(~vocabulary.special), random_bits(keys, _REPLACE, length)[replaced])
        batch = {
            "input_ids": inputs,
            "attention_mask": (~padding).astype(np.int64),
            "labels": np.where(chosen, blocks, IGNORED),
        }
        return batch if segments is None else with_documents(batch, segments)

    def positions(self, length: int) -> Positions:
        """Only what was hidden is predicted."""
        return Positions(inputs=length, targets=0, predicted=max(1, round(self.share * length)))

    def loss(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """As every objective, but without the logits of positions that are not predicted where the head allows it."""
        head = _HEADS.get(model.config.model_type)
        if head is None:
            return super().loss(model, batch)
        hidden = model.base_model(**self.inputs(model, batch)).last_hidden_state
        predicted = batch["labels"] != IGNORED
        return cross_entropy(getattr(model, head)(hidden[predicted]), batch["labels"][predicted])

    def _chosen(self, ordinary: NDArray[np.bool_], draws: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """The ordinary positions with the smallest draws, as many of each block as its share."""
        available = ordinary.sum(axis=1)
        wanted = np.minimum(np.maximum(np.rint(self.share * available), 1), available)
        order = np.argsort(np.where(ordinary, draws, np.iinfo(np.uint64).max), axis=1, kind="stable")
        chosen = np.zeros_like(ordinary)
        np.put_along_axis(chosen, order, np.arange(ordinary.shape[1]) < wanted[:, None], axis=1)
        return chosen & ordinary


def _pick(values: NDArray[np.int64], draws: NDArray[np.uint64]) -> NDArray[np.int64]:
    picked: NDArray[np.int64] = values[((draws >> np.uint64(32)) * np.uint64(len(values))) >> np.uint64(32)]
    return picked
