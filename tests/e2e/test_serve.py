"""The demo's commands after `lspm run`: serve in the background, ask, stop; files, with and without the endpoint."""

import json
import shutil
import socket
import time

import httpx2
import pytest
import yaml

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def endpoint(finished_run, lspm):
    port = yaml.safe_load(finished_run.read_text())["serve"]["port"]
    started = lspm("serve", finished_run, "--detach", "serve.audit.share=1")
    assert started.returncode == 0, started.stderr
    yield f"http://127.0.0.1:{port}"
    stopped = lspm("stop", finished_run)
    assert stopped.returncode == 0, stopped.stderr
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_sample_prints_a_table(endpoint, finished_run, lspm):
    result = lspm("predict", finished_run, "--sample", "5")
    assert result.returncode == 0, result.stderr
    assert "true label" in result.stdout and "validated" in result.stdout
    assert result.stdout.count("│") >= 5 * 8


def test_texts_give_json_when_piped(endpoint, finished_run, lspm):
    result = lspm("predict", finished_run, "the dress is lovely", "terrible fabric")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a["label"] in ("good", "bad") for a in answers] == [True, True]
    assert all(a["latency_ms"] > 0 for a in answers)


def test_by_hand(endpoint):
    answer = httpx2.post(f"{endpoint}/v1/predict", json={"text": "lovely dress"}).json()["answers"][0]
    assert set(answer) >= {"label", "probability", "variant", "escalated", "validator_score", "certificate_id"}
    assert httpx2.get(f"{endpoint}/readyz").status_code == 200
    assert httpx2.post(f"{endpoint}/v1/predict", json={"text": ""}).status_code in (400, 422)


def test_file_gives_the_same_answers_with_and_without_the_endpoint(endpoint, finished_run, lspm, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("review\n" + "\n".join(f"the {w} dress number {i}" for i, w in enumerate(["lovely", "bad"] * 20)))
    answers = {}
    for name, options in {"online": [], "offline": ["--offline"]}.items():
        target = tmp_path / f"{name}.jsonl"
        result = lspm("predict", finished_run, "--file", source, "--out", target, *options)
        assert result.returncode == 0, result.stderr
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        answers[name] = sorted((r["text"], r["label"], r["variant"], r["escalated"]) for r in rows)
    assert len(answers["online"]) == 40
    assert answers["online"] == answers["offline"]


def test_live_traffic_is_audited_and_the_status_page_tells_of_it(endpoint, finished_run, lspm):
    page = httpx2.get(f"{endpoint}/status")
    assert page.status_code == 200 and "Nothing that was seen speaks against it" in page.text
    deadline = time.monotonic() + 60
    while httpx2.get(f"{endpoint}/v1/audit").json()["rows"] < 20:
        assert time.monotonic() < deadline, httpx2.get(f"{endpoint}/v1/audit").json()
        time.sleep(0.2)
    found = lspm("audit", finished_run)
    while found.returncode == 2 and time.monotonic() < deadline:  # the ledger is written every few seconds
        found = lspm("audit", finished_run)
    assert found.returncode == 0 and ": holds" in found.stdout, found.stdout + found.stderr


def test_the_certificate_is_verified(finished_run, lspm):
    found = lspm("verify", finished_run)
    assert found.returncode == 0, found.stdout
    assert found.stdout.splitlines()[-1].startswith("ok: ")


def test_a_taken_port_is_named(endpoint, finished_run, lspm):
    result = lspm("serve", finished_run)
    assert result.returncode == 2 and "serve.port: cannot listen on 127.0.0.1:8123" in result.stderr


def test_stop_without_an_endpoint(finished_run, lspm):
    result = lspm("stop", finished_run, "output=/tmp/lspm-nothing-here")
    assert result.returncode == 2 and "no endpoint of this run is running" in result.stderr


def test_serving_before_running_says_what_to_type(finished_run, lspm, tmp_path):
    result = lspm("serve", finished_run, f"output={tmp_path}/new")
    assert result.returncode == 2 and "First: lspm run" in result.stderr


def test_a_copied_run_is_served_from_its_copy_and_a_tampered_one_not_at_all(finished_run, lspm, tmp_path):
    shutil.copytree(yaml.safe_load(finished_run.read_text())["output"], tmp_path / "run")
    result = lspm("serve", finished_run, f"output={tmp_path}/run", "--render")
    assert result.returncode == 0, result.stderr
    document = yaml.safe_load((tmp_path / "run" / "serve.yaml").read_text())
    assert document["http_options"]["host"] == "127.0.0.1"
    plan = next((tmp_path / "run").glob("select-*")) / "plan.json"
    plan.write_text(plan.read_text().replace("0.", "0.0", 1))
    result = lspm("serve", finished_run, f"output={tmp_path}/run", "--render")
    assert result.returncode == 2 and "plan.json: content does not match the manifest" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give exactly one of them"),
        (["text", "--sample", "3"], "give exactly one of them"),
        (["--file", "x.csv"], "--file and --out belong together"),
        (["text", "--offline"], "--offline works on a --file"),
    ],
)
def test_requests_that_make_no_sense(finished_run, lspm, arguments, message):
    result = lspm("predict", finished_run, *arguments)
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.parametrize("job", ["0_run_all", "10_select"])
def test_jobs_run_a_stage(finished_run, job):
    import subprocess
    import sys

    from tests.e2e.conftest import REPO, environment

    result = subprocess.run(
        [sys.executable, str(REPO / "jobs" / f"{job}.py"), str(finished_run)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "unchanged" in result.stderr
