import random
from pathlib import Path

import pytest
import torch

from lspm_ray.errors import ArtifactError
from lspm_ray.training.checkpoint import CheckpointStore


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


def test_all_damaged_is_an_error_never_a_fresh_start(store, tmp_path):
    for directory in (tmp_path / "work").glob("step-*"):
        (directory / "state.json").unlink()
    with pytest.raises(ArtifactError, match="all checkpoints are damaged"):
        store.latest()


def test_best_is_replaced(tmp_path):
    store = CheckpointStore(str(tmp_path / "work"))
    for step in (5, 9):
        store.save_best(step, lambda path, step=step: (path / "m").write_text(str(step)))
    assert store.best().read_bytes("m") == b"9"
    assert directories(tmp_path, "best") == ["best-000000009"]


def test_no_best_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="left no model"):
        CheckpointStore(str(tmp_path / "work")).best()
