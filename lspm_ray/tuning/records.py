"""What is known of each trial, written down so that a killed sweep goes on without doing anything twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs
from pydantic import Field

from lspm_ray.artifact import filesystem, write_atomic
from lspm_ray.config import Config
from lspm_ray.errors import ConfigError
from lspm_ray.tuning.space import Params

Status = Literal["running", "done", "stopped", "failed"]

_NAME = re.compile(r"(\d{5,})\.json(?:\.before)?")
_BEGINNING = "begun.json"


class Epoch(Config):
    """What a trial had reached after an epoch.

    Attributes:
        epoch: passes over the training rows.
        metrics: on validation.
        seconds: since the sweep began, pauses between its runs not counted.
    """

    epoch: int
    metrics: dict[str, float]
    seconds: float


class Trial(Config):
    """One training of one point of the space.

    Attributes:
        number: of the trial; the first is 0.
        params: the point.
        seed: of the training.
        finalist: it repeats the point of another trial with another seed.
        status: `stopped`: ended early by the scheduler or the budget.
        history: per epoch.
        values: what the objectives and constraints are computed from, by name; empty unless `done`.
        reason: why it was stopped or failed.
        began: seconds since the sweep began.
        ended: the same; None while it runs.
    """

    number: int
    params: Params
    seed: int
    finalist: bool = False
    status: Status = "running"
    history: list[Epoch] = Field(default_factory=list)
    values: dict[str, float] = Field(default_factory=dict)
    reason: str = ""
    began: float = 0.0
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.status != "running"

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended or self.began) - self.began


class Beginning(Config):
    """When a sweep was first started, and how often it was."""

    utc: str
    runs: int


class Records:
    """The trials of a sweep, one file each below a directory or URI. Written by the driver alone.

    Args:
        uri: the directory.
        warn: told of files that cannot be read.
    """

    def __init__(self, uri: str, warn: Callable[[str], None]) -> None:
        self._fs, self._base = filesystem(uri)
        self._warn = warn

    def load(self) -> list[Trial]:
        """Every trial that was written down, by number. What is torn falls back to how it was before."""
        infos = self._fs.get_file_info(pafs.FileSelector(self._base, allow_not_found=True))
        numbers = sorted({int(found[1]) for info in infos if (found := _NAME.fullmatch(info.base_name))})
        trials = [self._read_either(number) for number in numbers]
        return [trial for trial in trials if trial is not None]

    def save(self, trial: Trial) -> None:
        """Write a trial down; the file before it is kept beside it."""
        name, data = _file(trial.number), trial.model_dump_json().encode()
        self._fs.create_dir(self._base, recursive=True)
        if self._exists(name) and self._read(name) is not None:
            self._fs.copy_file(f"{self._base}/{name}", f"{self._base}/{name}.before")
        self._write(name, data)

    def begin(self) -> Beginning:
        """Count another run of the sweep; the first one's time stays."""
        found = self._read_beginning()
        begun = Beginning(utc=datetime.now(UTC).isoformat(timespec="microseconds"), runs=0) if found is None else found
        begun = begun.model_copy(update={"runs": begun.runs + 1})
        self._fs.create_dir(self._base, recursive=True)
        self._write(_BEGINNING, begun.model_dump_json().encode())
        return begun

    def _read_beginning(self) -> Beginning | None:
        try:
            with self._fs.open_input_stream(f"{self._base}/{_BEGINNING}") as stream:
                return Beginning.parse(json.loads(bytes(stream.read())))
        except (OSError, ValueError, TypeError, ConfigError):
            return None

    @staticmethod
    def elapsed(trials: Sequence[Trial]) -> float:
        """Seconds that the runs of a sweep with these trials have taken so far."""
        ends = [trial.ended or trial.began for trial in trials]
        ends += [epoch.seconds for trial in trials for epoch in trial.history]
        return max(ends, default=0.0)

    def _read_either(self, number: int) -> Trial | None:
        name = _file(number)
        found = self._read(name)
        if found is not None:
            return found
        before = self._read(f"{name}.before") if self._exists(f"{name}.before") else None
        fallback = "forgotten and run again" if before is None else "taken as it was before"
        self._warn(f"the record of trial {number} is damaged ({self._base}/{name}): it is {fallback}")
        return before

    def _read(self, name: str) -> Trial | None:
        try:
            with self._fs.open_input_stream(f"{self._base}/{name}") as stream:
                return Trial.parse(json.loads(bytes(stream.read())))
        except (OSError, ValueError, TypeError, ConfigError):
            return None

    def _exists(self, name: str) -> bool:
        return bool(self._fs.get_file_info(f"{self._base}/{name}").type == pafs.FileType.File)

    def _write(self, name: str, data: bytes) -> None:
        if isinstance(self._fs, pafs.LocalFileSystem):
            write_atomic(Path(self._base) / name, data)
            return
        with self._fs.open_output_stream(f"{self._base}/{name}") as stream:
            stream.write(data)


def _file(number: int) -> str:
    return f"{number:05d}.json"


def as_rows(trials: list[Trial]) -> list[dict[str, Any]]:
    """One flat row per trial, for a table, all with the same columns: what is not a number or a name becomes JSON."""
    paths = dict.fromkeys(path for trial in trials for path in trial.params)
    names = dict.fromkeys(name for trial in trials for name in trial.values)
    return [
        {
            "number": trial.number,
            "status": trial.status,
            "finalist": trial.finalist,
            "seed": trial.seed,
            "epochs": len(trial.history),
            "began_s": trial.began,
            "seconds": trial.seconds,
            "reason": trial.reason,
            **{f"param.{path}": json.dumps(trial.params[path]) if path in trial.params else None for path in paths},
            **{f"value.{name}": trial.values.get(name) for name in names},
        }
        for trial in trials
    ]
