"""Where a run's numbers go while it is running: TensorBoard always, MLflow if asked for."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lspm_ray.artifact import filesystem
from lspm_ray.errors import ConfigError

Warn = Callable[[str], None]

_UPLOAD_EVERY_S = 60.0
_FLUSH_EVERY_S = 10.0
_LEAVE_WITHIN_S = 60.0


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
            warn: called when something takes no numbers any more, such as a full disk; whoever tracks is not stopped.

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


class _Once:
    """Does things until the first that fails, and says so: what is tracked does not fail with it."""

    def __init__(self, name: str, warn: Warn) -> None:
        self._name, self._warn = name, warn
        self._failed = False

    def do(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except Exception as error:  # whatever a disk, or a client of another system, raises
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.fail(first)

    def fail(self, reason: str) -> None:
        self._failed = True
        self._warn(f"{self._name} takes no numbers any more, training goes on: {reason}")


class _FarAway:
    """The same in a thread, one after the other: training does not wait either, but for a while at its end."""

    def __init__(self, name: str, leave: ExitStack, warn: Warn) -> None:
        self._once = _Once(name, warn)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        leave.callback(self._leave)

    def do(self, work: Callable[[], object]) -> None:
        self._thread.submit(self._once.do, work)

    def _leave(self) -> None:
        _, late = wait([self._thread.submit(lambda: None)], timeout=_LEAVE_WITHIN_S)
        if late:
            self._once.fail(f"no answer within {_LEAVE_WITHIN_S:g} s")
        self._thread.shutdown(wait=not late, cancel_futures=True)


class _TensorBoard:
    """Writes in the caller's thread: tensorboardX's own has a queue, and if it dies of a full disk that blocks."""

    def __init__(self, uri: str, step: int, leave: ExitStack, warn: Warn) -> None:
        self._once = _Once(uri, warn)
        self._upload: Callable[[], object] | None = None
        self._uploaded = self._flushed = time.monotonic()
        self._once.do(lambda: self._open(uri, step, leave, warn))

    def _open(self, uri: str, step: int, leave: ExitStack, warn: Warn) -> None:
        folder = uri
        if "://" in uri:
            folder = leave.enter_context(
                tempfile.TemporaryDirectory(prefix="lspm-tensorboard-", ignore_cleanup_errors=True)
            )
            away = _FarAway(uri, leave, warn)
            self._upload = lambda: away.do(lambda: _copy(folder, uri))
            leave.callback(self._upload)
        self._events = _Events(Path(folder), step)
        leave.callback(self._close)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._once.do(lambda: self._log(step, values))

    def _log(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        self._events.add(step, values)
        if now - self._flushed >= _FLUSH_EVERY_S:
            self._flushed = now
            self._events.flush()
        if self._upload is not None and now - self._uploaded >= _UPLOAD_EVERY_S:
            self._uploaded = now
            self._events.flush()
            self._upload()

    def _close(self) -> None:
        self._once.do(self._events.flush)
        with suppress(OSError):
            self._events.close()


class _Events:
    """A file that TensorBoard reads."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"))
        self._add(file_version="brain.Event:2")
        if step:
            # Hides what a run that was killed wrote after the step from where this one goes on.
            self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=Summary(value=points))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())


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
