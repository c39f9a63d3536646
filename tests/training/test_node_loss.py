"""A node that dies during pretraining, on a cluster of real nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

REPO = Path(__file__).parents[2]


def run(folder: Path, scenario: str) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "tests.training.node_loss", str(folder), scenario]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / f"{scenario}.json").read_text())
    return found


def losses(result: dict[str, Any]) -> list[float]:
    return [entry["validation_loss"] for entry in result["history"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("whole"), "whole")


def test_a_lost_node_is_replaced_and_the_result_is_the_same(whole: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path, "replaced")
    assert result["killed"]
    assert any(note.startswith("resumed at step ") for note in result["notes"])
    assert result["history"] == whole["history"]


def test_with_fewer_nodes_training_goes_on(whole: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path, "fewer")
    assert result["killed"]
    assert any("1 workers instead of 2" in note for note in result["notes"])
    assert losses(result) == pytest.approx(losses(whole), abs=2e-3)
