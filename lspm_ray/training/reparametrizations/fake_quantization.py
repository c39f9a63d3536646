"""Fake quantisation: train with the rounding that ONNX Runtime's dynamic int8 will do."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lspm_ray.training.reparametrization import Reparametrization

_WEIGHT_LEVELS = 64
"""Weights become -64 to 64: seven bits, see `compression.export.quantize_dynamic`."""
_LEVELS = 255
_FUSED_EMBEDDINGS = ("bert", "distilbert")
"""Families whose embeddings and layer norm ONNX Runtime fuses, and then quantises the norm, too."""


class FakeQuantization(Reparametrization):
    """Rounds, in every forward pass, what `quantize_int8` rounds; gradients pass as if nothing were rounded.

    The straight-through estimator of Jacob et al. 2018 (section 3). What is rounded, and how, is what
    `onnxruntime.quantization.quantize_dynamic` does with the settings of the export: weights of all matrix products
    to -64..64 per output channel, symmetric; their inputs to 0..255 over a whole text, without its padding;
    embedding tables to 0..255 over a whole table. The trained weights are saved, not the rounded ones.
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
            elif isinstance(module, nn.Embedding):
                module.register_forward_hook(_round_rows)
        if model.config.model_type in _FUSED_EMBEDDINGS:
            norm = model.base_model.get_submodule("embeddings.LayerNorm")
            for name in ("weight", "bias"):
                parametrize.register_parametrization(norm, name, _PerTensor())


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


class _PerTensor(nn.Module):
    """Asymmetric, one scale for all."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return _round_all(weight, weight.detach())


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


def _round_rows(table: Any, _: Any, rows: torch.Tensor) -> torch.Tensor:
    """Rows of an embedding table, with the scale of the whole table."""
    return _round_all(rows, table.weight.detach())


def _round_all(values: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    scale, zero = _range(whole.amin(), whole.amax())
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _LEVELS)


def _range(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point for values between `low` and `high`; zero is always among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _scale(high - low, _LEVELS)
    return scale, (-low / scale).round().clamp(0, _LEVELS).to(torch.int32)


def _scale(width: torch.Tensor, levels: int) -> torch.Tensor:
    return torch.where(width > 0, width / levels, 1.0)
