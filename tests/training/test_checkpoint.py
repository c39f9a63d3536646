import random
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch

from lspm_ray.errors import ArtifactError, ResourceError
from lspm_ray.training.checkpoint import CheckpointStore
from tests.small_disk import small_disk


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(tmp_path, warnings) -> CheckpointStore:
    store = CheckpointStore(str(tmp_path / "work"), warnings.append)
    for step in (1, 2, 3):
        store.save(step, {"w": torch.full((4,), float(step))}, {"step": step})
    return store


def directories(tmp_path: Path, prefix: str) -> list[str]:
    return sorted(p.name for p in (tmp_path / "work").glob(f"{prefix}-*"))


def test_latest_and_rotation(store, tmp_path):
    latest = store.latest()
    assert latest.state == {"step": 3}
    assert latest.tensors["w"].tolist() == [3.0] * 4
    assert directories(tmp_path, "step") == ["step-000000002", "step-000000003"]


def test_none_yet(tmp_path):
    assert CheckpointStore(str(tmp_path / "new")).latest() is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_damage_at_any_byte_falls_back_and_says_so(store, tmp_path, warnings, seed, name):
    file = tmp_path / "work" / "step-000000003" / name
    data = bytearray(file.read_bytes())
    at = random.Random(seed).randrange(len(data))
    file.write_bytes(bytes(data[:at]))
    assert store.latest().state == {"step": 2}
    assert len(warnings) == 1 and "step-000000003 is damaged" in warnings[0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_flipped_bit_falls_back(store, tmp_path, warnings, seed, name):
    flip(tmp_path / "work" / "step-000000003" / name, seed)
    assert store.latest().state == {"step": 2}
    assert len(warnings) == 1 and "step-000000003 is damaged" in warnings[0]


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_of_the_manifest_falls_back_or_does_not_matter(store, tmp_path, warnings, seed):
    flip(tmp_path / "work" / "step-000000003" / "manifest.json", seed)
    latest = store.latest()
    # The manifest also says when and on what machine it was written: that is not needed to resume.
    assert latest.state["step"] == (2 if warnings else 3)
    assert latest.tensors["w"].tolist() == [float(latest.state["step"])] * 4


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_falls_back(store, tmp_path, warnings, name):
    (tmp_path / "work" / "step-000000003" / name).unlink()
    assert store.latest().state == {"step": 2}
    assert len(warnings) == 1


def flip(file: Path, seed: int) -> None:
    data, rng = bytearray(file.read_bytes()), random.Random(seed)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def test_a_damaged_one_takes_no_place_of_the_kept(store, tmp_path):
    """After a fall back the steps need not be the same: with other workers, or another interval."""
    (tmp_path / "work" / "step-000000003").rename(tmp_path / "work" / "step-000000009")
    (tmp_path / "work" / "step-000000009" / "state.json").unlink()
    store.save(4, {"w": torch.zeros(4)}, {"step": 4})
    assert directories(tmp_path, "step") == ["step-000000002", "step-000000004"]


def save_best(store: CheckpointStore, step: int) -> None:
    store.save_best(step, lambda path: (path / "m").write_text(str(step)))


def test_a_run_that_goes_on_from_earlier_forgets_the_bests_of_its_future(tmp_path):
    store = CheckpointStore(str(tmp_path / "work"))
    save_best(store, 2)
    store.save(4, {"w": torch.zeros(1)}, {})
    save_best(store, 5)
    store.forget_after(4)
    assert store.best().read_bytes("m") == b"2", "what the checkpoint of step 4 knows of is still there"
    save_best(store, 9)
    assert store.best().read_bytes("m") == b"9"


def test_bests_go_when_no_checkpoint_knows_of_them(tmp_path):
    store = CheckpointStore(str(tmp_path / "work"), keep=2)
    for step in range(1, 13):
        if step % 3 != 0:
            save_best(store, step)
        if step % 4 == 0:
            store.save(step, {"w": torch.zeros(1)}, {})
    assert directories(tmp_path, "step") == ["step-000000008", "step-000000012"]
    assert directories(tmp_path, "best") == ["best-000000008", "best-000000011"]
    save_best(store, 13)
    save_best(store, 14)
    assert directories(tmp_path, "best") == ["best-000000008", "best-000000011", "best-000000014"]


def test_the_checkpoint_of_a_step(store):
    assert store.at(2).state == {"step": 2}
    with pytest.raises(ArtifactError, match="step-000000001"):
        store.at(1)


def test_one_that_cannot_be_read_falls_back(store, warnings, monkeypatch):
    read = store._store.get

    def get(name):
        if name == "step-000000003":
            raise OSError(5, "Input/output error")
        return read(name)

    monkeypatch.setattr(store._store, "get", get)
    assert store.latest().state == {"step": 2}
    assert "Input/output error" in warnings[0]


@pytest.mark.parametrize("keep", [1, 3])
def test_how_many_are_kept(tmp_path, keep):
    store = CheckpointStore(str(tmp_path / "work"), keep=keep)
    for step in range(1, 6):
        store.save(step, {"w": torch.zeros(1)}, {})
    assert directories(tmp_path, "step") == [f"step-{step:09d}" for step in range(6 - keep, 6)]


class Gate:
    """Holds a checkpoint back while it is written, and can make it fail."""

    def __init__(self, store: CheckpointStore, error: Exception | None = None) -> None:
        self.open, self.reached, self.error = threading.Event(), threading.Event(), error
        self.stages, self.steps = [], []
        self.write, store._write = store._write, self

    def __call__(self, stage, step, *rest):
        self.reached.set()
        assert self.open.wait(10)
        self.stages.append(stage)
        self.steps.append(step)
        if self.error:
            raise self.error
        self.write(stage, step, *rest)


def test_saving_in_the_background(store, tmp_path):
    gate = Gate(store)
    store.save_async(4, {"w": torch.full((4,), 4.0)}, {"step": 4})
    assert gate.reached.wait(10)
    assert directories(tmp_path, "step")[-1] == "step-000000003", "the caller did not wait"
    threading.Timer(0.2, gate.open.set).start()
    store.save_async(5, {"w": torch.full((4,), 5.0)}, {"step": 5})
    assert gate.steps[0] == 4 and (tmp_path / "work/step-000000004/manifest.json").is_file()
    assert store.latest().state == {"step": 5}, "waits for what is being written"
    store.close()
    assert gate.steps == [4, 5]
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


@pytest.mark.parametrize("call", ["save", "save_async", "save_best", "latest", "wait", "close"])
def test_what_went_wrong_in_the_background_is_raised_by_the_next_call(store, call):
    gate = Gate(store, ResourceError("no room"))
    gate.open.set()
    store.save_async(4, {}, {})
    arguments = {"save": (5, {}, {}), "save_async": (5, {}, {}), "save_best": (5, lambda _: None)}
    with pytest.raises(ResourceError, match="no room"):
        getattr(store, call)(*arguments.get(call, ()))
    store.wait()
    assert gate.steps == [4], "raised once, and before anything else is written"
    assert store.latest().state == {"step": 3}


def test_a_best_model_and_a_checkpoint_wait_together_and_keep_their_order(store, tmp_path):
    gate = Gate(store)
    store.save_best_async(4, lambda path: (path / "m").write_text("4"))
    store.save_async(4, {"w": torch.zeros(1)}, {"step": 4})
    assert not directories(tmp_path, "best"), "the caller waited for neither"
    gate.open.set()
    store.wait()
    assert gate.stages == ["best", "step"]
    assert store.best().read_bytes("m") == b"4" and store.latest().state == {"step": 4}
    store.close()


def test_without_the_best_model_there_is_no_checkpoint_that_knows_of_it(store, tmp_path):
    gate = Gate(store, ResourceError("no room"))
    store.save_best_async(4, lambda path: None)
    store.save_async(4, {"w": torch.zeros(1)}, {"step": 4})
    gate.open.set()
    with pytest.raises(ResourceError, match="no room"):
        store.wait()
    assert gate.stages == ["best"]
    store.wait()
    assert store.latest().state == {"step": 3}


@pytest.fixture(params=["file size limit", "full disk"])
def no_room(request, store, tmp_path):
    """From here on there is no room for a file of a megabyte."""
    work = tmp_path / "work"
    if request.param == "file size limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        yield store
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    work.rename(tmp_path / "moved")
    with small_disk(work, kilobytes=512):
        shutil.copytree(tmp_path / "moved", work, dirs_exist_ok=True)
        yield store


BIG = {"w": torch.zeros(250_000)}
NO_ROOM = r"work/\.partial/{}: no room to save: {}[\d,]+ bytes free \(.*os error"


def untouched(store, tmp_path) -> None:
    assert store.latest().state == {"step": 3}
    assert directories(tmp_path, "step") == ["step-000000002", "step-000000003"]
    assert not list((tmp_path / "work/.partial").iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_no_room_leaves_the_checkpoints_before(no_room, tmp_path, warnings, background):
    with pytest.raises(ResourceError, match=NO_ROOM.format("step-000000004", "1,000,000 bytes needed, ")):
        if background:
            no_room.save_async(4, BIG, {})
            no_room.wait()
        else:
            no_room.save(4, BIG, {})
    untouched(no_room, tmp_path)
    no_room.save(4, {"w": torch.zeros(1)}, {"step": 4})
    assert no_room.latest().state == {"step": 4} and not warnings


def test_no_room_leaves_the_best_before(no_room, tmp_path):
    from safetensors.torch import save_file

    no_room.save_best(3, lambda path: (path / "m").write_text("3"))
    with pytest.raises(ResourceError, match=NO_ROOM.format("best-000000004", "1,000,000 bytes needed, ")):
        no_room.save_best(4, lambda path: save_file(BIG, path / "m"), 1_000_000)
    with pytest.raises(ResourceError, match=r"no room to save: [\d,]+ bytes free"):
        no_room.save_best(5, lambda path: (path / "m").write_bytes(bytes(1_000_000)))
    assert no_room.best().read_bytes("m") == b"3"
    untouched(no_room, tmp_path)


def test_other_errors_stay_what_they_are_and_leave_nothing(store, tmp_path):
    with pytest.raises(TypeError):
        store.save(4, {"w": torch.zeros(1)}, {"step": object()})
    untouched(store, tmp_path)


def test_all_damaged_is_an_error_never_a_fresh_start(store, tmp_path):
    for directory in (tmp_path / "work").glob("step-*"):
        (directory / "state.json").unlink()
    with pytest.raises(ArtifactError, match="all checkpoints are damaged"):
        store.latest()


def test_best_is_replaced(tmp_path):
    store = CheckpointStore(str(tmp_path / "work"))
    for step in (5, 9):
        save_best(store, step)
    assert store.best().read_bytes("m") == b"9"
    assert directories(tmp_path, "best") == ["best-000000009"]


def test_no_best_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="left no model"):
        CheckpointStore(str(tmp_path / "work")).best()


def test_another_runs_checkpoint_replaces_ones_own(store, tmp_path):
    other = CheckpointStore(str(tmp_path / "other"))
    other.save(2, {"w": torch.full((4,), 20.0)}, {"step": 2})
    store.save_best(3, lambda path: (path / "weights").touch())
    store.adopt(other.directory())
    assert store.latest().state == {"step": 2} and store.latest().tensors["w"].tolist() == [20.0] * 4
    assert directories(tmp_path, "step") == ["step-000000002"] and directories(tmp_path, "best") == []
    assert other.latest().state == {"step": 2}


def test_a_damaged_checkpoint_is_not_offered(store, tmp_path):
    (tmp_path / "work" / "step-000000003" / "state.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"state\.json"):
        store.directory()
