"""Where a run's numbers go while it is running: TensorBoard always, MLflow if asked for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lspm_ray.artifact import filesystem
from lspm_ray.errors import ConfigError

Warn = Callable[[str], None]

_UPLOAD_EVERY_S = 60.0


class Tracker(AbstractContextManager["Tracker"]):
    """Takes numbers by step. Made by `open`."""

    def __init__(self, writers: list[Any], leave: ExitStack) -> None:
        self._writers = writers
        self._leave = leave

    @classmethod
    def open(cls, uri: str, mlflow: str | None, step: int, rank: int, warn: Warn = lambda _: None) -> Tracker:
        """A tracker that writes on rank 0 only.

        Args:
            uri: directory of the TensorBoard log; a URI gets a copy every minute and when the tracker is closed.
            mlflow: tracking server, if any.
            step: where the run goes on from: points after it, of a run that was killed, are taken back.
            rank: of this worker.
            warn: called when something far away takes no numbers; whoever tracks is not stopped by that.

        Raises:
            ConfigError: MLflow is asked for, but not installed.
        """
        leave = ExitStack()
        if rank != 0:
            return cls([], leave)
        check_mlflow(mlflow)
        writers: list[Any] = [_MLflow(mlflow, Path(uri).name, leave, warn)] if mlflow is not None else []
        return cls([*writers, _TensorBoard(uri, step, leave, warn)], leave)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        for writer in self._writers:
            writer.log(step, values)

    def __exit__(self, *error: Any) -> None:
        self._leave.close()


class _FarAway:
    """Does things one after the other in a thread, until the first that fails: training neither waits nor fails."""

    def __init__(self, name: str, leave: ExitStack, warn: Warn) -> None:
        self._name, self._warn = name, warn
        self._failed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        leave.callback(self._thread.shutdown)

    def do(self, work: Callable[[], object]) -> Future[None]:
        return self._thread.submit(self._try, work)

    def _try(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except Exception as error:  # whatever a client of another system raises
            self._failed = True
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._warn(f"{self._name} takes no numbers any more, training goes on: {first}")


class _TensorBoard:
    def __init__(self, uri: str, step: int, leave: ExitStack, warn: Warn) -> None:
        from tensorboardX import SummaryWriter

        self._upload: Callable[[], object] | None = None
        folder = uri
        if "://" in uri:
            folder = leave.enter_context(tempfile.TemporaryDirectory(prefix="lspm-tensorboard-"))
            away = _FarAway(uri, leave, warn)
            self._upload = lambda: away.do(lambda: _copy(folder, uri))
            leave.callback(self._upload)
        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)
        leave.callback(self._writer.close)
        self._uploaded = time.monotonic()

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._upload is not None and time.monotonic() - self._uploaded >= _UPLOAD_EVERY_S:
            self._uploaded = time.monotonic()
            self._writer.flush()
            self._upload()


def _copy(folder: str, uri: str) -> None:
    fs, path = filesystem(uri)
    fs.create_dir(path, recursive=True)
    pafs.copy_files(folder, path, destination_filesystem=fs)


def check_mlflow(server: str | None) -> None:
    """Refuse to log to MLflow where it is not installed.

    Raises:
        ConfigError: says how to get it.
    """
    if server is None:
        return
    try:
        import mlflow  # noqa: F401
    except ImportError:
        raise ConfigError(
            "MLflow is not installed", field="pretrain.mlflow", value=server, hint="pip install 'lspm-ray[mlflow]'"
        ) from None


class _MLflow:
    """Logs to a run of its own; one that was killed and resumed has two in MLflow."""

    def __init__(self, server: str, name: str, leave: ExitStack, warn: Warn) -> None:
        import mlflow

        def start() -> None:
            mlflow.set_tracking_uri(server)
            mlflow.start_run(run_name=name)

        # The run that is active is so in one thread.
        self._away = _FarAway(f"MLflow at {server}", leave, warn)
        self._away.do(start)
        leave.callback(lambda: self._away.do(mlflow.end_run))
        self._log = mlflow.log_metrics

    def log(self, step: int, values: dict[str, float]) -> None:
        self._away.do(lambda: self._log(values, step=step))
