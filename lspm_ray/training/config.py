"""Settings of one training run."""

from typing import Literal

from pydantic import Field, model_validator

from lspm_ray.config import Config


class TrainConfig(Config):
    """How a model is trained.

    Attributes:
        epochs: passes over the training rows, at most.
        batch_size: rows per forward pass of all workers together, rounded up to a multiple of their number: more
            workers make the same steps, faster.
        gradient_accumulation: forward passes per optimiser step.
        learning_rate: peak, after warm-up.
        warmup_fraction: share of all steps over which the rate rises linearly from 0.
        schedule: how the rate falls afterwards.
        max_grad_norm: gradients are scaled down to this norm.
        precision: `auto` is bf16 on GPUs and on CPUs with bf16 instructions, else fp32.
        metric: on validation, decides the best epoch and early stopping; `selective_accuracy` is that of the rows of
            highest confidence, averaged over every share of the rows: what a cascade's first model is judged by.
        patience: epochs without a better metric before training stops.
        dropout: of every dropout layer of the model while it is trained; None keeps the model's own.
        frozen_layers: the embeddings and so many transformer layers after them are left as they are; 0 trains all.
        checkpoint_every_steps: optimiser steps between checkpoints inside an epoch; one is also made after each.
        seed: of the fresh classification head, of the order of rows and of dropout.
    """

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss", "selective_accuracy"] = "balanced_accuracy"
    patience: int = Field(2, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)
    frozen_layers: int = Field(0, ge=0)
    checkpoint_every_steps: int = Field(100, ge=1)
    seed: int = Field(0, ge=0)


class WorkersConfig(Config):
    """The workers of a data-parallel run.

    Attributes:
        num_workers: processes that share each batch; None for one per GPU, or one on machines without.
        min_workers: go on with as few as this when nodes are lost, and with more again when they come back; None for
            exactly `num_workers`.
        use_gpu: None for GPUs if the cluster has any.
        cpus_per_worker: reserved for each; None for an equal share of the cluster, less what data loading needs.
        threads: torch threads per worker without a GPU; None for an equal share of the node's CPUs.
        max_failures: worker failures after which the run is given up; each resumes from the last checkpoint.
    """

    num_workers: int | None = Field(None, ge=1)
    min_workers: int | None = Field(None, ge=1)
    use_gpu: bool | None = None
    cpus_per_worker: float | None = Field(None, gt=0)
    threads: int | None = Field(None, ge=1)
    max_failures: int = Field(2, ge=0)

    @model_validator(mode="after")
    def _fewer_than_most(self) -> "WorkersConfig":
        if self.min_workers is not None and self.min_workers > (self.num_workers or self.min_workers):
            raise ValueError(f"min_workers must not be more than num_workers ({self.num_workers})")
        return self


class GatekeeperConfig(Config):
    """Learning to be confident only where one is right (Rabanser et al. 2025, "Gatekeeper", section 3).

    Attributes:
        alpha: share of the loss of the rows that are answered rightly; the rest is the pull of the others' outputs
            towards uniform. Lower values give fewer confident mistakes, and fewer correct answers.
        wrong_when: what counts as wrong, as in `select.risk`: `regret`, the answer is wrong and the teacher's right;
            `disagreement`, it is not the teacher's; or `label`, it is not the label (as in the paper).
    """

    alpha: float = Field(0.5, gt=0, lt=1)
    wrong_when: Literal["regret", "disagreement", "label"] = "regret"


class DistillConfig(Config):
    """Learning from another model's outputs (Hinton et al. 2015).

    Attributes:
        temperature: softens both distributions.
        weight: share of the teacher term in the loss; the rest is the task's own loss on the labels.
        gatekeeper: on the rows that are answered wrongly, learn to be unsure instead; None learns the same on all.
        unlabelled: learn from the rows of `compress.unlabelled` and `compress.augment` too, if there are any.
        hidden: weight of the squared error of the hidden states, layer by layer (Jiao et al. 2020, "TinyBERT"). This
            and the next two are added to the loss; where one is not 0, the teacher runs beside the student.
        attention: weight of the squared error of the attention scores, layer by layer (same paper).
        relations: weight of the divergence of the last layers' relations among queries, keys and values (Wang et al.
            2021, "MiniLMv2"); heads may differ in number.
        relation_heads: that these are cut into, a divisor of both widths; None for as many as fit, up to the teacher's.
        relation_pairs: which of queries, keys and values are related; [qk, vv] is Wang et al. 2020, "MiniLM".
    """

    temperature: float = Field(2.0, gt=0)
    weight: float = Field(0.7, ge=0, le=1)
    gatekeeper: GatekeeperConfig | None = None
    unlabelled: bool = True
    hidden: float = Field(0.0, ge=0)
    attention: float = Field(0.0, ge=0)
    relations: float = Field(0.0, ge=0)
    relation_heads: int | None = Field(None, ge=1)
    relation_pairs: list[Literal["qq", "kk", "vv", "qk"]] = Field(default=["qq", "kk", "vv"], min_length=1)

    @property
    def matches(self) -> list[str]:
        """The names of the terms that need the teacher's inner states."""
        return [name for name in ("hidden", "attention", "relations") if getattr(self, name)]
