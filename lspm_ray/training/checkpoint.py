"""Checkpoints that survive being killed at any byte: written aside, digested, renamed; verified before use."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from lspm_ray.artifact import Artifact, ArtifactStore, filesystem
from lspm_ray.errors import ArtifactError, ResourceError, errno_of

if TYPE_CHECKING:
    import torch

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        keep: how many of the newest are kept. With one more than needed, the newest may get damaged.
    """

    def __init__(self, uri: str, warn: Callable[[str], None] = lambda _: None, keep: int = 2) -> None:
        self._store = ArtifactStore(uri)
        self._warn = warn
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: deque[tuple[str, Future[None]]] = deque()
        self._failed: BaseException | None = None

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint of optimiser step `step`, then drop old ones.

        Raises:
            ResourceError: no room for it; the checkpoints before it are as they were.
        """
        self.wait()
        self._save(step, tensors, state)

    def save_async(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Like `save`, in a background thread, after all that was to be written before.

        Args:
            step: optimiser steps done.
            tensors: on the CPU, and no longer changed by the caller.
            state: no longer changed by the caller.

        Raises:
            ResourceError: no room for what was to be written *before* this. What goes wrong with this one is raised by
                a later call, `wait` and `close` included.
        """
        self._later("step", lambda: self._save(step, tensors, state))

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            ResourceError: no room for what was written in the background.
        """
        while self._pending:
            self._await_first()

    def _later(self, stage: str, write: Callable[[], None]) -> None:
        # One of each kind waits at most: they hold copies of the weights.
        while any(kind == stage for kind, _ in self._pending):
            self._await_first()
        self._pending.append((stage, self._thread.submit(self._unless_failed, write)))

    def _unless_failed(self, write: Callable[[], None]) -> None:
        """A checkpoint that knows of a best model must not come to be when that model did not."""
        if self._failed is not None:
            raise self._failed
        try:
            write()
        except BaseException as error:
            self._failed = error
            raise

    def _await_first(self) -> None:
        try:
            self._pending[0][1].result()
        except BaseException:
            for _, future in self._pending:
                future.exception()
            self._pending.clear()
            self._failed = None
            raise
        self._pending.popleft()

    def close(self) -> None:
        """`wait`, and end the thread; `save_async` cannot be called afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose digests hold, or None if none was ever completed.

        Raises:
            ArtifactError: there are checkpoints, but all are damaged: starting afresh silently would hide it.
        """
        self.wait()
        names = self._names("step")
        for name in names:
            try:
                return self._load(name)
            except (ArtifactError, OSError) as error:
                self._warn(f"checkpoint {name} is damaged, falling back to the one before: {error}")
        if names:
            raise ArtifactError(
                "all checkpoints are damaged", field=self._store.root, hint="Delete this directory to train afresh"
            )
        return None

    def directory(self) -> Path:
        """Local directory of the newest checkpoint, verified: for another run to `adopt`.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        self.wait()
        return self._store.get(self._names("step")[0]).local()

    def adopt(self, directory: Path) -> None:
        """Go on from the checkpoint of another run instead of those that are here."""
        step = int(json.loads((directory / "state.json").read_text(encoding="utf-8"))["step"])

        def write(path: Path) -> None:
            for name in ("tensors.safetensors", "state.json"):
                shutil.copyfile(directory / name, path / name)

        for name in [*self._names("step"), *self._names("best")]:
            self._store.delete(name)
        self._write("step", step, write)

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of one step: for workers that are to go on from the same one as another.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        return self._load(f"step-{step:09d}")

    def forget_after(self, step: int) -> None:
        """Delete the best models of later steps: a run that goes on from `step` may never find them again."""
        for name in self._names("best"):
            if _step(name) > step:
                self._store.delete(name)

    def save_best_async(self, step: int, write: Callable[[Path], None], needed: int | None = None) -> None:
        """Keep the model directory that `write` makes as the best so far; written in the background like `save_async`.

        The bests that the kept checkpoints know of stay until those are gone: training may fall back to them.

        Args:
            step: optimiser steps done.
            write: makes the model directory.
            needed: bytes that it takes, for the message where there is no room.

        Raises:
            ResourceError: no room for what was to be written before this.
        """

        def save() -> None:
            self._write("best", step, write, needed)
            self._drop_bests()

        self._later("best", save)

    def save_best(self, step: int, write: Callable[[Path], None], needed: int | None = None) -> None:
        """Like `save_best_async`, and wait for it.

        Raises:
            ResourceError: no room for it; the best before it is as it was.
        """
        self.save_best_async(step, write, needed)
        self.wait()

    def best(self) -> Artifact:
        """The best model so far, as a model directory without a tokenizer.

        Raises:
            ArtifactError: there is none.
        """
        self.wait()
        names = self._names("best")
        if not names:
            raise ArtifactError("training left no model", field=self._store.root)
        return self._store.get(names[0])

    def _save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        def write(path: Path) -> None:
            save_file(tensors, path / "tensors.safetensors")
            (path / "state.json").write_text(json.dumps(state), encoding="utf-8")

        self._write("step", step, write, size_of(tensors))
        self._drop(step)
        self._drop_bests()

    def _load(self, name: str) -> Checkpoint:
        from safetensors.torch import load_file

        directory = self._store.get(name).local()
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(load_file(directory / "tensors.safetensors"), state)

    def _write(self, stage: str, step: int, write: Callable[[Path], None], needed: int | None = None) -> None:
        """Write an artifact; if that fails, leave nothing of it."""
        draft = None
        try:
            with self._store.create(stage, {}, {}, key=f"{step:09d}") as draft:
                write(draft.path)
        except BaseException as error:
            if draft is not None:
                _remove(draft.uri)
                if errno_of(error) in _NO_ROOM:
                    raise _too_big(draft.uri, needed, error) from error
            raise

    def _names(self, stage: str) -> list[str]:
        return self._store.names(stage)[::-1]

    def _drop(self, step: int) -> None:
        """Keep what was just written and what came before it; a later one was passed over as damaged."""
        names = self._names("step")
        kept = [name for name in names if _step(name) <= step][: self._keep]
        for name in set(names) - set(kept):
            self._store.delete(name)

    def _drop_bests(self) -> None:
        """Keep the newest best, and of each checkpoint the newest that it knows of."""
        names = self._names("best")
        kept = set(names[:1])
        for checkpoint in self._names("step"):
            kept |= set([name for name in names if _step(name) <= _step(checkpoint)][:1])
        for name in set(names) - kept:
            self._store.delete(name)


def size_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that tensors take in a file."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _step(name: str) -> int:
    return int(name.rpartition("-")[2])


def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)


def _too_big(uri: str, needed: int | None, error: BaseException) -> ResourceError:
    """Call it after the partial files were removed: then the free space is what the next try would have."""
    fs, path = filesystem(uri)
    # A remote checkpoint is put together in a temporary directory first, and it is that one which is full.
    place = Path(path) if isinstance(fs, pafs.LocalFileSystem) else Path(tempfile.gettempdir())
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
    size = "" if needed is None else f"{needed:,} bytes needed, "
    return ResourceError(
        f"no room to save: {size}{free:,} bytes free ({error})",
        field=str(place),
        hint="Make room and run it again: it goes on from the checkpoint before",
    )
