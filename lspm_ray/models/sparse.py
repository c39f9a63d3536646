"""Weights with many zeros, stored without them: one bit per weight says which are there, then come those.

The file is `model-sparse.safetensors`, in place of `model.safetensors`: transformers alone finds no weights in such a
directory, rather than wrong ones. A weight NAME is stored as `bitmask/NAME` (uint8, eight weights each, the first in
the lowest bit), `values/NAME` and `shape/NAME` (int64); all others as `dense/NAME`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lspm_ray.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

SPARSE_FILE = "model-sparse.safetensors"
_DENSE, _BITMASK, _VALUES, _SHAPE = "dense", "bitmask", "values", "shape"
_KERNEL_ROWS, _KERNEL_COLUMNS = 32, 64
"""What the sizes of a bf16 matrix must be multiples of for sparse tensor cores."""


def store_sparse(directory: Path) -> None:
    """Replace the weights of a model directory by `model-sparse.safetensors`."""
    from safetensors.torch import load_file, save_file

    files = sorted(directory.glob("*.safetensors"))
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    save_file(pack(state), directory / SPARSE_FILE)
    for file in (*files, *directory.glob("*.safetensors.index.json")):
        file.unlink()


@contextmanager
def dense_directory(directory: Path) -> Iterator[Path]:
    """The directory itself, or for the time being one with the same configuration and its sparse weights rebuilt.

    Raises:
        ModelError: the sparse file is malformed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    file = directory / SPARSE_FILE
    if not file.is_file():
        yield directory
        return
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise _malformed(str(error).strip().splitlines()[0], file) from None
    with tempfile.TemporaryDirectory() as temporary:
        dense = Path(temporary)
        save_file(unpack(stored, file), dense / "model.safetensors", metadata={"format": "pt"})
        (dense / "config.json").write_bytes((directory / "config.json").read_bytes())
        yield dense


def pack(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor of `state` in the form that takes less room."""
    import torch

    packed = {}
    for name, tensor in state.items():
        present = tensor != 0
        values = tensor[present]
        if tensor.ndim < 2 or values.nbytes + tensor.numel() / 8 >= tensor.nbytes:
            packed[f"{_DENSE}/{name}"] = tensor
            continue
        packed[f"{_BITMASK}/{name}"] = _to_bits(present.flatten())
        packed[f"{_VALUES}/{name}"] = values
        packed[f"{_SHAPE}/{name}"] = torch.tensor(tensor.shape, dtype=torch.int64)
    return packed


def unpack(stored: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """The inverse of `pack`, with +0 for every zero.

    Args:
        stored: content of a sparse file.
        file: where it comes from, for messages.

    Raises:
        ModelError: a part is missing, of the wrong type or size, or does not belong there.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        part, _, name = key.partition("/")
        parts.setdefault(name, {})[part] = tensor
    state = {}
    for name, found in parts.items():
        if set(found) == {_DENSE}:
            state[name] = found[_DENSE]
        elif set(found) == {_BITMASK, _VALUES, _SHAPE}:
            state[name] = _rebuild(name, found[_BITMASK], found[_VALUES], found[_SHAPE], file)
        else:
            raise _malformed(f"{name} is stored as {', '.join(sorted(found))}", file)
    return state


def _rebuild(name: str, bitmask: torch.Tensor, values: torch.Tensor, shape: torch.Tensor, file: Path) -> torch.Tensor:
    import torch

    if shape.dtype != torch.int64 or shape.ndim != 1 or len(shape) < 2 or bool((shape < 1).any()):
        raise _malformed(f"{name} has no shape", file)
    sizes = [int(size) for size in shape]
    count = math.prod(sizes)
    if bitmask.dtype != torch.uint8 or bitmask.shape != (-(-count // 8),):
        raise _malformed(f"the bitmask of {name} is not one of {count} bits", file)
    present = _from_bits(bitmask)
    if bool(present[count:].any()):
        raise _malformed(f"the bitmask of {name} has bits after its end", file)
    present = present[:count]
    if not values.is_floating_point() or values.shape != (int(present.sum()),):
        raise _malformed(f"the values of {name} do not match its bitmask", file)
    dense = torch.zeros(count, dtype=values.dtype)
    dense[present] = values
    return dense.view(sizes)


def _to_bits(flags: torch.Tensor) -> torch.Tensor:
    """bool [n] -> uint8 [ceil(n / 8)]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits(flags.numpy(), bitorder="little"))


def _from_bits(bits: torch.Tensor) -> torch.Tensor:
    """uint8 [n] -> bool [8 n]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little").astype(np.bool_))


def _malformed(what: str, file: Path) -> ModelError:
    return ModelError(f"malformed sparse weights: {what}", field=file.name, value=str(file.parent))


def use_sparse_kernels(model: nn.Module) -> int:
    """Give linear layers whose weights are 2:4 sparse the kernels made for that; returns how many.

    Their weights become bfloat16. The model, which is on a GPU, can only be run afterwards. A GPU without sparse tensor
    cores (before compute capability 8.0) computes with the zeros.
    """
    import torch
    from torch import nn

    if torch.cuda.get_device_capability() < (8, 0):
        return 0
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and is_semi_structured(m.weight)]
    for linear in linears:
        sparse = torch.sparse.to_sparse_semi_structured(linear.weight.detach().to(torch.bfloat16))
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return len(linears)


def is_semi_structured(weight: torch.Tensor) -> bool:
    """Whether of every four neighbours in a row two are zero, and the sizes are such that a GPU can make use of it."""
    rows, columns = weight.shape
    if rows % _KERNEL_ROWS or columns % _KERNEL_COLUMNS:
        return False
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all())
