"""One label out of a fixed set for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.tasks.contract import Answer, Encoded, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class TextClassification(Task):
    """Single-label classification of a text.

    Attributes:
        max_length: tokens kept of each text, special tokens included.
        class_weight: `none`; `balanced` weighs each class by 1 / frequency (for balanced accuracy);
            `sqrt` by its square root (a compromise between accuracy and balanced accuracy).
        label_smoothing: probability mass spread over the wrong labels, in [0, 1).
    """

    max_length: int = Field(128, ge=4)
    class_weight: Literal["none", "sqrt", "balanced"] = "none"
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def encode(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
        """Token ids of each text, truncated to `max_length`."""
        if not texts:
            return []
        ids = tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [np.asarray(row, dtype=np.int64) for row in ids]

    def loss(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy, weighted by class where `batch` holds `class_weights`."""
        import torch.nn.functional as F

        return F.cross_entropy(
            logits.float(), batch["labels"], weight=batch.get("class_weights"), label_smoothing=self.label_smoothing
        )

    def decode(self, probabilities: NDArray[np.float64], labels: Sequence[str]) -> list[Answer]:
        """The most probable label of each row."""
        best = probabilities.argmax(axis=1)
        return [
            Answer(label=labels[index], probability=float(row[index]))
            for row, index in zip(probabilities, best, strict=True)
        ]

    def class_weights(self, counts: Sequence[int]) -> list[float] | None:
        """Inverse (root) frequency, scaled so that the average training row has weight 1."""
        if self.class_weight == "none":
            return None
        share = np.maximum(np.asarray(counts, dtype=float), 1.0)
        share /= share.sum()
        weights = 1.0 / (share if self.class_weight == "balanced" else np.sqrt(share))
        return [float(w) for w in weights / (weights * share).sum()]
