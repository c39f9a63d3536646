"""Run a training job on Ray Train, data-parallel; or in this process, when it is a worker of Ray already."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, cpu_count, filesystem, join
from lspm_ray.cluster import DATA_TASK_CPUS, TRAIN_START_TIMEOUT, preflight, totals
from lspm_ray.config import Config
from lspm_ray.errors import ResourceError, UserError
from lspm_ray.progress import Report, channel
from lspm_ray.training.batches import TEACHER_COLUMN, TRAIN_COLUMNS
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.config import WorkersConfig
from lspm_ray.training.loop import TrainJob, Worker, train

if TYPE_CHECKING:
    import pyarrow as pa

_DATA_CPUS = 2 * DATA_TASK_CPUS
"""Left free of training workers for the tasks that read their data."""

KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Makes glibc keep what a step frees for the next one. By default it gives every large tensor back to the kernel, which
then clears each page anew: a seventh of the time of a small model's step on a CPU (benchmarks/training.py)."""


OnEpoch = Callable[[dict[str, float]], None]
"""Takes what the loop says of an epoch that is done and whose checkpoint is written: see `loop.train`."""

Trained = tuple[Artifact, list[dict[str, float]]]
"""The best model (a model directory without tokenizer) and the metrics of each epoch."""


class Scaling(Config):
    """Workers of a run with every default resolved against a cluster."""

    num_workers: int
    min_workers: int
    use_gpu: bool
    cpus_per_worker: float
    threads: int
    max_failures: int


