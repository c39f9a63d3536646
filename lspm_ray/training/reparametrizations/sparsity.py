"""Unstructured pruning: masks on the weights of the linear layers of a transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from lspm_ray.errors import ModelError
from lspm_ray.models.layers import layer_linears
from lspm_ray.training.reparametrization import Reparametrization
from lspm_ray.training.sparsity_config import SparsityConfig

_GROUP, _ZEROS = 4, 2
_STAGES = 100
"""Times that masks are renewed along the ramp: finding the smallest of all weights is not for every step."""


class Sparsity(SparsityConfig, Reparametrization):
    """Masks the linear layers of the encoder; embeddings, pooler and classification head are left alone.

    Every matrix loses the same share. Once the ramp has ended masks stay as they are.
    """

    def attach(self, model: PreTrainedModel) -> None:
        """Put a mask that hides nothing on each matrix.

        Raises:
            ModelError: the layers of the model are not known, or a matrix has no groups of four.
        """
        for name, linear in layer_linears(model).items():
            if self.pattern == "2:4" and linear.in_features % _GROUP:
                raise ModelError(
                    f"{name} has {linear.in_features} inputs, which do not make groups of {_GROUP}", field="pattern"
                )
            mask = _Mask(linear.weight, movement=self.criterion == "movement")
            parametrize.register_parametrization(linear, "weight", mask)

    def advance(self, model: PreTrainedModel, done: float) -> None:
        """Hide more weights, if it is time to."""
        share, masks = self.share(done), list(_masks(model))
        if share <= float(masks[0][1].share):
            return
        for weight, mask in masks:
            mask.hide(weight, share, grouped=self.pattern == "2:4")

    def settled(self, done: float) -> bool:
        """Whether the sparsity is reached."""
        return self.schedule == "oneshot" or done >= self.ramp_end

    def share(self, done: float) -> float:
        """Share of weights to hide after this share of the steps (Zhu & Gupta 2017, equation 1)."""
        if self.schedule == "oneshot":
            return self.sparsity
        progress = (done - self.ramp_start) / (self.ramp_end - self.ramp_start)
        stage = math.floor(_STAGES * min(1.0, max(0.0, progress))) / _STAGES
        return self.sparsity * (1 - (1 - stage) ** 3)


class _Mask(nn.Module):
    """Hides weights of one matrix [out, in].

    With `movement` each has a score, whose gradient is that of the hidden weight times the weight (Sanh et al. 2020,
    equation 3): it falls where training moves a weight towards zero, hidden ones included. Scores begin equal, and
    only their order counts, so the learning rate of all other weights does for them, too.
    """

    mask: torch.Tensor
    share: torch.Tensor

    def __init__(self, weight: torch.Tensor, movement: bool) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))
        # Flat, because what has one dimension only is not decayed.
        self.scores = nn.Parameter(torch.zeros(weight.numel())) if movement else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        seen = torch.where(self.mask, weight, 0.0)
        if self.scores is None:
            return seen
        # Straight through: this adds zero, and gives the scores their gradient.
        return seen + (self.scores - self.scores.detach()).view_as(weight) * weight.detach()

    @torch.no_grad()
    def hide(self, weight: torch.Tensor, share: float, *, grouped: bool) -> None:
        """Hide this share of the weights, the least important ones."""
        # What is hidden by its magnitude stays hidden; by its score it may come back.
        magnitude = torch.where(self.mask, weight.abs(), -1.0)
        importance = magnitude if self.scores is None else self.scores.view_as(weight)
        if grouped:
            importance = torch.where(_least_of_each_group(importance), importance, math.inf)
        hidden = _smallest(importance.flatten(), round(share * weight.numel()))
        self.mask.copy_(~hidden.view_as(self.mask))
        self.share.fill_(share)


def _masks(model: PreTrainedModel) -> Iterator[tuple[torch.Tensor, _Mask]]:
    for linear in layer_linears(model).values():
        chain: Any = getattr(linear.parametrizations, "weight")
        yield chain.original, chain[0]


def _least_of_each_group(values: torch.Tensor) -> torch.Tensor:
    """Marks the two least of every four neighbours in a row: [out, in] -> bool [out, in]."""
    order = values.unflatten(1, (-1, _GROUP)).argsort(dim=-1, stable=True)
    marks = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :_ZEROS], value=True)
    return marks.flatten(1)


def _smallest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Marks exactly `count` of the smallest values, of equal ones the first: [n] -> bool [n]."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    border = values.kthvalue(count).values
    marks = values < border
    equal = (values == border).nonzero().flatten()
    marks[equal[: count - int(marks.sum())]] = True
    return marks
