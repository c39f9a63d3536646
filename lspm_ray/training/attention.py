"""Attention that stays inside each document, for blocks that hold several.

Tried with transformers 5.23 on every one of `FAMILIES`, with eager attention and, where they have it, PyTorch's scaled
dot product: a mask of shape [blocks, 1, length, length] is used as it is. Other families refuse such a mask (BLOOM,
DeBERTa), carry a state over from token to token (Mamba, ConvBERT) or count positions on through the block (RoFormer,
MobileBERT), mostly without a word.

Three other ways let tokens of other documents through without a word: positions that restart at each document (only
causal models, without cache and without any mask, take them for a sign of packing), a boolean mask with eager attention
(which adds it to the scores), and a mask of this shape for a model with a sliding window, which it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "gemma",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "megatron-bert",
    "mistral",
    "modernbert",
    "mpnet",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "qwen2",
    "qwen3",
    "roberta",
    "roberta-prelayernorm",
    "smollm3",
    "stablelm",
    "starcoder2",
    "xlm-roberta",
    "xlm-roberta-xl",
)
"""`model_type` of the models that read a document inside a block as if it were alone: each is tested."""

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


def check_apart(config: PreTrainedConfig, length: int) -> None:
    """Refuse a model whose attention cannot be kept inside documents.

    Args:
        config: of the model.
        length: tokens per block.

    Raises:
        ConfigError: it is not one of `FAMILIES`, or sees less of a document than a block may hold.
    """
    field, valid = "pretrain.across_documents", "true"
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"documents of a block cannot be kept apart with a model of the family {config.model_type}",
            field=field,
            value=False,
            valid=[valid],
            hint=f"They can be with {', '.join(FAMILIES)}",
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and length > window:
        raise ConfigError(
            f"documents of a block cannot be kept apart where blocks of {length} tokens are longer than the model's "
            f"sliding window of {window}",
            field=field,
            value=False,
            valid=[valid],
            hint=f"Make blocks of {window} tokens or fewer, or take a model without a window",
        )


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
