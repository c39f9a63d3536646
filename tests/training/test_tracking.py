import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.training.tracking import Tracker
from tests.small_disk import fill, small_disk


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
            tracker.log(1, {"loss": 2.0})
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


@pytest.mark.parametrize("points", [1, 5000])
def test_a_full_disk_stops_nobody(tmp_path: Path, points: int) -> None:
    said: list[str] = []
    with small_disk(tmp_path / "small", kilobytes=64) as disk:
        with Tracker.open(str(disk / "log"), None, 0, rank=0, warn=said.append) as tracker:
            fill(disk)
            for step in range(points):
                tracker.log(step, {"loss": 2.0})
        assert len(said) == 1 and re.search("small/log takes no numbers any more.*No space left", said[0])
        with Tracker.open(str(disk / "other" / "log"), None, 0, rank=0, warn=said.append) as tracker:
            tracker.log(1, {"loss": 2.0})
    assert len(said) == 2


def test_what_does_not_answer_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    answer = threading.Event()
    monkeypatch.setattr("lspm_ray.training.tracking._LEAVE_WITHIN_S", 0.1)
    monkeypatch.setattr("lspm_ray.training.tracking._copy", lambda *_: answer.wait(30))
    with Tracker.open(f"file://{tmp_path}/log", None, 0, rank=0, warn=said.append) as tracker:
        tracker.log(1, {"loss": 2.0})
    assert not answer.is_set() and len(said) == 1 and "no answer within 0.1 s" in said[0]
    answer.set()


def test_a_run_that_goes_on_takes_back_later_points(tmp_path: Path) -> None:
    with Tracker.open(str(tmp_path), None, 6, rank=0) as tracker:
        tracker.log(7, {"loss": 2.0, "mfu": 0.5})
    (file,) = tmp_path.glob("events.out.tfevents.*")
    version, start, points = events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, start.session_log.START)
    assert points.step == 7 and points.wall_time > 0
    assert {value.tag: value.simple_value for value in points.summary.value} == {"loss": 2.0, "mfu": 0.5}


def events(file: Path) -> list[Any]:
    """Of TensorBoard's format: length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = file.read_bytes(), []
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12:end]))
        content = content[end + 4 :]
    return found


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