def resolve(
    workers: WorkersConfig, have: dict[str, float], field: str = "finetune.workers", *, grows: bool = False
) -> Scaling:
    """Fill in the defaults and check that the cluster can hold the workers.

    Args:
        workers: as configured.
        have: CPUs and GPUs of the cluster.
        field: where the setting stands in the user's file, for the message.
        grows: the cluster adds nodes for what was asked for by name: `use_gpu` or `num_workers`.

    Raises:
        ResourceError: the cluster can never run it.
    """
    gpus = int(have.get("GPU", 0))
    use_gpu = gpus > 0 if workers.use_gpu is None else workers.use_gpu
    number = workers.num_workers or (max(1, gpus) if use_gpu else 1)
    share = max(0.25, (have.get("CPU", 1.0) - _DATA_CPUS) / number)
    if use_gpu:
        share = min(share, 4.0)
    cpus = workers.cpus_per_worker or np.floor(share * 4) / 4
    need = {"CPU": number * cpus + _DATA_CPUS} | ({"GPU": float(number)} if use_gpu else {})
    if not (grows and (workers.use_gpu or workers.num_workers)):
        preflight(
            f"training with {number} worker(s) of {cpus:g} CPU",
            need,
            have,
            setting=f"{field}.num_workers",
            otherwise="add nodes (or cluster.autoscales=true, if it adds them itself)",
        )
    threads = workers.threads or max(1, cpu_count() // number if not use_gpu else 1)
    return Scaling(
        num_workers=number,
        min_workers=min(workers.min_workers or number, number),
        use_gpu=use_gpu,
        cpus_per_worker=cpus,
        threads=threads,
        max_failures=workers.max_failures,
    )


def fit(
    job: TrainJob,
    workers: WorkersConfig,
    report: Report,
    wait_for_nodes_s: float | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train on the cluster; resumes from `job.work_uri` if it holds checkpoints.

    Args:
        job: what to train.
        workers: on what.
        report: progress.
        wait_for_nodes_s: see `ClusterConfig.wait_for_nodes_s`.
        on_epoch: called in a thread of its own.

    Returns:
        The best model (a model directory without tokenizer) and the metrics of each epoch.

    Raises:
        ResourceError: the cluster cannot hold the workers, or did not start them in time.
        UserError: what the workers raised about the job's inputs.
    """
    import ray.data
    from ray.train import DataConfig

    scaling = scale(workers, totals(), report, wait_for_nodes_s)
    data = ray.data.read_parquet(
        job.train_files, columns=_columns(job), override_num_blocks=len(job.train_files), num_cpus=DATA_TASK_CPUS
    )
    split = DataConfig(datasets_to_split=["train"], execution_options=ray.data.ExecutionOptions(preserve_order=True))
    with channel(report) as remote, channel(on_epoch or _ignore) as epochs:
        arguments = {"job": job.model_dump(mode="json"), "threads": scaling.threads, "report": remote}
        arguments["on_epoch"] = None if on_epoch is None else epochs
        launch(_worker_loop, arguments, scaling, job.work_uri, datasets={"train": data}, dataset_config=split)
    return result(job)


def launch(
    loop: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    scaling: Scaling,
    work_uri: str,
    *,
    field: str = "finetune.workers",
    **data: Any,
) -> None:
    """Run `loop(arguments)` on every worker of a Ray Train run.

    A worker or a node that fails is replaced, and all workers begin `loop` again: it must find its own checkpoint.

    Args:
        loop: what each worker does.
        arguments: what it is given.
        scaling: which workers.
        work_uri: directory for what Ray itself writes down.
        field: where the workers stand in the user's file, for messages.
        data: further arguments of the trainer: Ray Data sets to feed.

    Raises:
        ResourceError: the cluster did not start the workers in time.
        UserError: what a worker raised.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def unmasked(arguments: dict[str, Any]) -> None:
        try:
            loop(arguments)
        except Exception as error:
            _raise_user_error(error)  # here, because an error that is sent to another process forgets its context
            raise

    elastic = scaling.min_workers < scaling.num_workers
    trainer = TorchTrainer(
        unmasked,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=(scaling.min_workers, scaling.num_workers) if elastic else scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            # Ray's own checkpoints are a plain copy without digests; ours are in the work directory. A fresh name each
            # time keeps a torn Ray snapshot of a killed run from blocking this one.
            name=uuid.uuid4().hex[:8],
            storage_path=_storage(work_uri),
            worker_runtime_env={"env_vars": {} if scaling.use_gpu else dict(KEEP_MEMORY)},
            failure_config=FailureConfig(
                max_failures=scaling.max_failures,
                # A node that has just died may still be counted on: what it was to start then does not, and is decided
                # anew. Without a choice, what cannot start never will.
                controller_failure_limit=scaling.max_failures if elastic else 0,
            ),
        ),
        **data,
    )
    _run(trainer, field)


def scale(
    workers: WorkersConfig,
    have: dict[str, float],
    report: Report,
    wait_for_nodes_s: float | None,
    field: str = "finetune.workers",
) -> Scaling:
    """`resolve`; says what it waits for where the cluster adds nodes."""
    scaling = resolve(workers, have, field, grows=wait_for_nodes_s is not None)
    if wait_for_nodes_s is None:
        return scaling
    # The driver has it in its environment already; a task on another node has not.
    os.environ.setdefault(TRAIN_START_TIMEOUT, f"{wait_for_nodes_s:g}")
    if workers.use_gpu is None and not scaling.use_gpu:
        report("! training without a GPU: none is up, and only `workers.use_gpu: true` makes the cluster start one")
    elif scaling.num_workers * scaling.use_gpu > have.get("GPU", 0):
        report(f"waiting up to {wait_for_nodes_s:g} s for nodes with {scaling.num_workers} GPU(s)")
    return scaling


def fit_here(job: TrainJob, threads: int, report: Report, on_epoch: OnEpoch | None = None) -> Trained:
    """Train in this process, on one device: for a job that runs inside a Ray task. Resumes like `fit`."""
    train_here(job, threads, report, on_epoch)
    return result(job)


def train_here(job: TrainJob, threads: int, report: Report, on_epoch: OnEpoch | None = None) -> list[dict[str, float]]:
    """`fit_here` without its result: the metrics of each epoch."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    worker = Worker(
        rank=0,
        world_size=1,
        device=device,
        train_chunks=lambda rows: file_chunks(job.train_files, _columns(job), rows),
        validation_chunks=lambda rows: file_chunks(job.validation_files, TRAIN_COLUMNS, rows),
        prepare=lambda model: model.to(device),
        gather=lambda array: array,
        report=_Narrator(job, report, on_epoch),
    )
    return _train_and_keep(job, worker, threads)


def result(job: TrainJob) -> Trained:
    """The best model and the history that a finished run left in its work directory."""
    store = CheckpointStore(job.work_uri)
    last = store.latest()
    return store.best(), list(last.state["history"]) if last else []


def file_chunks(files: list[str], columns: list[str], rows: int) -> Iterator[pa.Table]:
    """Stream Parquet files in order as tables of exactly `rows` rows (the last may be shorter)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pending: list[pa.RecordBatch] = []
    count = 0
    for uri in files:
        fs, path = filesystem(uri)
        with fs.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=rows, columns=columns):
                pending.append(batch)
                count += batch.num_rows
                while count >= rows:
                    table = pa.Table.from_batches(pending)
                    yield table.slice(0, rows).combine_chunks()
                    rest = table.slice(rows)
                    pending, count = rest.to_batches(), rest.num_rows
    if count:
        yield pa.Table.from_batches(pending).combine_chunks()


