"""The endpoint as users have it: Ray Serve, HAProxy, processes that are killed."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.audit.config import AuditConfig
from lspm_ray.audit.keeper import Place
from lspm_ray.errors import ArtifactError
from lspm_ray.selection.select import read_plan
from lspm_ray.serving.client import Client
from lspm_ray.serving.config import ServeConfig
from lspm_ray.serving.deploy import deploy, undeploy
from lspm_ray.serving.files import predict_file
from lspm_ray.serving.offline import LocalClient, predict_offline
from tests.serving.ports import free_port
from tests.toys import toy_plan, toy_texts, write_plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config() -> ServeConfig:
    return ServeConfig.parse(
        {
            "port": free_port(),
            "variant": {"max_replicas": 1},
            "limits": {"max_requests": 8, "max_body_bytes": 100_000, "request_timeout_s": 120},
            "graceful_shutdown_s": 2,
        }
    )


@pytest.fixture(scope="module")
def url(ray_cluster: None, toy_select: Artifact, config: ServeConfig) -> Iterator[str]:
    yield deploy(toy_select.uri, config)
    undeploy()


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=150) as client:
        yield client


def test_answers_are_those_of_the_same_plan_without_a_server(url: str, toy_select: Artifact) -> None:
    texts = toy_texts(60)
    with Client(url, batch_size=25) as client:
        served = client.predict(texts)
    local = LocalClient.load(toy_select.uri, threads=1).predict(texts)
    assert [(a.label, a.variant, a.escalated) for a in served] == [(a.label, a.variant, a.escalated) for a in local]
    assert [a.probability for a in served] == pytest.approx([a.probability for a in local], abs=1e-6)
    assert {a.variant for a in served} == {"variant-toy", "full"}


def test_every_route_answers(http: httpx2.Client, toy_select: Artifact) -> None:
    certificate = toy_select.read_json("plan.json")["certificate_id"]
    response = http.post("/v1/predict", json={"text": "love it"}, headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.json()["answers"][0]["certificate_id"] == certificate
    assert [m["role"] for m in http.get("/v1/models").json()["models"]] == ["first", "last"]
    assert http.get("/v1/plan").json()["certificate"]["id"] == certificate
    assert http.get("/healthz").status_code == http.get("/readyz").status_code == http.get("/docs").status_code == 200
    assert "lspm_answers_total{" in http.get("/metrics").text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"text": ""}', 422),
        (json.dumps({"texts": ["a"] * 10_000}).encode(), 413),
        (json.dumps({"text": "a" * 1_000_000}).encode(), 413),
    ],
)
def test_bad_requests_come_back_as_json(http: httpx2.Client, content: bytes, status: int) -> None:
    response = http.post("/v1/predict", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert set(response.json()) == {"error"}


def test_a_client_cannot_set_the_server_s_deadline(http: httpx2.Client) -> None:
    headers = {"x-request-timeout-seconds": "0.000001"}
    assert http.post("/v1/predict", json={"text": "love it"}, headers=headers).status_code == 200


def test_everything_for_http_listens_on_this_machine_only(url: str, config: ServeConfig) -> None:
    ports = {config.port} | {int(os.environ[name]) for name in os.environ if name.endswith("_PROXY_HTTP_PORT")}
    ports |= {int(os.environ[f"RAY_SERVE_HAPROXY_{kind}_PORT"]) for kind in ("STATS", "METRICS")}
    listening = listeners()
    assert ports <= set(listening)
    assert {host for port in ports for host in listening[port]} == {"127.0.0.1"}


def test_the_surplus_is_refused_with_429_and_everything_else_is_answered(url: str) -> None:
    body = {"texts": toy_texts(64, seed=3)}

    def ask(_: int) -> httpx2.Response:
        with httpx2.Client(base_url=url, timeout=150) as client:
            return client.post("/v1/predict", json=body)

    with ThreadPoolExecutor(48) as pool:
        responses = list(pool.map(ask, range(96)))
    assert {r.status_code for r in responses} == {200, 429}
    for response in responses:
        if response.status_code == 429:
            assert response.json()["error"]["code"] == "overloaded"
            assert response.headers["retry-after"] == "1"
        else:
            assert len(response.json()["answers"]) == 64


def test_offline_prediction_writes_what_the_endpoint_answers(url: str, toy_select: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    rows = [*toy_texts(300, seed=4), "", "\u200b", "love it"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows) + "broken\n", encoding="utf-8")
    with Client(url) as client:
        online = predict_file(client, str(source), str(tmp_path / "online.jsonl"), "text")
    offline = predict_offline(toy_select.uri, str(source), str(tmp_path / "offline.jsonl"), "text")
    assert offline == online
    assert (offline.rows, offline.errors) == (304, 3)
    for served, local in zip(read(tmp_path / "online.jsonl"), read(tmp_path / "offline.jsonl"), strict=True):
        assert ("error" in served) == ("error" in local)
        for name in ("probability", "validator_score"):
            assert served.pop(name, None) == pytest.approx(local.pop(name, None), abs=1e-5)
        assert {k: v for k, v in served.items() if k != "error"} == {k: v for k, v in local.items() if k != "error"}


def test_a_tampered_model_is_refused_and_the_running_endpoint_stays(
    url: str, http: httpx2.Client, config: ServeConfig, own_store: ArtifactStore
) -> None:
    select = toy_plan(own_store, seed=7)
    weights = next(Path(own_store.root).glob("variant-toy-*/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: content does not match the manifest"):
        deploy(select.uri, config)
    assert http.post("/v1/predict", json={"text": "love it"}).status_code == 200


def test_a_killed_model_replica_costs_no_request(url: str, http: httpx2.Client) -> None:
    before = model_pid()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    texts = toy_texts(20, seed=5)
    until = time.monotonic() + 120
    with Client(url, timeout_s=150) as client:
        while http.get("/readyz").status_code != 200 or not any(a.escalated for a in client.predict(texts)):
            assert time.monotonic() < until
    assert model_pid() not in (None, before)


def test_an_update_interrupts_nothing(url: str, toy_select: Artifact, config: ServeConfig) -> None:
    statuses: set[int] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with httpx2.Client(base_url=url, timeout=150) as client:
                statuses.add(client.post("/v1/predict", json={"texts": toy_texts(4, seed=6)}).status_code)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            deploy(toy_select.uri, config.model_copy(update={"max_batch_size": 16}))
        finally:
            done.set()
        for task in asking:
            task.result()
    assert statuses == {200}


def model_pid() -> int | None:
    """The replica of the full model among the descendants of this process; other clusters are none of our business."""
    parents: dict[int, int] = {}
    replicas: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            title = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica:lspm:full"):
            replicas.append(int(entry.name))
    return next((pid for pid in replicas if os.getpid() in ancestors(pid, parents)), None)


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def listeners() -> dict[int, set[str]]:
    """Port -> addresses that something listens on, from /proc (IPv4, and IPv6 as its hexadecimal form)."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, port = local.split(":")
            if state == "0A":
                host = (
                    ".".join(str(byte) for byte in reversed(bytes.fromhex(address))) if len(address) == 8 else address
                )
                found.setdefault(int(port, 16), set()).add(host)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_audit_that_trips_sends_everything_to_full_also_after_a_restart(
    url: str, config: ServeConfig, own_store: ArtifactStore
) -> None:
    plan, certificate = read_plan(toy_plan(own_store, threshold=0.7))
    assert certificate is not None
    certificate = certificate.model_copy(update={"risk": "disagreement"})
    plan = plan.model_copy(update={"certificate_id": certificate.id})
    select = write_plan(own_store, plan, certificate)
    audited = config.model_copy(update={"audit": AuditConfig(share=1.0, sync_s=0.1)})

    def until_revoked() -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answers = http.post("/v1/predict", json={"texts": toy_texts(50)}).json()
            if answers["certificate_id"] is None:
                break
            time.sleep(0.2)
        found: dict[str, Any] = http.post("/v1/predict", json={"text": "love it"}).json()["answers"][0]
        return found

    with httpx2.Client(base_url=deploy(select.uri, audited), timeout=150) as http:
        answer = until_revoked()
        assert (answer["variant"], answer["reason"], answer["certificate_id"]) == ("full", "revoked", None)
        assert http.get("/v1/plan").json()["revoked"] is True
        status = http.get("/v1/audit").json()
        assert (status["verdict"], status["certificate_id"]) == ("revoked", certificate.id)
    assert Place.of(certificate, select).load().revoked is not None
    undeploy(config.name)
    with httpx2.Client(base_url=deploy(select.uri, audited), timeout=150) as http:
        assert http.post("/v1/predict", json={"text": "love it"}).json()["answers"][0]["reason"] == "revoked"
