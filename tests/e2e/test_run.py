"""`lspm run` as a user would use it: once, again, killed in every stage, and with bad input."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from lspm_ray.artifact import ArtifactStore

pytestmark = pytest.mark.e2e

EXACT = ("base", "prepare", "finetune", "teach", "reference", "variant", "outputs")
"""Stages whose result does not depend on the clock: equal digests are promised after a kill."""


def digests(output: Path) -> list[tuple[str, str]]:
    artifacts = ArtifactStore(str(output)).artifacts()
    return sorted((a.manifest.stage, a.digest) for a in artifacts if a.manifest.stage in EXACT)


def output_of(config: Path) -> Path:
    return Path(yaml.safe_load(config.read_text())["output"])


def test_it_ends_with_a_plan_and_a_report(finished_run):
    artifacts = ArtifactStore(str(output_of(finished_run))).artifacts()
    for artifact in artifacts:
        artifact.verify()
    stages = {a.manifest.stage for a in artifacts}
    assert stages == {*EXACT, "profile", "select", "gears", "report"}
    report = next(a for a in artifacts if a.manifest.stage == "report")
    assert b"<html" in report.read_bytes("report.html")
    full = next(a for a in artifacts if a.manifest.stage == "finetune").local()
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(full).config.id2label == {0: "bad", 1: "good"}


def test_a_second_run_makes_nothing_and_starts_no_cluster(finished_run, lspm):
    before = digests(output_of(finished_run))
    result = lspm("run", finished_run)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("unchanged") >= 7
    assert "log of the workers" not in result.stderr
    assert digests(output_of(finished_run)) == before
    assert f"next: lspm serve {finished_run}" in result.stdout


def test_status_says_what_is_there_and_what_comes_next(finished_run, lspm):
    done = lspm("status", finished_run)
    assert done.returncode == 0 and "to do" not in done.stdout and "next: lspm serve" in done.stdout
    fresh = lspm("status", finished_run, f"output={output_of(finished_run)}-fresh")
    assert fresh.stdout.count("to do") == 8 and "next: lspm run" in fresh.stdout


def test_dry_run_checks_and_makes_nothing(finished_run, lspm, tmp_path):
    result = lspm("run", finished_run, f"output={tmp_path}/new", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("to do") == 8
    for found in (
        "checked output:",
        "checked model:",
        "checked data:",
        "checked finetune: 1 training worker(s)",
        "next: ",
    ):
        assert found in result.stdout
    assert ArtifactStore(f"{tmp_path}/new").artifacts() == []


FRESH = "{architecture: lstm, config: {hidden_size: 16}, tokenizer: {algorithm: word, vocab_size: 500}}"


def test_a_fresh_model_is_made_and_fine_tuned(finished_run, lspm, tmp_path):
    arguments = (finished_run, f"output={tmp_path}/run", f"model={FRESH}")
    checked = lspm("finetune", *arguments, "--dry-run")
    assert "checked model: a fresh lstm with a word tokenizer of 500 tokens" in checked.stdout, checked.stderr
    result = lspm("finetune", *arguments)
    assert result.returncode == 0, result.stderr
    made = {artifact.manifest.stage: artifact for artifact in ArtifactStore(f"{tmp_path}/run").artifacts()}
    assert set(made) == {"tokenizer", "base", "prepare", "finetune"}
    assert "Made from `fresh lstm weights`" in made["finetune"].read_bytes("README.md").decode()
    assert made["prepare"].manifest.parents == {"model": made["tokenizer"].digest}
    status = lspm("status", *arguments)
    assert status.stdout.count("done") == 3 and "next: lspm run" in status.stdout
    again = lspm("finetune", *arguments)
    assert again.stderr.count("unchanged") == 3


KILLS = {
    "base": ".lock",
    "prepare": ".partial/prepare-*",
    "finetune": ".work/finetune-*/step-*/manifest.json",
    "teach": ".partial/teach-*",
    "compress": ".work/variant-*/train/step-*/manifest.json",
    "outputs": ".partial/outputs-*",
    "profile": ".partial/profile-*",
    "select": "profile-*/manifest.json",
    "gears": "select-*/manifest.json",
    "report": "gears-*/manifest.json",
}
"""Stage -> the file that shows that it has begun."""


@pytest.mark.timeout(900)
def test_killed_in_every_stage_it_resumes_to_the_same_digests(finished_run, lspm, tmp_path):
    output = tmp_path / "run"
    for stage, pattern in KILLS.items():
        process = lspm.start("run", finished_run, f"output={output}")
        deadline = time.monotonic() + 240
        while not list(output.glob(pattern)):
            assert process.poll() is None, f"ended before {stage} could be killed: {process.read('err')}"
            assert time.monotonic() < deadline, f"never saw {pattern}"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL
        if stage in ("finetune", "compress"):
            found = lspm("status", finished_run, f"output={output}").stdout
            assert re.search(rf"{stage} +│ interrupted, will resume", found), found
    last = lspm("run", finished_run, f"output={output}")
    assert last.returncode == 0, last.stderr
    assert digests(output) == digests(output_of(finished_run))
    assert not list(output.glob(".partial/*")) and not list(output.glob(".work/*"))


BAD = {
    "unknown key": (["finetune.epoch=3"], "finetune.epoch: unknown key; did you mean `epochs`?"),
    "wrong type": (["finetune.epochs=many"], "finetune.epochs"),
    "missing column": (["data.text=reveiw"], "reveiw"),
    "label outside the set": (["data.labels=[good, fine]"], "bad"),
    "one class": (["data.labels={good: x, bad: x}"], "at least two labels"),
    "no such model": (["model.name=/no/such/dir"], "model.name: no such directory"),
    "no such data": (["data.source=/no/such.csv"], "/no/such.csv"),
    "too few rows to certify": (["select.alpha=0.0001"], "calibration rows"),
    "cluster too small": (["finetune.workers.num_workers=64", "cluster.num_cpus=1"], "finetune.workers.num_workers"),
    "unknown method": (["compress.variants.bag.recipe=[zip]"], "unknown method"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_nothing_expensive_starts(finished_run, lspm, tmp_path, name):
    overrides, message = BAD[name]
    result = lspm("run", finished_run, f"output={tmp_path}/out", *overrides)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("finetune-*"))


def test_missing_config_file(lspm, tmp_path):
    result = lspm("run", tmp_path / "nothing.yaml")
    assert result.returncode == 2 and "no such config file" in result.stderr


@pytest.mark.parametrize("stage", ["finetune", "select"])
def test_flipped_byte_stops_the_next_stage(finished_run, lspm, tmp_path, stage):
    import shutil

    output = tmp_path / "run"
    shutil.copytree(output_of(finished_run), output)
    model = next(output.glob("finetune-*")) / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-5] ^= 1
    model.write_bytes(bytes(data))
    changed = {"finetune": "compress.variants.int8.recipe=[onnx]", "select": "profile.rounds=2"}[stage]
    result = lspm("run", finished_run, f"output={output}", changed)
    assert result.returncode == 2
    assert "model.safetensors" in result.stderr and "sha256" in result.stderr


def test_report_json_is_json(finished_run):
    report = next(output_of(finished_run).glob("report-*")) / "report.json"
    assert json.loads(report.read_text())
