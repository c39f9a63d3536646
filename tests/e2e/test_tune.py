"""`lspm tune` as a user would use it: killed, damaged, gone on with; and the rest of the run with its winner."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from lspm_ray.artifact import ArtifactStore
from tests.e2e.warm import Command

pytestmark = pytest.mark.e2e

TRIALS = 6
RECORDS = ".work/sweep-*/[0-9][0-9][0-9][0-9][0-9].json"


@pytest.fixture(scope="module")
def config(toy_config, tmp_path_factory) -> Path:
    """The toy configuration with a sweep of six trials."""
    raw = yaml.safe_load(toy_config.read_text())
    root = tmp_path_factory.mktemp("tune")
    raw["output"] = str(root / "run")
    del raw["compress"]["variants"]["int8"]
    raw["tune"] = {
        "space": {
            "finetune.learning_rate": {"loguniform": [1e-4, 3e-3]},
            "finetune.schedule": {"choice": ["linear", "cosine"]},
        },
        "scheduler": "none",
        "budget": {"trials": TRIALS},
        "finalists": 1,
        "seeds": 2,
    }
    file = root / "tune.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def records(output: Path) -> dict[int, dict]:
    return {int(file.stem): json.loads(file.read_text()) for file in sorted(output.glob(RECORDS))}


def over(output: Path) -> list[int]:
    return sorted(number for number, record in records(output).items() if record["status"] != "running")


def kill_when(process: Command, output: Path, trials: int) -> None:
    """Kill the command and, with its process group, its cluster."""
    while process.poll() is None and len(over(output)) < trials:
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_sweep_goes_on_and_does_nothing_twice(config, lspm):
    output = Path(yaml.safe_load(config.read_text())["output"])
    kill_when(lspm.start("tune", config), output, 2)
    finished = {number: records(output)[number] for number in over(output)}
    assert 2 <= len(finished) < TRIALS

    # The newest record is torn: the one before it counts.
    torn = max(output.glob(RECORDS), key=lambda file: file.stat().st_mtime_ns)
    finished.pop(int(torn.stem), None)
    torn.write_bytes(torn.read_bytes()[:20])
    assert "interrupted, will resume" in lspm("status", config, "--from-sweep").stdout

    result = lspm("tune", config)
    assert result.returncode == 0, result.stderr
    assert f"record of trial {int(torn.stem)} is damaged" in re.sub(r"\s+", " ", result.stderr)
    found = records(output)
    assert [number for number, record in found.items() if not record["finalist"]] == list(range(TRIALS))
    assert {record["status"] for record in found.values()} == {"done"}
    assert {number: found[number] for number in finished} == finished
    assert f"trials: {TRIALS + 2} done, 0 stopped early, 0 failed" in result.stdout
    assert f"next: lspm run {config} --from-sweep" in result.stdout

    (artifact,) = [a for a in ArtifactStore(str(output)).artifacts() if a.manifest.stage == "tune"]
    sweep = artifact.read_json("sweep.json")
    assert sweep["runs"] == 2 and sweep["finalists"][0]["params"] == artifact.manifest.summary["winner"]
    scores = {n: r["values"]["validation.balanced_accuracy"] for n, r in found.items() if not r["finalist"]}
    assert scores[sweep["finalists"][0]["number"]] == max(scores.values())
    assert len(sweep["finalists"][0]["scores"]) == 2


def test_the_rest_of_the_run_uses_the_winner(config, lspm):
    output = Path(yaml.safe_load(config.read_text())["output"])
    if not list(output.glob("tune-*")):
        assert lspm("tune", config).returncode == 0
    result = lspm("run", config, "--from-sweep")
    assert result.returncode == 0, result.stderr
    text = re.sub(r"\s+", " ", result.stderr)
    assert "tune 0.0 s unchanged" in text or re.search(r"tune [0-9.]+ s unchanged", text)
    assert "epoch" not in text.split("finetune")[0]
    artifacts = ArtifactStore(str(output)).artifacts()
    winner = next(a for a in artifacts if a.manifest.stage == "tune").manifest.summary["winner"]
    trained = next(a for a in artifacts if a.manifest.stage == "select").manifest
    full = [a for a in artifacts if a.manifest.stage == "finetune" and a.digest in _ancestors(artifacts, trained)]
    assert full[0].manifest.config["train"]["learning_rate"] == winner["finetune.learning_rate"]
    assert "next: lspm serve" in result.stdout and "tune.use_winner=true" in result.stdout


def _ancestors(artifacts, manifest) -> set[str]:
    found: set[str] = set()
    waiting = set(manifest.parents.values())
    while waiting:
        digest = waiting.pop()
        found.add(digest)
        for artifact in artifacts:
            if artifact.digest == digest:
                waiting |= set(artifact.manifest.parents.values()) - found
    return found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.space={finetune.learning_rat: {uniform: [0, 1]}}", "tune.space.finetune.learning_rat: .*did you mean"),
        ("tune.space={}", "tune.space"),
        ("tune.searcher=grid", "infinitely many values, a grid needs some that are listed"),
        ("tune.objectives={validation.f1: max}", "no trial reports such a metric.*validation.macro_f1"),
        ("tune.trial.cpus=64", "tune.trial.cpus: a trial asks for 64 CPU of one node, there are 2"),
        ("tune.scheduler={scheduler: asha, grace_epochs: 9}", "tune.scheduler.grace_epochs"),
    ],
)
def test_mistakes_are_known_before_anything_starts(config, lspm, tmp_path, override, message):
    result = lspm("tune", config, override, f"output={tmp_path}/new")
    assert result.returncode == 2
    assert re.search(message, re.sub(r"\s+", " ", result.stderr)), result.stderr
    assert not ArtifactStore(f"{tmp_path}/new").artifacts()
