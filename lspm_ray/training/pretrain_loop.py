"""The pretraining loop: every step from blocks to checkpoint, explicit, for one worker of a data-parallel run.

What a step does is a function of the seed and the step's number: which blocks it sees, what is hidden of them, the
learning rate, dropout. So the number of the step, the weights and the optimiser's state are a whole checkpoint, and a
run that was killed ends with the same weights as one that was not (same machine, same number of workers). With another
number of workers every step still sees the same blocks and hides the same tokens; sums are rounded in another order,
and dropout falls elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import open_artifact
from lspm_ray.config import Config
from lspm_ray.errors import ModelError, TrainingError
from lspm_ray.models.directory import load_tokenizer, quiet
from lspm_ray.training.checkpoint import Checkpoint, CheckpointStore, size_of
from lspm_ray.training.flops import flops_per_token, mfu, peak_flops
from lspm_ray.training.loop import fast_bf16
from lspm_ray.training.objective import IGNORED, Batch, Objective, Vocabulary
from lspm_ray.training.parallel import Spread, spread
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.sampler import Blocks, Rows, Share, ahead, sample_keys, steps_from, steps_in
from lspm_ray.training.schedule import rate_factor
from lspm_ray.training.tracking import Tracker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_VALIDATION_EPOCH = (1 << 32) - 1
"""Salt of the keys of validation blocks: the same are hidden every time."""

TIMINGS = ("seconds", "tokens_per_s", "mfu", "data_wait_share", "checkpoint_share")
"""Entries of the history that differ from run to run."""


class PretrainJob(Config):
    """One pretraining run, in a form that can be sent to its workers.

    Attributes:
        blocks_uri: artifact of the blocks.
        tokenizer_uri: artifact of their tokenizer.
        base_uri: artifact of the model to go on from; None for a fresh one.
        work_uri: directory for checkpoints; running the job again with the same one resumes it.
        log_uri: directory of the TensorBoard log.
    """

    blocks_uri: str
    tokenizer_uri: str
    base_uri: str | None
    config: PretrainConfig
    work_uri: str
    log_uri: str


@dataclass
class PretrainWorker:
    """What the loop needs from where it runs.

    Attributes:
        add: sums a tensor over all workers, in place.
        report: called with progress, on rank 0.
    """

    rank: int
    world_size: int
    device: torch.device
    add: Callable[[torch.Tensor], None]
    report: Callable[[dict[str, Any]], None]


@dataclass
class _State:
    step: int = 0
    """Optimiser steps done."""
    best: float = math.inf
    """Least validation loss so far."""
    history: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    targets: float = 0.0
    """Sums since the last validation: kept so that a resumed run logs the same mean."""
    seconds: float = 0.0
    world_size: int = 1


def pretrain_model(job: PretrainJob, worker: PretrainWorker) -> list[dict[str, float]]:
    """Train, or go on from the newest valid checkpoint. All workers of a run call this together.

    Returns:
        One dict per validation: step, tokens, train_loss, validation_loss, learning_rate, gradient_norm, and `TIMINGS`.

    Raises:
        TrainingError: the loss is not finite; no checkpoint was written since it was.
    """
    return _Run(job, worker).run()


def make_model(job: PretrainJob, warn: Callable[[str], None] = lambda _: None) -> tuple[PreTrainedModel, Vocabulary]:
    """The model at step 0, on the CPU, and what is to be known of its tokenizer.

    Args:
        job: what is to be trained.
        warn: called with what a pretrained model lacks and gets fresh weights for.

    Raises:
        ConfigError: config and architecture do not go together.
        ModelError: the tokenizer does not fit the model.
    """
    from lspm_ray.models.presets import build_config, build_model

    config = job.config
    objective = Objective.make(config.objective)
    tokenizer = load_tokenizer(open_artifact(job.tokenizer_uri).local(), eos_pads=True)
    vocabulary = Vocabulary.of(tokenizer)
    length = int(open_artifact(job.blocks_uri).manifest.summary["length"])
    if job.base_uri is None:
        made = build_config(
            config.model.architecture or objective.architectures[0],
            config.model.size,
            vocab_size=vocabulary.size,
            length=length,
            ids=vocabulary.ids,
            overrides=config.model.config,
        )
        objective.check(tokenizer, made, length, across_documents=config.across_documents)
        return build_model(objective.auto_class, made, config.seed), vocabulary
    model = _pretrained(job.base_uri, objective, config.seed, warn)
    objective.check(tokenizer, model.config, length, across_documents=config.across_documents)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = vocabulary.id("pad")  # fine-tuning needs to know it
    return model, vocabulary


def _pretrained(uri: str, objective: Objective, seed: int, warn: Callable[[str], None]) -> PreTrainedModel:
    import torch
    import transformers
    from safetensors import SafetensorError

    from lspm_ray.models.source import check

    directory = open_artifact(uri).local()
    check(directory, str(directory))
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        objective.check_kind(config)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of weights that the checkpoint lacks: every worker makes the same
            found = getattr(transformers, objective.auto_class).from_pretrained(
                directory,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype="float32",
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the model does not load for {objective.name}: {first}", field="pretrain.model.name", value=uri
        ) from None
    model: PreTrainedModel = found[0]
    missing = sorted(found[1]["missing_keys"])
    if missing:
        warn(f"the model has no weights for {', '.join(missing)}: these start at random")
    return model


class _Run:
    def __init__(self, job: PretrainJob, worker: PretrainWorker) -> None:
        import torch

        self.job, self.worker, self.config = job, worker, job.config
        self.objective = Objective.make(self.config.objective)
        if self.config.deterministic:
            # Without it cuBLAS may choose among kernels by free memory, and torch refuses to run.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.checkpoints = CheckpointStore(
            job.work_uri,
            warn=self._warn,
            keep=self.config.keep_checkpoints,
        )
        blocks = open_artifact(job.blocks_uri)
        self.train_blocks, self.held_out = Blocks(blocks, "train"), Blocks(blocks, "validation")
        self.length = self.train_blocks.length
        self.epoch_steps = steps_in(sum(self.train_blocks.rows_per_shard), self.config.batch_size)
        self.steps = self.config.total_steps(self.epoch_steps, self.config.batch_size * self.length)
        self.model, self.vocabulary = make_model(job)
        resumed = self._newest()
        self.state = _State(world_size=worker.world_size)
        if resumed is not None:
            self.model.load_state_dict(_section(resumed.tensors, "model"))
            self.state = self._resume(resumed.state)
        self.half = self.config.precision == "bf16" or (self.config.precision == "auto" and fast_bf16(worker.device))
        self.spread = self._spread()
        self.optimizer = self._optimizer()
        if resumed is not None:
            self.spread.load_optimizer(self.optimizer, _section(resumed.tensors, "optimizer"))
        self.meter = _Meter(self)

    def _newest(self) -> Checkpoint | None:
        """The checkpoint that rank 0 finds, on every worker: what each finds by itself may not be the same."""
        import torch

        found = self.checkpoints.latest() if self.worker.rank == 0 else None
        step = torch.tensor([0 if found is None else found.state["step"]], device=self.worker.device)
        self.worker.add(step)
        if self.worker.rank == 0:
            self.checkpoints.forget_after(int(step))
            return found
        return self.checkpoints.at(int(step)) if step else None

    def _resume(self, saved: dict[str, Any]) -> _State:
        state = _State(**saved)
        said = f"resumed at step {state.step} of {self.steps}"
        if state.world_size != self.worker.world_size:
            said += f", with {self.worker.world_size} workers instead of {state.world_size}"
        self._report({"note": said})
        state.world_size = self.worker.world_size
        return state

    def _spread(self) -> Spread:
        import torch

        model: Any = self.model
        if self.config.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        module = _objective_module(model, self.objective)
        precision = "bf16" if self.half else "fp32"
        made = spread(module, self.worker.device, self.worker.world_size, self.config.parallelism, precision)
        compiled = self.config.compile if self.config.compile is not None else self.worker.device.type == "cuda"
        self.forward: Any = torch.compile(made.network) if compiled else made.network
        return made

    def _optimizer(self) -> torch.optim.AdamW:
        import torch

        config = self.config
        parameters = [p for p in self.spread.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)

    def run(self) -> list[dict[str, float]]:
        state, config = self.state, self.config
        every = config.validate_every_steps or max(1, self.steps // 20)
        batches = self._batches()
        tracker = Tracker.open(self.job.log_uri, config.mlflow, state.step, self.worker.rank, self._warn)
        with tracker as self.tracker:
            try:
                while state.step < self.steps:
                    self.meter.begin()
                    waited = time.perf_counter()
                    micros, targets = next(batches)
                    self.meter.waited(time.perf_counter() - waited)
                    self._step(micros, targets)
                    last = state.step == self.steps
                    if state.step % config.log_every_steps == 0 or last:
                        self._log()
                    if state.step % every == 0 or last:
                        self._validate()
                    if state.step % config.checkpoint_every_steps == 0 or last:
                        self._save()
                self.checkpoints.wait()
            finally:
                batches.close()
                self.checkpoints.close()
        return state.history

    def _batches(self) -> Any:
        """Micro-batches of every step from here on, with the number of targets in them; made ahead by a thread."""
        share = Share(self.config.batch_size, self.worker.rank, self.worker.world_size)
        epoch, place = divmod(self.state.step, self.epoch_steps)
        epochs = -(-self.steps // self.epoch_steps)
        found = steps_from(
            self.train_blocks, self.config.seed, share, epoch=epoch, first=place * share.batch, epochs=epochs
        )
        return ahead((self._micros(step.rows, step.epoch, step.numbers) for step in found), 4)

    def _micros(self, rows: Rows, epoch: int, numbers: NDArray[np.int64]) -> tuple[list[Batch], int]:
        keys = sample_keys(self.config.seed, epoch, numbers)
        micros = self._forward_passes(rows, keys, len(rows), self.config.batch_size)
        return micros, int(sum((batch["labels"] != IGNORED).sum() for batch in micros))

    def _forward_passes(self, rows: Rows, keys: NDArray[np.uint64], mine: int, together: int) -> list[Batch]:
        """Batches of one step: equally many on every worker, as they exchange something in each.

        Args:
            rows: of this worker, at least one.
            keys: one for each.
            mine: how many of the rows count.
            together: rows of all workers.
        """
        most = -(-together // self.worker.world_size)
        batches = []
        for part in np.array_split(np.arange(mine), -(-most // self.config.micro_batch_size)):
            # A worker with a row less than others computes some row again and learns nothing from it.
            chosen = part if len(part) else np.zeros(1, dtype=np.int64)
            segments = None if self.config.across_documents else [rows.segments[place] for place in chosen]
            batch = self.objective.corrupt(
                rows.input_ids[chosen], rows.tokens[chosen], keys[chosen], self.vocabulary, segments
            )
            if not len(part):
                batch["labels"] = np.full_like(batch["labels"], IGNORED)
            batches.append(batch)
        return batches

    def _step(self, micros: list[Batch], mine: int) -> None:
        import torch

        state, config, device = self.state, self.config, self.worker.device
        self.spread.network.train()
        targets = torch.tensor([float(mine)], device=device)
        self.worker.add(targets)
        rate = config.learning_rate * rate_factor(
            state.step, self.steps, config.warmup_fraction, config.schedule, config.decay_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = torch.zeros(1, device=device)
        for number, batch in enumerate(micros):
            torch.manual_seed(_mix(config.seed, self.worker.rank, state.step, number))
            tensors = self._tensors(batch)
            with self.spread.accumulating() if number + 1 < len(micros) else nullcontext():
                with self._autocast():
                    loss = self.forward(tensors)
                # Gradients are averaged over the workers; times their number and by all targets makes the mean loss.
                (loss * (self.worker.world_size / targets[0].clamp(min=1))).backward()
            losses += loss.detach()
        norm = self.spread.clip(config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self.meter.add(losses, targets, norm, rate)

    def _tensors(self, batch: Batch) -> dict[str, torch.Tensor]:
        import torch

        device = self.worker.device
        made = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
        if device.type == "cuda":
            made = {name: tensor.pin_memory() for name, tensor in made.items()}
        return {name: tensor.to(device, non_blocking=True) for name, tensor in made.items()}

    def _log(self) -> None:
        values = self.meter.read()
        self.tracker.log(self.state.step, values)
        tokens_left = (self.steps - self.state.step) * self.config.batch_size * self.length
        left = {"seconds_left": tokens_left / max(values["tokens_per_s"], 1e-9)}
        self._report(values | left | {"step": self.state.step, "steps": self.steps})

    def check_finite(self, loss: float, norm: float) -> None:
        """Refuse to go on, or to save anything, with weights that are or will be no numbers.

        Args:
            loss: mean or sum over some steps.
            norm: of the gradient of the last step.

        Raises:
            TrainingError: one of them is not finite.
        """
        for name, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is {value} at step {self.state.step}",
                    field="pretrain.learning_rate",
                    value=self.config.learning_rate,
                    hint="Take a lower rate, or a longer warm-up (pretrain.warmup_fraction)",
                )

    def _validate(self) -> None:
        import torch

        started = time.perf_counter()
        self.spread.network.eval()
        wanted = min(self.config.validation_blocks, sum(self.held_out.rows_per_shard))
        start, stop = Share(wanted, self.worker.rank, self.worker.world_size).of(0)
        numbers = np.arange(start, max(stop, start + 1))
        rows = self.held_out.take(self.held_out.order(0, 0), start, int(numbers[-1]) + 1)
        keys = sample_keys(self.config.seed, _VALIDATION_EPOCH, numbers)
        sums = torch.zeros(2, device=self.worker.device, dtype=torch.float64)
        with torch.no_grad(), self._autocast():
            for batch in self._forward_passes(rows, keys, stop - start, wanted):
                sums[0] += self.spread.network(self._tensors(batch)).double()
                sums[1] += float((batch["labels"] != IGNORED).sum())
        self.worker.add(sums)
        loss = float(sums[0] / sums[1].clamp(min=1))
        entry = self.meter.epoch() | {"validation_loss": loss}
        self.state.history.append(entry)
        self.tracker.log(self.state.step, {"validation_loss": loss, "perplexity": math.exp(min(loss, 50.0))})
        self._report({"validated": True, "step": self.state.step, "steps": self.steps, **entry})
        self.meter.paused(time.perf_counter() - started)
        if loss < self.state.best:
            self.state.best = loss
            self._save_best()

    def _save_best(self) -> None:
        started = time.perf_counter()
        tensors = self.spread.model_tensors()
        if self.worker.rank == 0:

            def write(path: Path) -> None:
                with quiet():
                    self.model.save_pretrained(path, state_dict=tensors)

            self.checkpoints.save_best_async(self.state.step, write, size_of(tensors))
        self.meter.stood_still(started)

    def _save(self) -> None:
        started = time.perf_counter()
        self.meter.fold()
        tensors = {f"model.{name}": tensor for name, tensor in self.spread.model_tensors().items()}
        found = self.spread.optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in found.items()}
        if self.worker.rank == 0:
            state = json.loads(json.dumps(vars(self.state)))
            self.checkpoints.save_async(self.state.step, tensors, state)
        self.meter.stood_still(started)

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.worker.device.type, torch.bfloat16, enabled=self.half)

    def _warn(self, text: str) -> None:
        self._report({"warning": text})

    def _report(self, values: dict[str, Any]) -> None:
        if self.worker.rank == 0:
            self.worker.report(values)


class _Meter:
    """Loss and pace, kept on the device between two lines of progress: nothing waits for it in between."""

    def __init__(self, run: _Run) -> None:
        import torch

        self._run = run
        self._state = run.state
        precision: Any = "bf16" if run.half else "fp32"
        self._flops = flops_per_token(run.model, run.length, run.objective.positions(run.length))
        self._peak = peak_flops(run.worker.device, precision) * run.worker.world_size
        self._since_line, self._since_fold = (
            torch.zeros(2, device=run.worker.device, dtype=torch.float64) for _ in range(2)
        )
        self._norm: Any = torch.zeros(1)
        self._rate = 0.0
        self._line = _Clock()
        self._whole = _Clock()

    def begin(self) -> None:
        for clock in (self._line, self._whole):
            clock.start(time.perf_counter())

    def waited(self, seconds: float) -> None:
        for clock in (self._line, self._whole):
            clock.waited += seconds

    def stood_still(self, since: float) -> None:
        """From then to now training waited for something to be saved."""
        for clock in (self._line, self._whole):
            clock.start(since)
            clock.saving += time.perf_counter() - since

    def paused(self, seconds: float) -> None:
        """Time that is not training."""
        for clock in (self._line, self._whole):
            clock.skip(seconds)

    def add(self, losses: Any, targets: Any, norm: Any, rate: float) -> None:
        """Sums of one step: `losses` of this worker, `targets` of all."""
        import torch

        # `targets` counts those of all workers, and both sums are added up over the workers later.
        step = torch.stack([losses[0], targets[0] / self._run.worker.world_size]).double()
        self._since_line += step
        self._since_fold += step
        self._norm, self._rate = norm, rate
        for clock in (self._line, self._whole):
            clock.steps += 1

    def read(self) -> dict[str, float]:
        """Means since the last time; all workers call it together."""
        loss, targets = self._over_workers(self._since_line)
        values = {
            "loss": loss / max(1.0, targets),
            "learning_rate": self._rate,
            "gradient_norm": float(self._norm),
            **self._pace(self._line),
        }
        self._line = _Clock()
        return values

    def fold(self) -> None:
        """Bring the sums to the state, from where a checkpoint takes them; all workers call it together."""
        loss, targets = self._over_workers(self._since_fold)
        self._state.loss_sum += loss
        self._state.targets += targets

    def _over_workers(self, sums: torch.Tensor) -> tuple[float, float]:
        self._run.worker.add(sums)
        loss, targets = sums.tolist()
        self._run.check_finite(loss / max(1.0, targets), float(self._norm))
        sums.zero_()
        return loss, targets

    def epoch(self) -> dict[str, float]:
        """An entry of the history, since the last one; all workers call it together."""
        self.fold()
        state, clock = self._state, self._whole
        state.seconds += clock.seconds()
        entry = {
            "step": float(state.step),
            "tokens": float(state.step * self._run.config.batch_size * self._run.length),
            "train_loss": state.loss_sum / max(1.0, state.targets),
            "learning_rate": self._rate,
            "gradient_norm": float(self._norm),
            **self._pace(clock),
            "seconds": state.seconds,
        }
        state.loss_sum = state.targets = 0.0
        self._whole = _Clock()
        return entry

    def _pace(self, clock: _Clock) -> dict[str, float]:
        seconds = clock.seconds()
        tokens = clock.steps * self._run.config.batch_size * self._run.length / max(seconds, 1e-9)
        return {
            "tokens_per_s": tokens,
            "mfu": mfu(tokens, self._flops, self._peak),
            "data_wait_share": clock.waited / max(seconds, 1e-9),
            "checkpoint_share": clock.saving / max(seconds, 1e-9),
        }


class _Clock:
    """Time of training since it was made, less what is skipped."""

    def __init__(self) -> None:
        self.steps = 0
        self.waited = self.saving = 0.0
        self._started: float | None = None
        self._skipped = 0.0

    def start(self, now: float) -> None:
        if self._started is None:
            self._started = now

    def skip(self, seconds: float) -> None:
        self._skipped += seconds if self._started is not None else 0.0

    def seconds(self) -> float:
        if self._started is None:
            return 0.0
        return time.perf_counter() - self._started - self._skipped


def _objective_module(model: Any, objective: Objective) -> torch.nn.Module:
    from torch import nn

    class ObjectiveModule(nn.Module):
        """Sum of the losses of a batch: what is wrapped for several workers must be called as one module."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return objective.loss(self.model, batch)

    return ObjectiveModule()


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def _section(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
