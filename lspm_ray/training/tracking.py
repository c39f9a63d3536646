"""Where a run's numbers go while it is running: TensorBoard always, MLflow if asked for."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lspm_ray.artifact import filesystem
from lspm_ray.errors import ConfigError


class Tracker(AbstractContextManager["Tracker"]):
    """Takes numbers by step. Made by `open`."""

    def __init__(self, writers: list[Any], leave: ExitStack) -> None:
        self._writers = writers
        self._leave = leave

    @classmethod
    def open(cls, uri: str, mlflow: str | None, step: int, rank: int) -> Tracker:
        """A tracker that writes on rank 0 only.

        Args:
            uri: directory of the TensorBoard log; a URI gets a copy when the tracker is closed.
            mlflow: tracking server, if any.
            step: where the run goes on from: points after it, of a run that was killed, are taken back.
            rank: of this worker.

        Raises:
            ConfigError: MLflow is asked for, but not installed.
        """
        leave = ExitStack()
        if rank != 0:
            return cls([], leave)
        writers: list[Any] = [_MLflow(mlflow, Path(uri).name, leave)] if mlflow is not None else []
        return cls([*writers, _TensorBoard(uri, step, leave)], leave)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        for writer in self._writers:
            writer.log(step, values)

    def __exit__(self, *error: Any) -> None:
        self._leave.close()


class _TensorBoard:
    def __init__(self, uri: str, step: int, leave: ExitStack) -> None:
        from tensorboardX import SummaryWriter

        folder = uri if "://" not in uri else tempfile.mkdtemp(prefix="lspm-tensorboard-")
        if folder != uri:
            leave.callback(_upload, folder, uri)
        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)
        leave.callback(self._writer.close)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


def _upload(folder: str, uri: str) -> None:
    fs, path = filesystem(uri)
    fs.create_dir(path, recursive=True)
    pafs.copy_files(folder, path, destination_filesystem=fs)
    shutil.rmtree(folder)


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

    def __init__(self, server: str, name: str, leave: ExitStack) -> None:
        check_mlflow(server)
        import mlflow

        mlflow.set_tracking_uri(server)
        mlflow.start_run(run_name=name)
        leave.callback(mlflow.end_run)
        self._log = mlflow.log_metrics

    def log(self, step: int, values: dict[str, float]) -> None:
        self._log(values, step=step)
