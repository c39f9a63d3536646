"""Pretraining with several real worker processes (gloo), however the model is spread over them."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lspm_ray.artifact import Artifact
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.pretrain_loop import PretrainJob, PretrainWorker, pretrain_model
from tests.training.toy_runs import toy_job

pytestmark = pytest.mark.e2e

STEPS = 10
LIBRARIES = ["torch", "transformers.models.bert.modeling_bert", "lspm_ray.training.pretrain_loop"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
Train = Callable[..., dict[str, torch.Tensor]]


def work(rank: int, world: int, meeting: str, raw: dict[str, Any], stop_at: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)

    def report(values: dict[str, Any]) -> None:
        if values.get("step", 0) >= stop_at:
            os._exit(9)

    worker = PretrainWorker(rank, world, torch.device("cpu"), dist.all_reduce, report)
    pretrain_model(PretrainJob.parse(raw), worker)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, blocks: Artifact, tokenizer: Artifact) -> Train:
    folder = tmp_path_factory.mktemp("parallel")

    def run(name: str, world: int, stop_at: int = 1 << 30, **config: Any) -> dict[str, torch.Tensor]:
        fields = {
            "steps": STEPS,
            "batch_size": 7,
            "micro_batch_size": 2,
            "model": {"size": "toy", "config": NO_DROPOUT},
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "validation_blocks": 10,
            "validate_every_steps": 5,
            "checkpoint_every_steps": 3,
            "log_every_steps": 1,
        }
        job = toy_job(folder / name, blocks, tokenizer, fields | config)
        # Not a port: one found to be free may be taken before the workers listen on it.
        meeting = folder / f"{name}-{world}-{stop_at}.meeting"
        arguments = (world, str(meeting), job.model_dump(mode="json"), stop_at)
        # Forks of a process that has imported the libraries: else every worker spends seconds on that.
        mp.get_context("forkserver").set_forkserver_preload(LIBRARIES)
        expected = pytest.raises(mp.ProcessExitedException) if stop_at <= STEPS else contextlib.nullcontext()
        with expected:
            mp.start_processes(work, arguments, nprocs=world, start_method="forkserver")
        last = CheckpointStore(job.work_uri).latest()
        assert last is not None
        return last.tensors

    return run


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], atol=2e-5, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def alone(train: Train) -> dict[str, torch.Tensor]:
    return train("alone", 1)


@pytest.mark.parametrize(("world", "parallelism"), [(3, "ddp"), (2, "fsdp")])
def test_more_workers_make_the_same_steps(
    train: Train, alone: dict[str, torch.Tensor], world: int, parallelism: str
) -> None:
    assert_close(train(f"{parallelism}{world}", world, parallelism=parallelism), alone)


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_workers_killed_and_resumed_end_with_equal_weights(train: Train, parallelism: str) -> None:
    whole = train(f"whole-{parallelism}", 2, parallelism=parallelism)
    train(f"killed-{parallelism}", 2, parallelism=parallelism, stop_at=8)
    resumed = train(f"killed-{parallelism}", 2, parallelism=parallelism)
    assert set(whole) == set(resumed)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_goes_on_with_other_workers_and_another_way_of_spreading(
    train: Train, alone: dict[str, torch.Tensor]
) -> None:
    train("other", 2, parallelism="fsdp", stop_at=5)
    train("other", 3, parallelism="ddp", stop_at=8)
    assert_close(train("other", 1), alone)


def test_activation_checkpointing_changes_nothing(train: Train, alone: dict[str, torch.Tensor]) -> None:
    assert_close(train("recomputed", 1, activation_checkpointing=True), alone)
