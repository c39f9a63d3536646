"""Linear layers in few bits, by torchao."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.library import Library
from lspm_ray.models.directory import load_model, load_tokenizer
from lspm_ray.models.quantized import Quantization, Scheme, save_quantized
from lspm_ray.models.shape import Shape

# Their weights are in embeddings, recurrent layers, or a layer of GPT-2's own.
_NOT_LINEAR = ("gpt2", "lspm_bag_of_ngrams", "lspm_lstm")


class Torchao(Method):
    """Quantise the linear layers; needs no data.

    For GPUs; on CPUs `quantize_int8` is faster. Where activations are rounded as well, an answer that is computed in
    other company may differ by as much as that rounding.

    Attributes:
        scheme: `int8_weight_only` rounds the weights of each row, `int4_weight_only` those of each group;
            `int8_dynamic` and `fp8_dynamic` round the activations of each token as well. fp8 computes on GPUs only.
        group_size: weights that share a scale, for int4; a multiple of 16. Only in files do two of them share a byte:
            in memory each has one.
        compile: run with `torch.compile`, without which the quantised layers are slower than the others.
    """

    final: ClassVar[bool] = True
    needs: ClassVar[Library | None] = Library("torchao", "torchao")

    scheme: Scheme = "int8_weight_only"
    group_size: int = Field(32, ge=16)
    compile: bool = True

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.group_size % 16:
            raise ValueError(f"group_size must be a multiple of 16 (got {self.group_size})")
        return self

    @property
    def needs_gpu(self) -> bool:
        """See `Method.needs_gpu`."""
        return self.scheme == "fp8_dynamic"

    def check(self, shape: Shape) -> Shape:
        """Fits models with linear layers.

        Raises:
            ModelError: those of this family have none to speak of, or `group_size` does not divide them.
        """
        if shape.family in _NOT_LINEAR:
            raise ModelError(
                "models of this family have their weights elsewhere than in linear layers",
                field="model_type",
                value=shape.family,
            )
        if self.scheme == "int4_weight_only":
            for width in filter(None, (shape.hidden, shape.neurons)):
                if width % self.group_size:
                    raise ModelError(
                        f"matrices of {width} columns cannot be divided into such groups",
                        field=f"{self.name}.group_size",
                        value=self.group_size,
                    )
        return shape

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the quantised model.

        Raises:
            ModelError: it has no linear layer of a suitable shape.
        """
        quantization = Quantization(scheme=self.scheme, group_size=self.group_size, compile=self.compile)
        save_quantized(load_model(source), load_tokenizer(source), target, quantization)
