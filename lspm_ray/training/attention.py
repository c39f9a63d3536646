"""Attention that stays inside each document, for blocks that hold several.

Tried with transformers 5.23 on BERT, GPT-2 and Llama, with eager attention and PyTorch's scaled dot product: a mask of
shape [blocks, 1, length, length] is used as it is. Two other ways let tokens of other documents through without a word:
positions that restart at each document (only causal models, without cache and without any mask, take them for a sign
of packing), and a boolean mask with eager attention (which adds it to the scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TAKE_A_MASK = ("sdpa", "eager")


def document_numbers(segments: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
    """Which document of its block each position belongs to, counted from 0.

    Args:
        segments: per block, the tokens of each of its documents, in order.
        length: positions per block.

    Returns:
        Shape [blocks, length]. Padding, at the end, counts as one more document: a position that could see none at all
        would get undefined attention.
    """
    numbers = np.empty((len(segments), length), dtype=np.int64)
    for row, lengths in zip(numbers, segments, strict=True):
        row[: lengths.sum()] = np.repeat(np.arange(len(lengths)), lengths)
        row[lengths.sum() :] = len(lengths)
    return numbers


def position_ids(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions that start from 0 in each document; shape as `numbers`, which `document_numbers` gave."""
    index = np.broadcast_to(np.arange(numbers.shape[1]), numbers.shape)
    starts = np.zeros_like(numbers)
    starts[:, 1:] = np.where(numbers[:, 1:] != numbers[:, :-1], index[:, 1:], 0)
    return index - np.maximum.accumulate(starts, axis=1)


def document_mask(numbers: torch.Tensor, positions: torch.Tensor, causal: bool) -> torch.Tensor:
    """Which positions (third axis) see which (fourth): those of their document and, if causal, not after them.

    Args:
        numbers: of the documents, shape [blocks, length].
        positions: inside the documents, same shape.
        causal: whether a token sees none after it.

    Returns:
        Booleans, shape [blocks, 1, length, length].
    """
    mask = numbers[:, None, :, None] == numbers[:, None, None, :]
    if causal:
        mask = mask & (positions[:, None, :, None] >= positions[:, None, None, :])
    return mask


def attention_mask(
    model: PreTrainedModel, numbers: torch.Tensor, positions: torch.Tensor, causal: bool
) -> torch.Tensor:
    """`document_mask` in the form that the model's attention takes: for eager, what is to be added to the scores.

    Raises:
        ConfigError: the model's attention takes no mask of this shape.
    """
    import torch

    how = model.config._attn_implementation
    if how not in _TAKE_A_MASK:
        raise ConfigError(
            "this attention cannot be kept inside documents",
            field="attn_implementation",
            value=how,
            valid=_TAKE_A_MASK,
        )
    mask = document_mask(numbers, positions, causal)
    if how == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(model.dtype).min
    )
