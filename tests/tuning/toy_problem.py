"""A problem whose trials take no time, and fail in every way on demand."""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lspm_ray.tuning.config import TuneConfig
from lspm_ray.tuning.records import Records, Trial
from lspm_ray.tuning.tune import OnEpoch, Outcome, Reserve, Sweeper

RATE = "finetune.learning_rate"


@dataclass(frozen=True)
class ToyProblem:
    """The best learning rate is 1e-3. Every run of a trial leaves a line in a file.

    Attributes:
        log: directory of the lines.
        fates: number of a trial -> what becomes of it: `error`, `exit`, `hang`, `nan`.
        epoch_s: seconds per epoch.
    """

    log: str
    fates: Mapping[int, str] = field(default_factory=dict)
    epochs: int = 4
    epoch_s: float = 0.0

    def run(self, trial: Trial, on_epoch: OnEpoch, beat: Callable[[], None], given: Path | None) -> Outcome:
        with Path(self.log, f"{trial.number}.txt").open("a") as lines:
            lines.write(f"{trial.seed}\n")
        fate = self.fates.get(trial.number)
        if fate == "error":
            raise ValueError("of no use: at all")
        if fate == "exit":
            os._exit(3)
        if fate == "hang":
            time.sleep(600)
        history: dict[int, dict[str, float]] = {}
        miss = abs(math.log10(trial.params[RATE]) + 3)
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.epoch_s)
            accuracy = math.nan if fate == "nan" else 1 - miss / 4 - 0.1 / epoch + 1e-3 * trial.seed
            history[epoch] = {"accuracy": accuracy, "loss": miss + 1 / epoch}
            if epoch < self.epochs:
                on_epoch(epoch, history[epoch], None)
        return Outcome(history, {"validation.accuracy": accuracy})

    def lost(self, trial: Trial) -> bool:
        return False

    def forget(self, trial: Trial, running: Sequence[Trial]) -> None:
        Path(self.log, f"{trial.number}.forgotten").touch()

    def runs(self, number: int) -> int:
        file = Path(self.log, f"{number}.txt")
        return len(file.read_text().splitlines()) if file.exists() else 0


@dataclass(frozen=True)
class ToyPopulation(ToyProblem):
    """What a member offers is who it is; it writes down whom it goes on from."""

    def run(self, trial: Trial, on_epoch: OnEpoch, beat: Callable[[], None], given: Path | None) -> Outcome:
        offered = {} if given is None else json.loads((given / "offer.json").read_text())
        with Path(self.log, f"{trial.number}.txt").open("a") as lines:
            lines.write(f"{offered.get('number', trial.number)} {offered.get('epoch', 0)}\n")
        miss = abs(math.log10(trial.params[RATE]) + 3)
        history: dict[int, dict[str, float]] = {}
        for epoch in range(offered.get("epoch", 0) + 1, self.epochs + 1):
            history[epoch] = {"accuracy": 1 - miss / 4 - 0.1 / epoch, "loss": miss}
            if epoch < self.epochs:
                with tempfile.TemporaryDirectory() as folder:
                    Path(folder, "offer.json").write_text(json.dumps({"number": trial.number, "epoch": epoch}))
                    on_epoch(epoch, history[epoch], Path(folder))
        return Outcome(history, {"validation.accuracy": history[self.epochs]["accuracy"]})


def toy_sweeper(
    tmp_path: Path,
    problem: ToyProblem,
    lines: list[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **tune: Any,
) -> Sweeper:
    """A sweep of learning rates, one trial at a time."""
    space = {RATE: {"loguniform": [1e-5, 1e-1]}}
    config = TuneConfig.parse({"space": space, "searcher": "random", "scheduler": "none"} | tune)
    say = (lines if lines is not None else []).append
    return Sweeper(
        config=config,
        goals=config.goals("accuracy"),
        metric="accuracy",
        seed=0,
        problem=problem,
        records=Records(str(tmp_path / "trials"), say),
        reserve=Reserve(cpus=1, gpus=0, concurrent=1),
        log_uri=str(tmp_path / "tensorboard"),
        report=say,
        clock=clock,
    )
