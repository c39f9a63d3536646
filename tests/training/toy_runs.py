"""Toy pretraining runs in the test's own process."""

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lspm_ray.artifact import Artifact
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.pretrain_loop import TIMINGS, PretrainJob, PretrainWorker

Job = Callable[..., PretrainJob]


class KilledError(Exception):
    pass


def toy_job(work: Path, blocks: Artifact, tokenizer: Artifact, config: dict[str, Any]) -> PretrainJob:
    """A job of fp32 precision from fresh weights, with its log beside `work`."""
    return PretrainJob(
        blocks_uri=blocks.uri,
        tokenizer_uri=tokenizer.uri,
        base_uri=None,
        config=PretrainConfig.parse({"precision": "fp32"} | config),
        work_uri=str(work),
        log_uri=f"{work}-log",
    )


def alone(report: Callable[[dict[str, Any]], None] = lambda values: None) -> PretrainWorker:
    return PretrainWorker(0, 1, torch.device("cpu"), lambda tensor: None, report)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of a few kilobytes, mounted at a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        yield folder
    finally:
        # Lazily: a test that failed may have a file open.
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no room on the disk of a folder."""
    with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def weights(job: PretrainJob) -> str:
    last = CheckpointStore(job.work_uri).latest()
    assert last is not None
    digest = hashlib.sha256()
    for name in sorted(last.tensors):
        digest.update(name.encode() + last.tensors[name].numpy().tobytes())
    return digest.hexdigest()


def without_timings(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in history]
