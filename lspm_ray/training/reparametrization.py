"""The contract of what shapes a model's weights while they are trained: pruning masks, fake quantisation."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from lspm_ray.plugin import Plugin

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Reparametrization(Plugin):
    """Puts something between the weights that are trained and those that the model computes with.

    Built on `torch.nn.utils.parametrize`: what is trained, and what is kept beside it (masks, scores), are parameters
    and buffers of the model. So the optimiser, DDP and checkpoints treat them as they treat all others, and a resumed
    run is exact without a word about it here.

    Class attributes:
        baked: whether the saved model has the weights that it computed with, or those that were trained.
    """

    package: ClassVar[str] = "lspm_ray.training.reparametrizations"
    kind: ClassVar[str] = "reparametrization"
    baked: ClassVar[bool] = True

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> None:
        """Change the loaded model in place, before a checkpoint is loaded into it and before it is wrapped for DDP.

        Raises:
            ModelError: it does not fit the model.
        """

    def advance(self, model: PreTrainedModel, done: float) -> None:
        """Called before each optimiser step, and before validation; nothing by default.

        All workers call it with the same weights. What it does must depend on them, on the model's buffers and on
        `done` alone, and calling it twice must change nothing more.

        Args:
            model: the one that was given to `attach`.
            done: share of all optimiser steps that are done; 1 after the last epoch.
        """
        return

    def settled(self, done: float) -> bool:
        """Whether a model is what is wanted after this share of the steps; only such epochs can be the best one."""
        return True

    def plain_state(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The state dict of the model as it would be without this, with the effect in its weights if `baked`."""
        import torch
        from torch.nn.utils import parametrize

        state = {name: tensor for name, tensor in model.state_dict().items() if ".parametrizations." not in name}
        with torch.no_grad():
            for name, module in model.named_modules():
                if not parametrize.is_parametrized(module):
                    continue
                for tensor, chain in module.parametrizations.items():
                    value = getattr(module, tensor) if self.baked else chain.original
                    state[f"{name}.{tensor}"] = value.detach()
        return state
