"""Fake quantisation: train with the rounding that `quantize_int8` will do."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lspm_ray.training.reparametrization import Reparametrization

_WEIGHT_LEVELS = 64
"""Weights become -64 to 64: seven bits, see `reduce_range` of `quantize_int8`."""
_ROW_LEVELS = 127
_LEAST_TABLE = 1024
"""Numbers of an embedding table that is worth rounding."""
_LEVELS = 255


class FakeQuantization(Reparametrization):
    """Rounds, in every forward pass, what `quantize_int8` rounds; gradients pass as if nothing were rounded.

    The straight-through estimator of Jacob et al. 2018 (section 3). Rounded are the weights of all matrix products, to
    -64..64 per output channel, symmetric; their inputs, to 0..255 over a whole text, without its padding; and the rows
    of embedding tables, each to -127..127. The trained weights are saved, not the rounded ones.
    """

    baked: ClassVar[bool] = False

    def attach(self, model: PreTrainedModel) -> None:
        """Round weights, inputs and embeddings of every layer that the export quantises."""
        texts = _Texts()
        model.register_forward_pre_hook(texts.begin, with_kwargs=True)
        for module in list(model.modules()):
            if isinstance(module, nn.Linear | Conv1D):
                axis = 0 if isinstance(module, nn.Linear) else 1
                parametrize.register_parametrization(module, "weight", _PerChannel(axis))
                module.register_forward_pre_hook(texts.round_input)
            elif isinstance(module, nn.Embedding) and module.weight.numel() >= _LEAST_TABLE:
                module.register_forward_hook(_round_rows)


class _PerChannel(nn.Module):
    """Symmetric, one scale per output channel, which is dimension `axis`."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        largest = weight.detach().abs().amax(1 - self.axis)
        zeros = torch.zeros_like(largest, dtype=torch.int32)
        scale = _scale(largest, _WEIGHT_LEVELS)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, self.axis, -_WEIGHT_LEVELS, _WEIGHT_LEVELS)


class _Texts:
    """Rounds the inputs of layers, each text of a batch on its own: the runtime computes one text per run."""

    def __init__(self) -> None:
        self._mask: torch.Tensor | None = None

    def begin(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        self._mask = None if mask is None else mask.bool()

    def round_input(self, _: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        inputs, *rest = arguments
        # In float: bf16 has no room for 256 levels.
        rounded = _round_each(inputs.float(), self._mask)
        return rounded.to(inputs.dtype), *rest


def _round_each(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Asymmetric, one scale per text, without padding: [texts, tokens, width] or [texts, width]."""
    seen = values.detach()
    if mask is not None and seen.shape[:-1] == mask.shape:
        seen = seen.masked_fill(~mask[..., None], 0.0)
    seen = seen.flatten(1)
    scale, zero = _range(seen.amin(1), seen.amax(1))
    return torch.fake_quantize_per_channel_affine(values, scale, zero, 0, 0, _LEVELS)


def _round_rows(_: Any, __: Any, rows: torch.Tensor) -> torch.Tensor:
    """Symmetric, one scale per row of the table: [..., width]."""
    flat = rows.flatten(0, -2)
    scale = _scale(flat.detach().abs().amax(1), _ROW_LEVELS)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(flat, scale, zeros, 0, -_ROW_LEVELS, _ROW_LEVELS).view_as(rows)


def _range(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point for values between `low` and `high`; zero is always among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _scale(high - low, _LEVELS)
    return scale, (-low / scale).round().clamp(0, _LEVELS).to(torch.int32)


def _scale(width: torch.Tensor, levels: int) -> torch.Tensor:
    return torch.where(width > 0, width / levels, 1.0)