def _ignore(_: Any) -> None:
    pass


def _columns(job: TrainJob) -> list[str]:
    return [*TRAIN_COLUMNS, TEACHER_COLUMN] if job.distill else TRAIN_COLUMNS


def _storage(work_uri: str) -> str:
    _, path = filesystem(work_uri)
    return join(path if "://" not in work_uri else work_uri, "ray")


def _run(trainer: Any, field: str) -> None:
    from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

    try:
        trainer.fit()
    except WorkerGroupError as error:
        for cause in error.worker_failures.values():
            _raise_user_error(cause)
        raise
    except ControllerError as error:
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise ResourceError(
                f"the cluster did not start the training workers in time: {error}",
                field=field,
                hint="Is something else holding them? A cluster that grows may be at its limit (max_workers, quotas), "
                "or need longer: cluster.nodes_within_s",
            ) from None
        raise
    except TrainingFailedError as error:
        _raise_user_error(error)
        raise


def _raise_user_error(error: BaseException) -> None:
    """Raise the user's error that led to another one, or was on its way when that came up."""
    found, seen = [error], set[int]()
    while found:
        error = found.pop(0)
        if isinstance(error, UserError):
            raise error
        seen.add(id(error))
        before = (
            getattr(error, "cause", None),
            error.__cause__,
            None if error.__suppress_context__ else error.__context__,
        )
        found += [other for other in before if other is not None and id(other) not in seen]


def _worker_loop(arguments: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    job = TrainJob.parse(arguments["job"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = context.get_world_size()
    shard = ray.train.get_dataset_shard("train")
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=world,
        device=device,
        train_chunks=lambda rows: _tables(shard.iter_batches(batch_size=rows, batch_format="pyarrow")),
        validation_chunks=lambda rows: file_chunks(job.validation_files, TRAIN_COLUMNS, rows),
        prepare=ray.train.torch.prepare_model,
        gather=_all_gather if world > 1 else lambda array: array,
        report=_Narrator(job, arguments["report"], arguments["on_epoch"]),
    )
    _train_and_keep(job, worker, arguments["threads"])


def _tables(stream: Any) -> Iterator[pa.Table]:
    for table in stream:
        yield table.combine_chunks()


def _train_and_keep(job: TrainJob, worker: Worker, threads: int) -> list[dict[str, float]]:
    import torch

    if worker.device.type == "cpu":
        torch.set_num_threads(threads)
    return train(job, worker)


def _all_gather(array: NDArray[Any]) -> NDArray[Any]:
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, array)
    return np.concatenate(parts)


class _Narrator:
    """Turns the loop's numbers into one line for people, with the time left; those of an epoch are passed on too."""

    def __init__(self, job: TrainJob, report: Report, on_epoch: OnEpoch | None) -> None:
        self._job = job
        self._report: Callable[[str], None] = report
        self._on_epoch = on_epoch
        self._start: tuple[float, int] | None = None

    def __call__(self, values: dict[str, Any]) -> None:
        if "warning" in values:
            self._report(f"! {values['warning']}")
        elif "epoch_done" in values:
            name = self._job.config.metric
            self._report(
                f"epoch {values['epoch']}/{self._job.config.epochs} done: train loss {values['train_loss']:.4f}, "
                f"validation {name} {values[name]:.4f}"
            )
            if self._on_epoch is not None:
                self._on_epoch({key: value for key, value in values.items() if key != "epoch_done"})
        else:
            step, steps = values["step"], values["steps"]
            self._report(f"step {step}/{steps}, loss {values['loss']:.4f}{self._left(step, steps)}")

    def _left(self, step: int, steps: int) -> str:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, step)
            return ""
        seconds = (now - self._start[0]) / max(1, step - self._start[1]) * (steps - step)
        return f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"
