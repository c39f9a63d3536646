"""Model FLOPs of training, and how much of a device's peak they are.

Only what the model needs by definition is counted, as Chowdhery et al. 2022 (PaLM, appendix B) do for their model FLOPs
utilisation: no recomputation, no padding, no logits that nothing is learnt from.
"""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, Literal

from lspm_ray.training.objective import Positions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense FLOP/s in bf16 (V100 and T4: fp16) by NVIDIA's data sheets; the first name that fits a device counts."""

_MEASURE_S = 0.3
_CROSS_ATTENTION = re.compile(r"EncDecAttention\.[kv]$")


def flops_per_token(model: PreTrainedModel, length: int, positions: Positions | None = None) -> float:
    """FLOPs of forward and backward pass per token of a block: 6 N + 12 L H Q T (PaLM, appendix B).

    N are the parameters that a position is multiplied with: no biases, and of embeddings only those that also make the
    logits. L H Q are the layers times the width of all heads, T the positions that each sees; causal models are
    counted as if they saw all, as there. In an encoder-decoder each side counts for its own positions, the keys and
    values of the attention between them for the encoder's.

    Args:
        model: with its head; on any device, `meta` included.
        length: tokens per block.
        positions: what the objective makes of a block; None for `length` positions that are all predicted.
    """
    positions = positions or Positions(inputs=length, targets=0, predicted=length)
    return (6 * _multiplications(model, positions) + 12 * _attention(model, positions)) / length


def peak_flops(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """FLOP/s that a device can do at most: as its maker says if known, else as a matrix product measures it.

    Takes about a third of a second where it is measured: on CPUs, unknown or divided GPUs, and for fp32.
    """
    import torch

    if device.type == "cuda" and precision == "bf16":
        known = known_peak(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measured_peak(device, precision)


def known_peak(name: str) -> float | None:
    """Peak FLOP/s in 16 bits of a whole GPU; None for one that is not in the table, or a part of one.

    Args:
        name: as the driver calls it, e.g. `NVIDIA A100-SXM4-80GB`.
    """
    words = re.split(r"[\s\-_]+", name.upper())
    if "MIG" in words:
        return None
    return next((peak for device, peak in _PEAKS.items() if set(device.upper().split()) <= set(words)), None)


@functools.cache
def measured_peak(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """FLOP/s of a large matrix product: the best of several, as other processes can only slow it down."""
    import torch

    size = 4096 if device.type == "cuda" else 1024
    left = torch.ones((size, size), device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    right, seconds = left.clone(), list[float]()
    _timed_product(left, right)  # the first also starts threads and picks a kernel
    until = time.perf_counter() + _MEASURE_S
    while len(seconds) < 3 or time.perf_counter() < until:
        seconds.append(_timed_product(left, right))
    return 2 * size**3 / min(seconds)


def mfu(tokens_per_s: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation (PaLM, appendix B): the share of the peak that goes into the model.

    Args:
        tokens_per_s: of all devices together.
        flops_per_token: what `flops_per_token` says.
        peak: FLOP/s of all devices together.
    """
    return tokens_per_s * flops_per_token / peak


def _multiplications(model: PreTrainedModel, positions: Positions) -> int:
    """Multiply-adds of one block with the parameters, forwards."""
    from torch.nn import Embedding

    output, body = model.get_output_embeddings(), model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, Embedding) or module is output:
            continue
        parameters = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim >= 2)
        total += parameters * _positions_of(name, prefix, positions)
    # It may be the embeddings' matrix: there looking it up costs nothing, here it is multiplied with.
    return total + (0 if output is None else output.weight.numel() * positions.predicted)


def _positions_of(module: str, body: str, positions: Positions) -> int:
    if not module.startswith(body):
        return positions.predicted
    if not module.startswith("decoder.") or _CROSS_ATTENTION.search(module):
        return positions.inputs
    return positions.targets


def _attention(model: PreTrainedModel, positions: Positions) -> int:
    """Sum over all attention layers of one block: width of the heads x queries x keys."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head
    seen = config.num_hidden_layers * positions.inputs**2
    if positions.targets:
        seen += config.num_decoder_layers * positions.targets * (positions.targets + positions.inputs)
    return int(width * seen)


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    import torch

    started = time.perf_counter()
    left @ right
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
