"""A phase of a sweep as Ray Tune's listener, searcher and stopper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

TRIAL = "trial"
"""What Ray Tune's config calls the trial."""


def name_of(number: int) -> str:
    """What Ray Tune calls a trial. It stays when a trial takes over the config of another."""
    return f"trial-{number:05d}"


def number_of(name: str) -> int:
    """Inverse of `name_of`."""
    return int(name.rpartition("-")[2])


class _Transient:
    """Ray Tune pickles these into its state, which is never read: the records of the sweep hold what counts.

    Args:
        phase: what is asked and told.
    """

    def __init__(self, phase: Any) -> None:
        super().__init__()
        self.phase = phase

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Listener(_Transient, Callback):  # type: ignore[misc]
    """Tells the phase what happens to the trials."""

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A process begins with the trial."""
        self.phase.started(number_of(str(trial)), trial.config[TRIAL]["params"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """The trial has reported."""
        self.phase.told(number_of(str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trial has come to its end, or was stopped."""
        self.phase.ended(number_of(str(trial)))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trial has raised an error, or its process has died."""
        self.phase.ended(number_of(str(trial)), _reason(trial, self.phase.sweeper.config.hang_s))

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Comes several times a second."""
        self.phase.tick()


class Suggest(_Transient, Searcher):  # type: ignore[misc]
    """Asks the phase for trials."""

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial."""
        config = self.phase.suggest()
        return Searcher.FINISHED if config is None else {TRIAL: config}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The listener has heard of it."""

    def save(self, checkpoint_path: str) -> None:
        """Ray Tune expects a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing in it."""


class Stop(_Transient, Stopper):  # type: ignore[misc]
    """Ends the phase when the budget is used up."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's business."""
        return False

    def stop_all(self) -> bool:
        """Whether it is time to end."""
        return bool(self.phase.exhausted()) or self.phase.hopeless()


def _reason(trial: Any, hang_s: float) -> str:
    """The last line of what a failed trial left behind."""
    try:
        lines = [line.strip() for line in Path(trial.error_file).read_text(encoding="utf-8").splitlines()]
    except (OSError, TypeError):
        lines = []
    text = next((line for line in reversed(lines) if line), "")
    if not text or any("ActorDiedError" in line or "process has died" in line for line in lines):
        return f"its process died: killed, out of memory, or no progress for {hang_s:g} s (the log says where)"
    name, separator, message = text.partition(": ")
    return message if separator and name.replace(".", "").replace("_", "").isalnum() else text
