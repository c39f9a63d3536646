"""How a model is spread over the workers of a run: whole on each (DDP), or in shards (FSDP2).

Either way a checkpoint holds whole tensors under the model's own names, so a run may go on with other workers, and even
the other way of spreading.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Tensors = dict[str, "torch.Tensor"]


class Spread:
    """A wrapped module, and the operations that depend on how it is wrapped.

    Args:
        module: has the model as its attribute `model`.
        device: of this worker.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.device = device
        self.network = module

    @abstractmethod
    def accumulating(self) -> AbstractContextManager[Any]:
        """A context in which backward passes do not exchange gradients."""

    @abstractmethod
    def model_tensors(self) -> Tensors:
        """Whole weights in CPU memory that nobody else writes to; every worker calls it, the first one gets them."""

    @abstractmethod
    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """Whole optimiser state, `<parameter>.<what>`, likewise."""

    @abstractmethod
    def load_optimizer(self, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """Put back what `optimizer_tensors` returned."""

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to this norm; returns what it was before, over all workers."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
        whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole


class Replicated(Spread):
    """The whole model on every worker; with several, gradients are averaged (DDP)."""

    def __init__(self, module: torch.nn.Module, device: torch.device, world_size: int) -> None:
        super().__init__(module.to(device), device)
        self._module = self.network
        self._first = True
        if world_size > 1:
            from torch.distributed import get_rank
            from torch.nn.parallel import DistributedDataParallel

            devices = [device] if device.type == "cuda" else None
            self._first = get_rank() == 0
            self.network = DistributedDataParallel(self._module, device_ids=devices, gradient_as_bucket_view=True)

    def accumulating(self) -> AbstractContextManager[Any]:
        """See `Spread`."""
        context: AbstractContextManager[Any] = getattr(self.network, "no_sync", nullcontext)()
        return context

    def model_tensors(self) -> Tensors:
        """See `Spread`."""
        model: Any = self._module.model
        return {name: _copy(tensor) for name, tensor in model.state_dict().items()} if self._first else {}

    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """See `Spread`."""
        if not self._first:
            return {}
        names: dict[torch.Tensor, str] = {p: name for name, p in self._module.named_parameters()}
        return {
            f"{names[parameter]}.{what}": _copy(tensor)
            for parameter, state in optimizer.state.items()
            for what, tensor in state.items()
        }

    def load_optimizer(self, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """See `Spread`."""
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, Tensors] = {}
        for key, tensor in tensors.items():
            name, _, what = key.rpartition(".")
            state.setdefault(order.index(name), {})[what] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Sharded(Spread):
    """Weights, gradients and optimiser state in shards over the workers, layer by layer (FSDP2).

    Zhao et al. 2023, "PyTorch FSDP"; here by `torch.distributed.fsdp.fully_shard`.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, world_size: int, precision: str) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(module, device)
        # Each layer goes to the device when it is sharded: the whole model need not fit there.
        mesh = init_device_mesh(device.type, (world_size,))
        half = precision == "bf16"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for layer in _layers(module):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)

    def accumulating(self) -> AbstractContextManager[Any]:
        """See `Spread`."""
        return _Unsynchronised(self.network)

    def model_tensors(self) -> Tensors:
        """See `Spread`."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        found: Any = get_model_state_dict(self.network, options=_whole())
        return {name.removeprefix("model."): _copy(tensor) for name, tensor in found.items()}

    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> Tensors:
        """See `Spread`."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        found: Any = get_optimizer_state_dict(self.network, optimizer, options=_whole()).get("state", {})
        return {f"{name}.{what}": _copy(tensor) for name, state in found.items() for what, tensor in state.items()}

    def load_optimizer(self, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """See `Spread`."""
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        state: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            name, _, what = key.rpartition(".")
            state.setdefault(name, {})[what] = tensor
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        groups = [
            {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
        ]
        whole: Any = {"state": state, "param_groups": groups}
        set_optimizer_state_dict(self.network, optimizer, whole, options=_whole(offload=False))


def spread(
    module: torch.nn.Module,
    device: torch.device,
    world_size: int,
    parallelism: Literal["ddp", "fsdp"],
    precision: str,
) -> Spread:
    """Wrap a module. With one worker there is nothing to shard."""
    if parallelism == "fsdp" and world_size > 1:
        return Sharded(module, device, world_size, precision)
    return Replicated(module, device, world_size)


class _Unsynchronised(AbstractContextManager[None]):
    def __init__(self, network: Any) -> None:
        self._network = network

    def __enter__(self) -> None:
        self._network.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self._network.set_requires_gradient_sync(True)


def _layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer layers of the model: the elements of its lists of modules."""
    from torch.nn import ModuleList

    model: PreTrainedModel = module.model  # type: ignore[assignment]
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    lists = [found for found in model.modules() if isinstance(found, ModuleList)]
    return [layer for found in lists for layer in found if not kinds or type(layer).__name__ in kinds]


def _whole(*, offload: bool = True) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=offload)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in CPU memory, also of what is there already: training goes on while it is written."""
    import torch

    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
