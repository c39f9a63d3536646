"""Predict each token from those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.training.attention import document_numbers
from lspm_ray.training.objective import IGNORED, Batch, Objective, Positions, Segments, Vocabulary, with_documents

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class CausalLM(Objective):
    """Next-token prediction (Radford et al. 2018, section 3.1).

    `labels` are already shifted: the label of a position is the token after it. With documents kept apart, the last
    token of one predicts nothing: the next document is not its continuation.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    architectures: ClassVar[tuple[str, ...]] = ("gpt2", "llama")
    separates_documents: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def corrupt(
        self,
        blocks: NDArray[np.int64],
        tokens: NDArray[np.int64],
        keys: NDArray[np.uint64],
        vocabulary: Vocabulary,
        segments: Segments | None = None,
    ) -> Batch:
        """`input_ids` and `labels`; no mask for padding, which is at the end, where no token sees it."""
        length = blocks.shape[1]
        follows = np.arange(1, length) < tokens[:, None]
        if segments is not None:
            numbers = document_numbers(segments, length)
            follows &= numbers[:, 1:] == numbers[:, :-1]
        labels = np.full_like(blocks, IGNORED)
        labels[:, :-1] = np.where(follows, blocks[:, 1:], IGNORED)
        batch = {"input_ids": blocks, "labels": labels}
        return batch if segments is None else with_documents(batch, segments)

    def positions(self, length: int) -> Positions:
        """The last position has no next token."""
        return Positions(inputs=length, targets=0, predicted=length - 1)

    def inputs(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """As every objective, without the cache for generating, which training would only fill."""
        return super().inputs(model, batch) | {"use_cache": False}
