import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.training.tracking import Tracker


def test_only_the_first_worker_writes(tmp_path: Path) -> None:
    with Tracker.open(str(tmp_path / "log"), None, 0, rank=1) as tracker:
        tracker.log(1, {"loss": 2.0})
    assert not (tmp_path / "log").exists()


def test_a_uri_gets_a_copy_when_it_is_over(tmp_path: Path) -> None:
    with Tracker.open(f"file://{tmp_path}/log", None, 0, rank=0) as tracker:
        tracker.log(1, {"loss": 2.0})
        assert not (tmp_path / "log").exists()
    (file,) = (tmp_path / "log").iterdir()
    assert b"loss" in file.read_bytes()


def test_a_uri_gets_a_copy_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lspm_ray.training.tracking._UPLOAD_EVERY_S", 0.0)
    with Tracker.open(f"file://{tmp_path}/log", None, 0, rank=0) as tracker:

        def arrived() -> bool:
            tracker.log(1, {"loss": 2.0})  # TensorBoard's writer is a little behind
            return any(b"loss" in file.read_bytes() for file in (tmp_path / "log").glob("*"))

        assert eventually(arrived)


@pytest.mark.parametrize("log", ["log", "file:///proc/no/such/place"])
def test_what_takes_no_numbers_stops_nobody(tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = log if "://" in log else str(tmp_path / log)
    said: list[str] = []
    with Tracker.open(uri, "http://127.0.0.1:1" if uri != log else None, 0, rank=0, warn=said.append) as tracker:
        for step in range(3):
            tracker.log(step, {"loss": 2.0})
    assert len(said) == 1 and "takes no numbers any more, training goes on" in said[0]


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mlflow_gets_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    server = (tmp_path / "mlruns").as_uri()
    with Tracker.open(str(tmp_path / "pretrain-abc"), server, 0, rank=0) as tracker:
        tracker.log(10, {"loss": 2.5, "mfu": 0.5})
        tracker.log(20, {"loss": 1.5})
    (points,) = (tmp_path / "mlruns").rglob("metrics/loss")
    assert [(line.split()[1], line.split()[2]) for line in points.read_text().splitlines()] == [
        ("2.5", "10"),
        ("1.5", "20"),
    ]
    names = [file.read_text() for file in (tmp_path / "mlruns").rglob("tags/mlflow.runName")]
    assert names == ["pretrain-abc"]


def test_without_mlflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'lspm-ray\[mlflow\]'"):
        Tracker.open(str(tmp_path / "log"), "http://127.0.0.1:1", 0, rank=0)
