"""The training loop: every step from data to checkpoint, explicit, for one worker of a data-parallel run.

The loop owns what an exact resume needs: the order of rows is a function of seed and epoch, dropout of seed, rank and
step, the learning rate of the step. A run that was killed and resumed from a checkpoint ends with the same weights as
one that was not (same machine, same number of workers).
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import open_artifact
from lspm_ray.config import Config
from lspm_ray.models.directory import load_model, quiet
from lspm_ray.models.layers import freeze, set_dropout
from lspm_ray.tasks import Task
from lspm_ray.training.batches import batches, batches_in, chunk_rows
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.config import DistillConfig, TrainConfig
from lspm_ray.training.losses import batch_loss
from lspm_ray.training.reparametrization import Reparametrization
from lspm_ray.training.schedule import rate_factor

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    import torch

    from lspm_ray.training.match import Student, Teacher


class TrainJob(Config):
    """One training run, in a form that can be sent to its workers.

    Attributes:
        model_uri: artifact with the model directory to start from.
        labels: names for a fresh classification head; None keeps the model's own head.
        task: the task's YAML form.
        train_rows: rows in the training files, over all workers.
        class_counts: training rows of each class.
        reparametrization: what shapes the weights while they are trained, in its YAML form.
        teacher_uri: artifact with the model whose inner states are matched; None if `distill` matches none.
        work_uri: directory for checkpoints; running the job again with the same one resumes it.
    """

    model_uri: str
    labels: list[str] | None
    task: dict[str, Any]
    train_files: list[str]
    validation_files: list[str]
    train_rows: int
    class_counts: list[int]
    config: TrainConfig
    distill: DistillConfig | None = None
    reparametrization: dict[str, Any] | None = None
    teacher_uri: str | None = None
    work_uri: str


@dataclass
class Worker:
    """What the loop needs from where it runs.

    Attributes:
        train_chunks: the worker's share of the training rows in tables of the given number of rows, from the start.
        validation_chunks: all validation rows.
        prepare: moves the model to the device and, with several workers, wraps it for gradient averaging.
        gather: concatenates arrays of all workers along the first axis.
        report: called with progress, on rank 0.
    """

    rank: int
    world_size: int
    device: torch.device
    train_chunks: Callable[[int], Iterator[pa.Table]]
    validation_chunks: Callable[[int], Iterator[pa.Table]]
    prepare: Callable[[torch.nn.Module], torch.nn.Module]
    gather: Callable[[NDArray[Any]], NDArray[Any]]
    report: Callable[[dict[str, Any]], None]


@dataclass
class _State:
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch already done."""
    step: int = 0
    """Optimiser steps done."""
    best: float = -math.inf
    best_epoch: int = -1
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    world_size: int = 1
    """Workers, among which this epoch's rows were dealt out."""
    loss_sum: float = 0.0
    """Sum of this epoch's batch losses on rank 0: kept so that a resumed epoch logs the same mean."""


def train(job: TrainJob, worker: Worker) -> list[dict[str, float]]:
    """Train, or go on from the newest valid checkpoint. All workers of a run call this together.

    Returns:
        One dict per epoch: train_loss, learning_rate, seconds, and the validation metrics.
    """
    return _Run(job, worker).run()


