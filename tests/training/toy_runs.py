"""Toy pretraining runs in the test's own process."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def weights(job: PretrainJob) -> str:
    last = CheckpointStore(job.work_uri).latest()
    assert last is not None
    digest = hashlib.sha256()
    for name in sorted(last.tensors):
        digest.update(name.encode() + last.tensors[name].numpy().tobytes())
    return digest.hexdigest()


def without_timings(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in history]
