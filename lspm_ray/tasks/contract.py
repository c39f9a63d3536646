"""The contract of a task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.config import Config
from lspm_ray.plugin import Plugin

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Encoded = NDArray[np.int64]
"""Token ids of one example, shape [tokens], special tokens included, no padding."""


class Answer(Config):
    """What a user gets for one input."""

    label: str
    probability: float
    """Calibrated probability of `label`."""


class Task(Plugin):
    """How examples become model inputs, and model outputs become answers."""

    package: ClassVar[str] = "lspm_ray.tasks.kinds"
    kind: ClassVar[str] = "task"
    max_length: int
    """Tokens kept of each example, special tokens included."""

    @abstractmethod
    def encode(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
        """Model inputs of each text, truncated to `max_length` tokens."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Training loss, a scalar. `batch` holds `labels` and, where known, `class_weights` [labels]."""

    @abstractmethod
    def decode(self, probabilities: NDArray[np.float64], labels: Sequence[str]) -> list[Answer]:
        """Answers for rows of probabilities, shape [rows, labels]."""

    @abstractmethod
    def class_weights(self, counts: Sequence[int]) -> list[float] | None:
        """Weight of each class in the loss given its training count, or None for equal weights."""
