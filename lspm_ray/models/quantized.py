"""Models whose linear layers torchao holds in few bits.

`model.safetensors` has the integers of each such weight as `NAME.qdata` (two to a byte where they have four bits) and
their scales as `NAME.scale`, beside all other tensors in float32; `torchao.json` says what they mean. torchao's own
tensors are rebuilt around them on loading, so nothing of its layout is in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lspm_ray.config import Config
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import Variant, quiet, register, write_variant
from lspm_ray.models.source import check

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANTIZATION_FILE = "torchao.json"
WEIGHTS_FILE = "model.safetensors"
_MULTIPLE = 16
"""Of both sides of a weight; kernels for other shapes are slow or missing."""

Scheme = Literal["int8_weight_only", "int8_dynamic", "int4_weight_only", "fp8_dynamic"]


class Quantization(Config):
    """What is done to the weights of linear layers.

    Attributes:
        scheme: how.
        group_size: weights that share a scale, for int4; a row does otherwise.
        compile: whether the model is meant to be compiled.
    """

    scheme: Scheme
    group_size: int = Field(32, ge=16)
    compile: bool

    @property
    def precision(self) -> str:
        """What `variant.json` calls it."""
        return self.scheme.partition("_")[0]


def save_quantized(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, quantization: Quantization
) -> None:
    """Write a model directory; quantises the weights of `model` in place, on the CPU.

    Raises:
        ModelError: it has no linear layer of a suitable shape.
    """
    from safetensors.torch import save_file

    _quantize(model, quantization)
    tensors = {name: tensor.detach().contiguous() for name, tensor in _stored(model, quantization)}
    with quiet():
        model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / QUANTIZATION_FILE).write_text(quantization.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_variant(directory, Variant(runtime="torchao", precision=quantization.precision))


def read_quantization(directory: Path) -> Quantization:
    """What `save_quantized` was told.

    Raises:
        ModelError: the directory is none of its.
    """
    file = directory / QUANTIZATION_FILE
    if not file.is_file():
        raise ModelError(f"no {QUANTIZATION_FILE}: not quantised with torchao", field="runtime", value=str(directory))
    return Quantization.parse(json.loads(file.read_text(encoding="utf-8")))


def load_quantized(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The classifier that `save_quantized` wrote, on the CPU.

    Args:
        directory: of the model.
        dtype: of activations and of everything that is not quantised; fp8 needs bfloat16.

    Raises:
        ModelError: the weights do not fit the architecture.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForSequenceClassification

    register()
    check(directory, str(directory))
    quantization = read_quantization(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with quiet(), torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    model.to(dtype)  # type: ignore[arg-type]
    _quantize(model, quantization)
    try:
        found = load_file(directory / WEIGHTS_FILE)
        with torch.no_grad():
            for name, tensor in _parts(model):
                tensor.copy_(_unpacked(found.pop(name), tensor))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"the model does not load: {first}", field="model.name", value=str(directory)) from None
    if found:
        raise ModelError(
            "the model does not load: it has no place for some weights", field="model.name", value=sorted(found)
        )
    return model.eval()  # type: ignore[no-any-return]


def _quantize(model: PreTrainedModel, quantization: Quantization) -> None:
    import torch

    group = quantization.group_size if quantization.scheme == "int4_weight_only" else 1
    layers = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and not module.in_features % _MULTIPLE
        and not module.out_features % _MULTIPLE
        and not module.in_features % group
    ]
    if not layers:
        raise ModelError(
            f"the model has no linear layer whose sizes are multiples of {max(_MULTIPLE, group)}",
            field="model_type",
            value=model.config.model_type,
        )
    for layer in layers:
        layer.weight = torch.nn.Parameter(_quantized(layer.weight.detach(), quantization), requires_grad=False)


def _quantized(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """Activations, where they are quantised, get a scale per token: a row's answer is the same in any company."""
    import torch
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import (
        Float8Tensor,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        PerRow,
        quantize_,
    )
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    if quantization.scheme == "fp8_dynamic":
        # Not by `quantize_`, which needs the GPU for what any CPU can do: the model may be made on another machine.
        made: torch.Tensor = Float8Tensor.from_hp(
            weight.to(torch.bfloat16),
            float8_dtype=torch.float8_e4m3fn,
            granularity=PerRow(),
            mm_config=Float8MMConfig(use_fast_accum=True),
            act_quant_kwargs=QuantizeTensorToFloat8Kwargs(torch.float8_e4m3fn, PerRow()),
        )
        return made
    configs: dict[str, Any] = {
        "int8_weight_only": Int8WeightOnlyConfig(set_inductor_config=False),
        # Seven bits: eight can overflow on CPUs without VNNI, and the model may be served on another machine.
        "int8_dynamic": Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=True),
        "int4_weight_only": IntxWeightOnlyConfig(torch.int4, PerGroup(quantization.group_size)),  # type: ignore[attr-defined]
    }
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight)
    quantize_(layer, configs[quantization.scheme])
    return layer.weight.detach()


def _parts(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of everything that is stored; tied weights once. Zero points are left out: they are all 0."""
    tensor: Any
    for name, tensor in model.named_parameters():
        if hasattr(tensor, "__tensor_flatten__"):
            yield f"{name}.qdata", tensor.qdata
            yield f"{name}.scale", tensor.scale
        else:
            yield name, tensor
    kept = model.state_dict().keys()
    yield from ((name, tensor) for name, tensor in model.named_buffers() if name in kept)


def _stored(model: PreTrainedModel, quantization: Quantization) -> Iterator[tuple[str, torch.Tensor]]:
    four_bits = quantization.scheme == "int4_weight_only"
    for name, tensor in _parts(model):
        yield name, _packed(tensor) if four_bits and name.endswith(".qdata") else tensor


def _packed(values: torch.Tensor) -> torch.Tensor:
    """int8 in [-8, 7], [rows, columns] -> uint8 [rows, columns / 2]."""
    import torch

    nibbles = (values & 0xF).view(torch.uint8)
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def _unpacked(stored: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The inverse of `_packed`; what is not packed stays as it is."""
    import torch

    if stored.dtype != torch.uint8:
        return stored
    nibbles = torch.stack([stored & 0xF, stored >> 4], dim=-1).flatten(-2).view(torch.int8)
    return ((nibbles ^ 8) - 8).reshape(place.shape)
