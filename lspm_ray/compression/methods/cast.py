"""Weights and arithmetic in 16 bits."""

from pathlib import Path
from typing import Any, Literal

from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, save_model
from lspm_ray.models.sparse import SPARSE_FILE, store_sparse


class Cast(Method):
    """Store and compute in half the bits. Steps that train start again from float32.

    Attributes:
        dtype: `bf16` has the range of float32, and is fast on CPUs with AMX or AVX-512 BF16 and on GPUs; elsewhere it
            is several times slower. `fp16` is more exact, and for GPUs.
    """

    dtype: Literal["bf16", "fp16"] = "bf16"

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the rounded model.

        Raises:
            ModelError: a weight is too large for the type.
        """
        import torch

        model: Any = load_model(source)
        model.to(torch.bfloat16 if self.dtype == "bf16" else torch.float16)
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise ModelError(f"{name} has values that are too large for it", field="cast.dtype", value=self.dtype)
        save_model(model, load_tokenizer(source), target, Variant(precision=self.dtype))
        if (source / SPARSE_FILE).is_file():
            store_sparse(target)
