"""Unstructured pruning: single weights become zero, the rest is trained to make up for them."""

from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from lspm_ray.compression.method import Context, Method
from lspm_ray.models.directory import load_model, load_tokenizer, save_model
from lspm_ray.models.layers import check_linears
from lspm_ray.models.shape import Shape
from lspm_ray.models.sparse import store_sparse
from lspm_ray.training.config import DistillConfig, TrainConfig
from lspm_ray.training.sparsity_config import SparsityConfig


class Sparsify(SparsityConfig, Method):
    """Set weights of the encoder's linear layers to zero while distilling from the full model.

    This makes files smaller, not answers faster: every runtime here computes with the zeros, too. Only 2:4 has kernels
    that skip them, on GPUs with sparse tensor cores, and they pay for large matrices alone. Steps after this one
    that train again (`prune`, `distill_layers`, `quantization_aware`) lose the zeros.

    Attributes:
        train: pruning and recovery fine-tuning.
        distill: it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(epochs=3, learning_rate=5e-5)
    distill: DistillConfig = DistillConfig()

    @field_validator("train")
    @classmethod
    def _all_trained(cls, train: TrainConfig) -> TrainConfig:
        if train.frozen_layers:
            raise ValueError(f"frozen_layers must be 0: every layer is pruned (got {train.frozen_layers})")
        return train

    def check(self, shape: Shape) -> Shape:
        """Fits models whose transformer layers are known.

        Raises:
            ModelError: the model's family is not one of them.
        """
        check_linears(shape.model_type, shape.inside)
        return shape

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the pruned model, its weights stored sparse.

        Raises:
            ModelError: `pattern` does not fit the sizes of the matrices.
        """
        from lspm_ray.training.reparametrizations.sparsity import Sparsity

        start = target / "start"
        save_model(load_model(source), load_tokenizer(source), start)
        masks = Sparsity.parse(self.model_dump(include=set(SparsityConfig.model_fields)))
        context.train(start, target, self.train, self.distill, masks)
        store_sparse(target)
