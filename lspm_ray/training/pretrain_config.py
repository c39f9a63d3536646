"""What a user says about pretraining."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lspm_ray.config import Config
from lspm_ray.errors import ConfigError
from lspm_ray.training.config import WorkersConfig
from lspm_ray.training.objective import Objective


class PretrainModelConfig(Config):
    """The model to pretrain: a fresh one, or one that is pretrained already.

    Attributes:
        architecture: of a fresh model, one of `models.presets.ARCHITECTURES`; None for the usual one of the objective.
        size: of a fresh model, one of `models.presets.SIZES`.
        config: fields of the architecture's transformers config that win over those of the size.
        name: go on from this model instead: a Hub id, a directory, an artifact's URI or `package:NAME/PATH`. Its
            tokenizer is used, unless the `tokenizer` section names another one of the same vocabulary.
        revision: of a model on the Hub.
    """

    architecture: str | None = None
    size: str = "mini"
    config: dict[str, Any] = Field(default_factory=dict)
    name: str | None = Field(None, min_length=1)
    revision: str | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> PretrainModelConfig:
        if self.name is not None and (self.architecture is not None or self.config):
            raise ValueError("name a pretrained model, or say the architecture and config of a fresh one, not both")
        if self.revision is not None and self.name is None:
            raise ValueError("a revision belongs to a model named by `name`")
        return self


class PretrainConfig(Config):
    """Learning from unlabelled blocks of tokens.

    Attributes:
        objective: `{objective: NAME, field: value, ...}` or just the name.
        model: what is pretrained.
        across_documents: a token may see the other documents of its block; false needs a model of the families in
            `training.attention.FAMILIES`.
        epochs: passes over the training blocks. Of `epochs`, `steps` and `tokens`, one is given.
        steps: optimiser steps.
        tokens: tokens to see, rounded down to whole steps.
        batch_size: blocks per optimiser step, of all workers together: more workers make the same steps, faster.
        micro_batch_size: blocks per forward pass of a worker, at most; what memory allows.
        learning_rate: peak, after warm-up.
        weight_decay: of matrices; vectors (biases, norms) have none.
        beta2: AdamW's second decay rate.
        warmup_fraction: share of all steps over which the rate rises linearly from 0.
        schedule: how the rate falls afterwards.
        decay_fraction: share of all steps over which `wsd` falls at the end.
        max_grad_norm: gradients are scaled down to this norm.
        precision: `auto` is bf16 on GPUs and on CPUs with bf16 instructions, else fp32.
        parallelism: `ddp` holds the whole model on every worker; `fsdp` shards weights, gradients and optimiser state
            over the workers (FSDP2), for models that outgrow one device.
        activation_checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: torch.compile; None for GPUs only.
        deterministic: only deterministic kernels on GPUs (slower); on CPUs they are so anyway.
        validate_every_steps: None for twenty times in the run.
        validation_blocks: of the validation split that are used, at most.
        checkpoint_every_steps: between checkpoints.
        keep_checkpoints: the newest that are kept, beside the best model.
        log_every_steps: between lines of progress and points in TensorBoard.
        mlflow: URI of an MLflow tracking server to log to; needs the extra `mlflow`.
        seed: of the weights, the order of the blocks, the objective and dropout.
        workers: of the data-parallel run.
    """

    objective: dict[str, Any] = Field(default_factory=lambda: {"objective": "masked_lm"})
    model: PretrainModelConfig = PretrainModelConfig()
    across_documents: bool = True
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    micro_batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "cosine"
    decay_fraction: float = Field(0.2, gt=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    compile: bool | None = None
    deterministic: bool = False
    validate_every_steps: int | None = Field(None, ge=1)
    validation_blocks: int = Field(256, ge=1)
    checkpoint_every_steps: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every_steps: int = Field(10, ge=1)
    mlflow: str | None = Field(None, min_length=1)
    seed: int = Field(0, ge=0)
    workers: WorkersConfig = WorkersConfig()

    @field_validator("objective", mode="before")
    @classmethod
    def _known_objective(cls, value: Any) -> Any:
        try:
            return Objective.make(value).spec()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _one_length(self) -> PretrainConfig:
        given = [name for name in ("epochs", "steps", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of epochs, steps and tokens, not {', '.join(given) or 'none'}")
        objective = Objective.make(self.objective)
        if not self.across_documents and not objective.separates_documents:
            raise ValueError(f"`across_documents: false` cannot be had with {objective.name}")
        architecture = self.model.architecture
        if architecture is not None and architecture not in objective.architectures:
            raise ValueError(
                f"{objective.name} cannot train the architecture {architecture!r}; valid: "
                + ", ".join(objective.architectures)
            )
        return self

    def total_steps(self, steps_per_epoch: int, tokens_per_step: int) -> int:
        """Optimiser steps of the whole run, at least one."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return self.epochs * steps_per_epoch
        return max(1, (self.tokens or 0) // tokens_per_step)
