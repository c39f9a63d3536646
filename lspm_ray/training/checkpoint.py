"""Checkpoints that survive being killed at any byte: written aside, digested, renamed; verified before use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_KEEP = 2
"""Checkpoints kept: one more than needed, in case the newest was damaged after it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: tensors of the model and optimiser, and everything else as JSON."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one training run.

    Args:
        uri: directory (path or URI) that outlives the workers.
        warn: called with a message for each damaged checkpoint that is passed over.
    """

    def __init__(self, uri: str, warn: Callable[[str], None] = lambda _: None) -> None:
        self._store = ArtifactStore(uri)
        self._warn = warn

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint of optimiser step `step`, then drop old ones."""
        from safetensors.torch import save_file

        with self._store.create("step", {}, {}, key=f"{step:09d}") as draft:
            save_file(tensors, draft.path / "tensors.safetensors")
            (draft.path / "state.json").write_text(json.dumps(state), encoding="utf-8")
        self._drop("step", keep=_KEEP)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose digests hold, or None if none was ever completed.

        Raises:
            ArtifactError: there are checkpoints, but all are damaged: starting afresh silently would hide it.
        """
        from safetensors.torch import load_file

        names = self._names("step")
        for name in names:
            try:
                directory = self._store.get(name).local()
            except ArtifactError as error:
                self._warn(f"checkpoint {name} is damaged, falling back to the one before: {error}")
                continue
            state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(load_file(directory / "tensors.safetensors"), state)
        if names:
            raise ArtifactError(
                "all checkpoints are damaged", field=self._store.root, hint="Delete this directory to train afresh"
            )
        return None

    def save_best(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep the model directory that `write` makes as the best so far."""
        with self._store.create("best", {}, {}, key=f"{step:09d}") as draft:
            write(draft.path)
        self._drop("best", keep=1)

    def best(self) -> Artifact:
        """The best model so far, as a model directory without a tokenizer.

        Raises:
            ArtifactError: there is none.
        """
        names = self._names("best")
        if not names:
            raise ArtifactError("training left no model", field=self._store.root)
        return self._store.get(names[0])

    def _names(self, stage: str) -> list[str]:
        return self._store.names(stage)[::-1]

    def _drop(self, stage: str, keep: int) -> None:
        for name in self._names(stage)[keep:]:
            self._store.delete(name)
