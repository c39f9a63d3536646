"""Write down the spans of text that were cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.training.objective import IGNORED, Batch, Objective, Positions, Segments, Vocabulary, random_bits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CUT, _KEPT = range(2)


class SpanCorruption(Objective):
    """T5's objective (Raffel et al. 2020, section 3.1.4), for encoder-decoders.

    In the encoder's input each span that was cut out is one sentinel; the decoder writes each sentinel and the span
    that it stands for, and a last sentinel. Both end in the eos token. Kept text and cut spans alternate, kept text
    first; all ways to divide each of them into as many parts are equally likely. A full block gives a fixed number
    of tokens on both sides; what a shorter block gives is padded to that.

    Attributes:
        share: of a block's tokens that are cut out.
        mean_span: tokens per span, on average.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    architectures: ClassVar[tuple[str, ...]] = ("t5",)

    share: float = Field(0.15, gt=0, lt=1)
    mean_span: float = Field(3.0, ge=1)

    def check(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        length: int,
        *,
        across_documents: bool = True,
    ) -> None:
        """As every objective; also refuses a tokenizer without eos or with too few sentinels."""
        super().check(tokenizer, config, length, across_documents=across_documents)
        vocabulary = Vocabulary.of(tokenizer)
        if vocabulary.ids["eos"] is None:
            raise ModelError(
                "the tokenizer has no eos token, with which inputs and targets end",
                field="eos_token",
                hint="Train the tokenizer with one, or set eos_token in its tokenizer_config.json",
            )
        needed, there = self.sentinels(length), len(vocabulary.sentinels)
        if there < needed:
            raise ModelError(
                f"blocks of {length} tokens need {needed} sentinels, the tokenizer has {there}",
                field="sentinels",
                value=there,
                hint=f"Take a tokenizer with <extra_id_0> to <extra_id_{needed - 1}> as special tokens (a trained one "
                "gets them), a larger mean_span, or shorter blocks",
            )

    def sentinels(self, length: int) -> int:
        """One per span that is cut out, and one for the end."""
        return self._cut(length)[1] + 1

    def corrupt(
        self,
        blocks: NDArray[np.int64],
        tokens: NDArray[np.int64],
        keys: NDArray[np.uint64],
        vocabulary: Vocabulary,
        segments: Segments | None = None,
    ) -> Batch:
        """`input_ids`, `attention_mask`, `decoder_input_ids` (starting with padding, as T5's do) and `labels`."""
        if segments is not None:
            raise ConfigError("span_corruption cannot keep the documents of a block apart", field="objective")
        shape, pad = self.positions(blocks.shape[1]), vocabulary.id("pad")
        inputs = np.full((len(blocks), shape.inputs), pad, dtype=np.int64)
        mask = np.zeros_like(inputs)
        labels = np.full((len(blocks), shape.targets), IGNORED, dtype=np.int64)
        for size in np.unique(tokens):  # one for all full blocks
            rows = np.flatnonzero(tokens == size)
            source, target = self._corrupt(blocks[rows, :size], keys[rows], vocabulary)
            inputs[rows, : source.shape[1]] = source
            mask[rows, : source.shape[1]] = 1
            labels[rows, : target.shape[1]] = target
        before = np.full_like(labels, pad)
        before[:, 1:] = np.where(labels[:, :-1] == IGNORED, pad, labels[:, :-1])
        return {"input_ids": inputs, "attention_mask": mask, "decoder_input_ids": before, "labels": labels}

    def positions(self, length: int) -> Positions:
        """One position per token kept or cut, per sentinel, and for each eos."""
        noise, spans = self._cut(length)
        targets = noise + spans + 2 if spans else 0
        return Positions(inputs=length - noise + spans + 1, targets=targets, predicted=targets)

    def inputs(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """As every objective, without the cache for generating, which training would only fill."""
        return super().inputs(model, batch) | {"use_cache": False}

    def _cut(self, length: int) -> tuple[int, int]:
        """How many tokens of a block are cut out, in how many spans; none of a block of less than two tokens."""
        if length < 2:
            return 0, 0
        noise = min(max(round(length * self.share), 1), length - 1)
        return noise, min(max(round(noise / self.mean_span), 1), noise, length - noise)

    def _corrupt(
        self, blocks: NDArray[np.int64], keys: NDArray[np.uint64], vocabulary: Vocabulary
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Encoder inputs and targets of blocks without padding, shape [blocks, fewer positions]."""
        count, length = blocks.shape
        eos = np.full((count, 1), vocabulary.id("eos"))
        noise, spans = self._cut(length)
        if not spans:
            return np.hstack([blocks, eos]), np.empty((count, 0), dtype=np.int64)
        parts = np.empty((count, 2 * spans), dtype=np.int64)
        parts[:, 0::2] = _divide(length - noise, spans, random_bits(keys, _KEPT, length - noise - 1))
        parts[:, 1::2] = _divide(noise, spans, random_bits(keys, _CUT, noise - 1))
        starts = np.zeros((count, length), dtype=np.int64)
        np.put_along_axis(starts, np.cumsum(parts[:, :-1], axis=1), 1, axis=1)
        part = np.cumsum(starts, axis=1)
        cut = part % 2 == 1
        first = cut & (starts == 1)
        sentinels = np.array(vocabulary.sentinels)
        marks = sentinels[part // 2]
        source = np.where(cut, marks, blocks)[~cut | first].reshape(count, -1)
        target = np.stack([marks, blocks], axis=2)[np.stack([first, cut], axis=2)].reshape(count, -1)
        return np.hstack([source, eos]), np.hstack([target, np.full((count, 1), sentinels[spans]), eos])


def _divide(total: int, parts: int, draws: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`total` as a sum of `parts` positive numbers, per block: cut where the draws are smallest.

    Args:
        total: at least `parts`.
        parts: at least 1.
        draws: one per place to cut, shape [blocks, total - 1].

    Returns:
        Shape [blocks, parts].
    """
    cuts = np.sort(np.argsort(draws, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=total)
