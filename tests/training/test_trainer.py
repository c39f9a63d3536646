"""Data-parallel training on a real Ray cluster."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from lspm_ray.artifact import ArtifactStore
from lspm_ray.cluster import TRAIN_START_TIMEOUT
from lspm_ray.corpus.shards import class_counts, split_files
from lspm_ray.errors import ResourceError
from lspm_ray.training.config import TrainConfig, WorkersConfig
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.trainer import _raise_user_error, fit, launch, resolve, scale
from tests.toy_corpus import toy_corpus
from tests.toys import LABELS, toy_model_artifact


def test_defaults_fit_one_core_and_a_gpu_node():
    one = resolve(WorkersConfig(), {"CPU": 1.0})
    assert (one.num_workers, one.use_gpu, one.cpus_per_worker) == (1, False, 0.5)
    gpus = resolve(WorkersConfig(), {"CPU": 64.0, "GPU": 8.0})
    assert (gpus.num_workers, gpus.use_gpu, gpus.cpus_per_worker) == (8, True, 4.0)


@pytest.mark.parametrize(
    ("workers", "have", "message"),
    [
        ({"num_workers": 64}, {"CPU": 2.0}, r"64 worker.*needs 16.5 CPU at once, the cluster has 2"),
        ({"num_workers": 4, "use_gpu": True}, {"CPU": 32.0, "GPU": 2.0}, r"needs 4 GPU at once, the cluster has 2"),
        ({"cpus_per_worker": 3}, {"CPU": 2.0}, r"Lower finetune\.workers\.num_workers"),
    ],
)
def test_what_can_never_run_is_an_error(workers, have, message):
    with pytest.raises(ResourceError, match=message):
        resolve(WorkersConfig.parse(workers), have)


@pytest.mark.parametrize("asked", [{"use_gpu": True}, {"use_gpu": True, "num_workers": 4}, {"num_workers": 64}])
def test_a_cluster_that_grows_is_asked_for_what_it_does_not_have_yet(asked):
    workers = WorkersConfig.parse(asked)
    with pytest.raises(ResourceError, match=r"cluster\.autoscales=true"):
        resolve(workers, {"CPU": 2.0})
    scaling = resolve(workers, {"CPU": 2.0}, grows=True)
    assert (scaling.use_gpu, scaling.num_workers) == (asked.get("use_gpu", False), asked.get("num_workers", 1))


def test_a_cluster_that_grows_is_not_asked_for_what_nobody_wanted():
    with pytest.raises(ResourceError, match=r"needs 3\.5 CPU"):
        resolve(WorkersConfig(cpus_per_worker=3), {"CPU": 2.0}, grows=True)


def test_training_without_the_gpus_that_a_cluster_could_start_is_said(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop(TRAIN_START_TIMEOUT, None)
    lines: list[str] = []
    assert not scale(WorkersConfig(), {"CPU": 2.0}, lines.append, 60.0).use_gpu
    assert "use_gpu: true" in lines.pop()
    assert scale(WorkersConfig(use_gpu=True, num_workers=2), {"CPU": 2.0}, lines.append, 60.0).use_gpu
    assert lines == ["waiting up to 60 s for nodes with 2 GPU(s)"]
    assert os.environ[TRAIN_START_TIMEOUT] == "60"
    scale(WorkersConfig(), {"CPU": 2.0}, lines.append, None)
    assert len(lines) == 1


def job(store: ArtifactStore, work: Path, **config) -> TrainJob:
    data = toy_corpus(store)
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_every_steps": 4}
    return TrainJob(
        model_uri=toy_model_artifact(store, "toy").uri,
        labels=list(LABELS),
        task={"task": "text_classification"},
        train_files=split_files(data, "train"),
        validation_files=split_files(data, "validation"),
        train_rows=sum(class_counts(data, "train")),
        class_counts=class_counts(data, "train"),
        config=TrainConfig.parse(settings | config),
        work_uri=str(work),
    )


def weights(artifact):
    return {k: v.numpy() for k, v in load_file(artifact.local() / "model.safetensors").items()}


@pytest.mark.ray
def test_two_workers_killed_and_resumed_equal_two_uninterrupted(ray_cluster, tmp_path):
    """A worker that dies in the middle of an epoch is replaced; the run ends with the same weights."""
    store, lines = ArtifactStore(str(tmp_path / "store")), []
    workers = WorkersConfig(num_workers=2, threads=1)
    whole, history = fit(job(store, tmp_path / "whole"), workers, lines.append)
    assert len(history) == 2
    flag = tmp_path / "died"
    broken, again = fit(job(store, tmp_path / "broken"), workers, lambda _: _kill_once(flag, tmp_path))
    assert flag.exists()
    strip = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in again]
    assert strip == [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]
    first, second = weights(whole), weights(broken)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.ray
def test_an_error_on_the_way_out_hides_no_user_error(ray_cluster, tmp_path):
    def loop(arguments):
        try:
            raise ResourceError("no room", field="disk")
        finally:
            raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="disk: no room"):
        launch(loop, {}, resolve(WorkersConfig(max_failures=0), {"CPU": 2.0}), str(tmp_path / "work"))


@pytest.mark.parametrize("how", ["cause", "__cause__", "__context__"])
def test_the_user_error_behind_another_is_found(how):
    user, between, last = ResourceError("no room"), ValueError(), OSError()
    setattr(between, how, user)
    last.__context__ = between
    with pytest.raises(ResourceError) as caught:
        _raise_user_error(last)
    assert caught.value is user


def test_a_user_error_that_was_dealt_with_is_no_reason():
    error = ValueError()
    error.__context__ = ResourceError("no room")
    error.__suppress_context__ = True
    error.cause = error
    assert _raise_user_error(error) is None


@pytest.mark.ray
def test_workers_on_cpus_keep_the_memory_that_a_step_frees(ray_cluster, tmp_path):
    """The second pass over as much memory as the first must not ask the kernel for it again."""

    def loop(arguments):
        import ctypes
        import resource

        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        libc.malloc.argtypes = [ctypes.c_size_t]
        faults = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            block = libc.malloc(256 << 20)
            ctypes.memset(block, 1, 256 << 20)
            libc.free(block)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        Path(arguments["file"]).write_text(" ".join(map(str, faults)))

    file = tmp_path / "faults"
    scaling = resolve(WorkersConfig(), {"CPU": 2.0})
    launch(loop, {"file": str(file)}, scaling, str(tmp_path / "work"))
    first, *later = map(int, file.read_text().split())
    assert max(later) < first / 10


def _kill_once(flag: Path, tmp_path: Path) -> None:
    """SIGKILL one training worker as soon as a checkpoint inside the first epoch is there."""
    if flag.exists() or not list((tmp_path / "broken").glob("step-*")):
        return
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in title:
            os.kill(int(process.name), signal.SIGKILL)
            flag.touch()
            return