class _Run:
    def __init__(self, job: TrainJob, worker: Worker) -> None:
        import torch

        self.job, self.worker, self.config = job, worker, job.config
        self.task = Task.make(job.task)
        self.checkpoints = CheckpointStore(
            job.work_uri, warn=lambda text: worker.report({"warning": text}) if worker.rank == 0 else None
        )
        directory = open_artifact(job.model_uri).local()
        torch.manual_seed(self.config.seed)
        self.model = load_model(directory, job.labels)
        if self.config.dropout is not None:
            set_dropout(self.model, self.config.dropout)
        # Before it is wrapped: DDP waits for the gradient of everything that is trained then.
        freeze(self.model, self.config.frozen_layers)
        spec = job.reparametrization
        self.reparametrization = None if spec is None else Reparametrization.make(spec)
        if self.reparametrization is not None:
            self.reparametrization.attach(self.model)
        self.student, self.teacher = self._matched()
        self.pad_id = int(self.model.config.pad_token_id or 0)
        self.batch_size = -(-self.config.batch_size // worker.world_size)
        self.state = _State(world_size=worker.world_size)
        self.resumed = self.checkpoints.latest()
        if worker.rank == 0:
            self.checkpoints.forget_after(-1 if self.resumed is None else self.resumed.state["step"])
        if self.resumed is not None:
            self.model.load_state_dict(_section(self.resumed.tensors, "model"))
            if self.student is not None:
                self.student.projections.load_state_dict(_section(self.resumed.tensors, "projections"))
            self.state = self._resume(self.resumed.state)
        self.network = worker.prepare(self.student or self.model)
        self.optimizer = self._optimizer()
        weights = self.task.class_weights(job.class_counts)
        self.class_weights = None if weights is None else torch.tensor(weights, device=worker.device)

    def _matched(self) -> tuple[Student | None, Teacher | None]:
        """Student and teacher where inner states are matched."""
        distill = self.job.distill
        if distill is None or not distill.matches:
            return None, None
        if self.job.teacher_uri is None:
            raise ValueError(f"there is no teacher to match the {', '.join(distill.matches)} of")
        import torch

        from lspm_ray.training.match import Student, Teacher, width_of

        teacher = load_model(open_artifact(self.job.teacher_uri).local())
        torch.manual_seed(self.config.seed)
        student = Student(self.model, width_of(teacher) if distill.hidden else None)
        return student, Teacher(teacher.to(self.worker.device), distill, student.layers)  # type: ignore[arg-type]

    def _resume(self, saved: dict[str, Any]) -> _State:
        state = _State(**saved)
        if state.world_size != self.worker.world_size and state.batch:
            self._report(
                {
                    "warning": f"resumed with {self.worker.world_size} workers instead of {state.world_size}: "
                    "in this epoch some rows may be seen twice or not at all"
                }
            )
        state.world_size = self.worker.world_size
        return state

    def run(self) -> list[dict[str, float]]:
        while self.state.epoch < self.config.epochs and not self.state.finished:
            self._epoch()
        return self.state.history

    def _epoch(self) -> None:
        state, config, started = self.state, self.config, time.monotonic()
        self.network.train()
        done = state.batch
        stream = batches(self._chunks(), self.batch_size, self.pad_id, config.seed, state.epoch)
        for batch in itertools.islice(stream, done, None):
            self._step(batch)
            state.batch += 1
            if self._at_update() and state.step % config.checkpoint_every_steps == 0 and self._left_in_epoch():
                self._save()
        self._advance(ended=True)
        metrics = self._validate()
        metrics |= {
            "epoch": state.epoch + 1,
            "train_loss": state.loss_sum / max(1, state.batch),
            "learning_rate": self._rate(),
            "seconds": time.monotonic() - started,
        }
        state.history.append(metrics)
        self._keep_best(metrics)
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        state.finished = state.epoch - 1 - state.best_epoch >= config.patience
        self._save()
        self._report(metrics | {"epoch_done": True})

    def _chunks(self) -> Iterator[pa.Table]:
        return self.worker.train_chunks(chunk_rows(self.batch_size))

    def _step(self, batch: dict[str, torch.Tensor]) -> None:
        import torch

        state, config = self.state, self.config
        torch.manual_seed(_mix(config.seed, self.worker.rank, state.epoch, state.batch))
        batch = {name: tensor.to(self.worker.device) for name, tensor in batch.items()}
        if self.class_weights is not None:
            batch["class_weights"] = self.class_weights
        if self._at_update():
            self._advance()
        update = (state.batch + 1) % config.gradient_accumulation == 0 or state.batch + 1 == self._epoch_batches()
        with self._no_sync() if not update else nullcontext():
            with self._autocast():
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                outcome = self.network(**inputs)
            loss = batch_loss(self.task, self.job.distill, outcome.logits, batch)
            if self.teacher is not None:
                with self._autocast():
                    theirs = self.teacher.states(**inputs)
                loss = loss + self.teacher.loss(outcome.states, theirs, inputs["attention_mask"])
            (loss / config.gradient_accumulation).backward()
        state.loss_sum += float(loss.detach())
        if update:
            self._update()

    def _update(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        if self.state.step % 5 == 0:
            mean = self.state.loss_sum / (self.state.batch + 1)
            self._report({"step": self.state.step, "steps": self._steps(), "loss": mean})

    def _advance(self, *, ended: bool = False) -> None:
        if self.reparametrization is not None:
            self.reparametrization.advance(self.model, self._done(ended=ended))

    def _validate(self) -> dict[str, float]:
        import torch

        self.network.eval()
        logits, labels = [], []
        with torch.inference_mode(), self._autocast():
            stream = batches(self._my_validation(), self.batch_size, self.pad_id, 0, 0)
            for batch in stream:
                inputs = {k: batch[k].to(self.worker.device) for k in ("input_ids", "attention_mask")}
                logits.append(self.model(**inputs).logits.float().cpu().numpy())
                labels.append(batch["labels"].numpy())
        width = len(self.model.config.id2label or {})
        mine = np.concatenate(logits) if logits else np.empty((0, width), np.float32)
        truth = np.concatenate(labels) if labels else np.empty(0, np.int64)
        return validation_metrics(self.worker.gather(mine), self.worker.gather(truth))

    def _my_validation(self) -> Iterator[pa.Table]:
        rank, world = self.worker.rank, self.worker.world_size
        for chunk in self.worker.validation_chunks(1024):
            yield chunk.take(np.arange(rank, chunk.num_rows, world))

    def _keep_best(self, metrics: dict[str, float]) -> None:
        if self.reparametrization is not None and not self.reparametrization.settled(self._done(ended=True)):
            self.state.best_epoch = self.state.epoch  # patience begins with the first that counts
            return
        name = self.config.metric
        value = -metrics["loss"] if name == "loss" else metrics[name]
        if value > self.state.best:
            self.state.best, self.state.best_epoch = value, self.state.epoch
            if self.worker.rank == 0:
                needed = sum(parameter.nbytes for parameter in self.model.parameters())
                with quiet():
                    self.checkpoints.save_best(self.state.step, self._write_model, needed)

    def _write_model(self, directory: Path) -> None:
        plain = None if self.reparametrization is None else self.reparametrization.plain_state(self.model)
        self.model.save_pretrained(directory, state_dict=plain)

    def _save(self) -> None:
        if self.worker.rank != 0:
            return
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        if self.student is not None:
            projections = self.student.projections.state_dict()
            tensors |= {f"projections.{k}": v.detach().cpu().contiguous() for k, v in projections.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.detach().cpu().contiguous() for k, v in values.items()}
        state = json.loads(json.dumps(vars(self.state)))
        self.checkpoints.save(self.state.step, _unshared(tensors), state)

    def _optimizer(self) -> torch.optim.AdamW:
        import torch

        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=True)
        if self.resumed is not None:
            values: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _section(self.resumed.tensors, "optimizer").items():
                index, _, key = name.partition(".")
                values.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
        return optimizer

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and fast_bf16(self.worker.device))
        return torch.autocast(self.worker.device.type, torch.bfloat16, enabled=bf16)

    def _no_sync(self) -> AbstractContextManager[Any]:
        skip = getattr(self.network, "no_sync", nullcontext)
        context: AbstractContextManager[Any] = skip()
        return context

    def _epoch_batches(self) -> int:
        return batches_in(self.job.train_rows // self.worker.world_size, self.batch_size)

    def _steps(self) -> int:
        return -(-self._epoch_batches() // self.config.gradient_accumulation) * self.config.epochs

    def _done(self, *, ended: bool) -> float:
        """Share of all optimiser steps that are done; 1 where the last epoch has ended, however many its rows were."""
        if ended and self.state.epoch + 1 == self.config.epochs:
            return 1.0
        return min(1.0, self.state.step / self._steps())

    def _rate(self) -> float:
        config = self.config
        factor = rate_factor(self.state.step, self._steps(), config.warmup_fraction, config.schedule)
        return config.learning_rate * factor

    def _at_update(self) -> bool:
        return self.state.batch % self.config.gradient_accumulation == 0

    def _left_in_epoch(self) -> bool:
        return self.state.batch < self._epoch_batches()

    def _report(self, values: dict[str, Any]) -> None:
        if self.worker.rank == 0:
            self.worker.report(values)


def validation_metrics(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """accuracy, balanced_accuracy, macro_f1, loss and selective_accuracy of logits [rows, labels]."""
    from scipy.special import log_softmax
    from sklearn.metrics import f1_score, recall_score

    predicted = logits.argmax(axis=1)
    present = np.unique(labels)
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "loss": float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean()),
        "selective_accuracy": selective_accuracy(logits, labels),
    }


def selective_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Accuracy of the k rows of highest maximum probability, averaged over all k.

    That is 1 minus the area under the risk-coverage curve (Geifman and El-Yaniv 2017). Rows of equal confidence count
    as one: the order in which they come does not matter.
    """
    from scipy.special import log_softmax

    confidence = log_softmax(logits.astype(np.float64), axis=1).max(axis=1)
    _, place, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    right = np.bincount(place, logits.argmax(axis=1) == labels) / sizes
    return float((np.cumsum(np.repeat(right, sizes)) / np.arange(1, len(labels) + 1)).mean())


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is faster than fp32 there: every CUDA GPU we support, CPUs with AVX512-BF16 or AMX."""
    import torch

    if device.type == "cuda":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def _section(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clone tensors that share memory (tied weights): safetensors stores each on its own."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result
