import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from lspm_ray.audit.ledger import Feedback
from lspm_ray.selection.plan import Certificate, ModelRef, Plan, PlanStage
from lspm_ray.serving.auditor import Matched
from lspm_ray.serving.cascade import CascadeAnswer, EmptyText, Needs, NotServed, QueueFull, StageDown, clean
from lspm_ray.serving.config import Limits
from lspm_ray.serving.metrics import Metrics
from lspm_ray.serving.router import build_api
from tests.toys import toy_point

JSON = {"content-type": "application/json"}
SMALL = ModelRef(name="small", uri="/models/small", digest="d1")
FULL = ModelRef(name="full", uri="/models/full", digest="d2")


def stage(model: ModelRef, threshold: float | None) -> PlanStage:
    return PlanStage(model=model, temperature=1.5, threshold=threshold, batch_1_latency_ms=0.3, cost=0.02)


CERTIFICATE = Certificate(
    delta=0.05,
    risk="regret",
    points=[toy_point(0.8)],
    first=SMALL,
    last=FULL,
    full=FULL,
    validator={"validator": "margin"},
    temperature=1.5,
    calibration_rows=1000,
    outputs={"small": SMALL, "full": FULL},
    data=SMALL,
    hardware={},
)
PLAN = Plan(
    labels=["no", "yes"],
    task={"task": "text_classification"},
    validator={"validator": "margin"},
    stages=[stage(SMALL, 0.8), stage(FULL, None)],
    points=CERTIFICATE.points,
    certificate_id=CERTIFICATE.id,
    expected={},
    reasons={},
)


class ToyCore:
    """Escalates texts with an exclamation mark; fails on demand."""

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**limits)
        self.metrics = Metrics()
        self.plan = PLAN
        self.certificate: Certificate | None = CERTIFICATE
        self.asked: list[list[str]] = []
        self.fail: BaseException | None = None
        self.reason: str | None = None
        self.hang = False
        self.answers: list[CascadeAnswer] | None = None
        self.began = asyncio.Event()
        self.noted: list[tuple[str, list[str], list[CascadeAnswer]]] = []
        self.labels: list[Feedback] = []
        self.revoked = False
        self.started = False
        self.lost = 0

    @property
    def certificate_id(self) -> str | None:
        return None if self.revoked else self.plan.certificate_id

    def start(self) -> None:
        self.started = True

    def answered(self, request_id: str, texts: Sequence[str], answers: Sequence[CascadeAnswer]) -> None:
        self.noted.append((request_id, list(texts), list(answers)))

    def unanswered(self, rows: int, needs: Needs) -> None:
        self.lost += rows

    def feedback(self, given: Sequence[Feedback]) -> list[Matched]:
        self.labels += given
        return ["unknown"] * len(given)

    async def audit(self) -> dict[str, Any]:
        return {"verdict": "revoked" if self.revoked else "holds"}

    async def answer(self, texts: Sequence[str], needs: Needs) -> list[CascadeAnswer]:
        self.asked.append(list(texts))
        self.needs = needs
        self.began.set()
        if self.fail is not None:
            raise self.fail
        if self.hang:
            await asyncio.Event().wait()
        return self.answers or [
            CascadeAnswer("yes", 0.9, "full", True, 0.1, "low_score", 0.01)
            if "!" in text
            else CascadeAnswer("no", 0.8, "small", False, 0.9, None, 0.01)
            for text in clean(texts, None)
        ]

    async def not_ready(self) -> str | None:
        return self.reason


@pytest.fixture
def core() -> ToyCore:
    return ToyCore(max_texts=4, max_characters=50, max_body_bytes=500, receive_timeout_s=0.2)


@pytest.fixture
def client(core: ToyCore) -> Iterator[TestClient]:
    with TestClient(build_api(core), raise_server_exceptions=False) as client:
        yield client


def error_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message", "hint", "field"]
    found: dict[str, Any] = body["error"]
    return found


def test_one_text(client: TestClient) -> None:
    response = client.post("/v1/predict", json={"text": "fine"}, headers={"x-request-id": "abc-1"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "abc-1"
    assert response.json() == {
        "answers": [
            {
                "label": "no",
                "probability": 0.8,
                "variant": "small",
                "escalated": False,
                "validator_score": 0.9,
                "reason": None,
                "alpha": 0.01,
                "degraded": False,
                "certificate_id": CERTIFICATE.id,
                "request_id": "abc-1",
                "label_set": None,
            }
        ],
        "request_id": "abc-1",
        "certificate_id": CERTIFICATE.id,
    }


def test_several_texts_are_answered_in_order(client: TestClient, core: ToyCore) -> None:
    response = client.post("/v1/predict", json={"texts": ["a", "b!", "c"]})
    assert [a["escalated"] for a in response.json()["answers"]] == [False, True, False]
    assert core.asked == [["a", "b!", "c"]]


@pytest.mark.parametrize("given", [None, "", "has space", "x" * 129, "caf\u00e9"])
def test_a_missing_or_odd_request_id_is_replaced(client: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    response = client.post("/v1/predict", json={"text": "fine"}, headers=headers)  # type: ignore[arg-type]
    made = response.headers["x-request-id"]
    assert len(made) == 32
    assert response.json()["answers"][0]["request_id"] == made


def test_behind_ray_serve_the_request_id_is_sent_once(core: ToyCore) -> None:
    with TestClient(build_api(core, emit_request_id=False)) as client:
        response = client.post("/v1/predict", json={"text": "fine"}, headers={"x-request-id": "abc"})
    assert "x-request-id" not in response.headers
    assert response.json()["request_id"] == "abc"


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "invalid_json", None),
        (b'{"text": ""}', 422, "empty_text", "text"),
        (b'{"text": "\\u200b"}', 422, "empty_text", "text"),
        (b'{"texts": ["a", "\\u200b"]}', 422, "empty_text", "texts[1]"),
        (b'{"texts": ["a", 2]}', 422, "invalid_request", "texts[1]"),
        (b'{"texts": ["a", "b", "c", "d", "e"]}', 413, "too_many_texts", "texts"),
        (b'{"text": "' + b"a" * 51 + b'"}', 413, "text_too_long", "text"),
        (b'{"text": "a", "extra": 1}', 422, "unknown_key", "extra"),
        (b'{"text": "' + b"a" * 500 + b'"}', 413, "body_too_large", None),
    ],
)
def test_bad_bodies(client: TestClient, core: ToyCore, body: bytes, status: int, code: str, field: str | None) -> None:
    response = client.post("/v1/predict", content=body, headers=JSON)
    assert response.status_code == status
    error = error_of(response)
    assert (error["code"], error["field"]) == (code, field)
    assert client.post("/v1/predict", json={"text": "fine"}).status_code == 200


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_other_content_types_are_refused_with_the_right_one(client: TestClient, content_type: str) -> None:
    response = client.post("/v1/predict", content=b'{"text": "a"}', headers={"content-type": content_type})
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


def test_content_type_parameters_are_fine(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/predict", content=b'{"text": "a"}', headers=headers).status_code == 200


def test_compressed_bodies_are_refused(client: TestClient) -> None:
    response = client.post("/v1/predict", content=b"x", headers=JSON | {"content-encoding": "gzip"})
    assert response.status_code == 415
    assert error_of(response)["field"] == "content-encoding"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("POST", "/v1/plan", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/predict/x", 404, "not_found"),
    ],
)
def test_wrong_routes_and_methods_are_json_too(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == code


def test_the_wrong_method_is_told_the_right_one(client: TestClient) -> None:
    assert error_of(client.get("/v1/predict"))["hint"] == "Allowed: POST"


class Asgi:
    """Speaks ASGI to the app directly, for what no HTTP client would send."""

    def __init__(self, core: ToyCore, headers: dict[str, str]) -> None:
        self.app = build_api(core)
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/predict",
            "raw_path": b"/v1/predict",
            "query_string": b"",
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in ({"content-type": "application/json"} | headers).items()],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self.received = 0
        self.sent: list[Any] = []

    async def run(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        async def receive() -> dict[str, Any]:
            self.received += 1
            return await anext(messages)

        async def send(message: Any) -> None:
            self.sent.append(message)

        async with asyncio.timeout(10):
            await self.app(self.scope, receive, send)

    def error(self) -> tuple[int, str]:
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])["error"]["code"]


async def endless(chunk: bytes) -> AsyncIterator[dict[str, Any]]:
    while True:
        yield {"type": "http.request", "body": chunk, "more_body": True}


async def silent() -> AsyncIterator[dict[str, Any]]:
    yield {"type": "http.request", "body": b"{", "more_body": True}
    await asyncio.Event().wait()


async def gone() -> AsyncIterator[dict[str, Any]]:
    yield {"type": "http.request", "body": b"{", "more_body": True}
    while True:
        yield {"type": "http.disconnect"}


def test_a_declared_size_over_the_limit_is_refused_before_anything_is_read(core: ToyCore) -> None:
    asgi = Asgi(core, {"content-length": "501"})
    asyncio.run(asgi.run(endless(b"x")))
    assert asgi.error() == (413, "body_too_large")
    assert asgi.received == 0


def test_an_endless_body_is_cut_at_the_limit(core: ToyCore) -> None:
    asgi = Asgi(core, {"transfer-encoding": "chunked"})
    asyncio.run(asgi.run(endless(b"x" * 100)))
    assert asgi.error() == (413, "body_too_large")
    assert asgi.received == 6


def test_a_declared_size_that_lies_is_found_out(core: ToyCore) -> None:
    asgi = Asgi(core, {"content-length": "5"})
    asyncio.run(asgi.run(endless(b"x" * 100)))
    assert asgi.error() == (413, "body_too_large")


def test_a_body_that_never_comes_is_given_up(core: ToyCore) -> None:
    asgi = Asgi(core, {})
    asyncio.run(asgi.run(silent()))
    assert asgi.error() == (408, "body_too_slow")


def test_a_client_that_leaves_does_no_harm(core: ToyCore) -> None:
    asgi = Asgi(core, {})
    asyncio.run(asgi.run(gone()))
    assert core.asked == []


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (QueueFull("512 rows are waiting"), 429, "overloaded"),
        (StageDown("full: gone"), 503, "unavailable"),
        (RuntimeError("a bug"), 500, "internal"),
    ],
)
def test_failures_have_their_status_and_never_an_answer(
    client: TestClient, core: ToyCore, failure: Exception, status: int, code: str
) -> None:
    core.fail = failure
    response = client.post("/v1/predict", json={"text": "a"})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert ("retry-after" in response.headers) == (status in (429, 503))


@pytest.mark.parametrize(("wait_s", "expected"), [(None, "3"), (0.2, "3"), (7.1, "8")])
def test_a_refusal_says_when_to_come_again(wait_s: float | None, expected: str) -> None:
    core = ToyCore(retry_after_s=3)
    core.fail = QueueFull("full", retry_after_s=wait_s, cause="budget")
    with TestClient(build_api(core)) as client:
        response = client.post("/v1/predict", json={"text": "fine"})
        assert response.status_code == 429
        assert response.headers["retry-after"] == expected
        assert 'lspm_refusals_total{cause="budget",replica="local"} 1' in client.get("/metrics").text


def test_what_a_request_needs_reaches_the_core(client: TestClient, core: ToyCore) -> None:
    client.post("/v1/predict", json={"text": "fine"})
    assert core.needs == Needs()
    client.post("/v1/predict", json={"text": "fine", "max_risk": 0.01, "full": True, "deadline_ms": 500})
    assert (core.needs.max_risk, core.needs.full) == (0.01, True)
    assert core.needs.deadline is not None


def test_what_the_plan_cannot_give_is_refused_with_what_it_can(client: TestClient, core: ToyCore) -> None:
    core.fail = NotServed("max_risk", "nothing is certified to 0.001", "Certified here: 0.01")
    response = client.post("/v1/predict", json={"text": "fine", "max_risk": 0.001})
    assert response.status_code == 422
    error = error_of(response)
    assert (error["code"], error["field"], error["hint"]) == ("not_served", "max_risk", "Certified here: 0.01")


def test_a_deadline_that_what_is_waiting_makes_impossible_is_refused_at_once(client: TestClient, core: ToyCore) -> None:
    core.fail = QueueFull("9 rows are waiting", retry_after_s=2.0, cause="deadline")
    response = client.post("/v1/predict", json={"text": "fine", "deadline_ms": 100})
    assert (response.status_code, error_of(response)["code"]) == (429, "deadline")
    assert response.headers["retry-after"] == "2"


def test_a_deadline_is_enforced() -> None:
    core = ToyCore()
    core.hang = True
    with TestClient(build_api(core)) as client:
        started = time.monotonic()
        response = client.post("/v1/predict", json={"text": "fine", "deadline_ms": 50})
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline")
    assert 0.05 <= time.monotonic() - started < 10


def test_a_deadline_cannot_lift_the_endpoint_s_own() -> None:
    core = ToyCore(request_timeout_s=0.05)
    core.hang = True
    with TestClient(build_api(core)) as client:
        response = client.post("/v1/predict", json={"text": "fine", "deadline_ms": 1e9})
    assert (response.status_code, error_of(response)["code"]) == (504, "timeout")


def test_degraded_answers_say_so_and_are_counted(client: TestClient, core: ToyCore) -> None:
    core.answers = [CascadeAnswer("no", 0.8, "small", False, 0.9, None, 0.02, degraded=True)]
    (answer,) = client.post("/v1/predict", json={"text": "fine"}).json()["answers"]
    assert (answer["alpha"], answer["degraded"]) == (0.02, True)
    assert 'lspm_degraded_total{alpha="0.02",replica="local"} 1' in client.get("/metrics").text


def test_unexpected_errors_tell_the_request_id_and_not_the_details(client: TestClient, core: ToyCore) -> None:
    core.fail = RuntimeError("secret")
    response = client.post("/v1/predict", json={"text": "a"}, headers={"x-request-id": "id-7"})
    assert "secret" not in response.text
    assert "id-7" in error_of(response)["hint"]


def test_a_request_that_takes_too_long_is_answered_with_the_deadline() -> None:
    core = ToyCore(request_timeout_s=0.05)
    core.hang = True
    with TestClient(build_api(core)) as client:
        response = client.post("/v1/predict", json={"text": "a"})
    assert response.status_code == 504
    assert "limits.request_timeout_s" in error_of(response)["message"]


def test_one_request_too_many_gets_429() -> None:
    core = ToyCore(max_requests=1, retry_after_s=3)

    async def scenario() -> list[httpx2.Response]:
        core.hang = True
        transport = httpx2.ASGITransport(build_api(core))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            stuck = asyncio.create_task(client.post("/v1/predict", json={"text": "a"}))
            await core.began.wait()
            refused = await client.post("/v1/predict", json={"text": "b"})
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)
            core.hang = False
            return [refused, await client.post("/v1/predict", json={"text": "c"})]

    refused, later = asyncio.run(scenario())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "3"
    assert error_of(refused)["code"] == "overloaded"
    assert later.status_code == 200


def test_models(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    assert body["labels"] == ["no", "yes"]
    assert [(m["name"], m["role"], m["threshold"]) for m in body["models"]] == [
        ("small", "first", 0.8),
        ("full", "last", None),
    ]
    assert "/models/small" not in json.dumps(body)


def test_plan_shows_the_certificate_with_its_id(client: TestClient) -> None:
    body = client.get("/v1/plan").json()
    assert body["plan"]["certificate_id"] == body["certificate"]["id"] == CERTIFICATE.id
    assert body["certificate"]["alpha"] == 0.01


def test_plan_without_certificate(core: ToyCore) -> None:
    core.certificate = None
    with TestClient(build_api(core)) as client:
        assert client.get("/v1/plan").json()["certificate"] is None


def test_health_and_readiness_are_different_questions(client: TestClient, core: ToyCore) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}
    core.reason = "model full does not answer"
    assert client.get("/healthz").json() == {"status": "ok"}
    response = client.get("/readyz")
    assert response.status_code == 503
    assert error_of(response)["message"] == "model full does not answer"


def test_metrics_show_what_was_answered_and_refused(client: TestClient) -> None:
    client.post("/v1/predict", json={"texts": ["a", "b!"]})
    client.post("/v1/predict", content=b"{", headers=JSON)
    client.get("/somewhere")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'lspm_answers_total{variant="full",escalated="true",replica="local"} 1',
        'lspm_escalations_total{reason="low_score",replica="local"} 1',
        'lspm_responses_total{route="/v1/predict",status="200",replica="local"} 1',
        'lspm_responses_total{route="/v1/predict",status="400",replica="local"} 1',
        'lspm_responses_total{route="other",status="404",replica="local"} 1',
    ):
        assert line in response.text.splitlines()


def test_the_documentation_describes_requests_answers_and_errors(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    described = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    assert "texts" in described["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert described["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("PredictResponse")
    assert described["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorBody")


def test_empty_text_is_the_core_s_word_too(client: TestClient, core: ToyCore) -> None:
    core.fail = EmptyText(1)
    assert error_of(client.post("/v1/predict", json={"texts": ["a", "b"]}))["field"] == "texts[1]"


def test_answers_are_shown_to_the_audit_under_their_request_id(client: TestClient, core: ToyCore) -> None:
    assert core.started
    client.post("/v1/predict", json={"texts": ["a", "b!"]}, headers={"x-request-id": "q7"})
    ((request_id, texts, answers),) = core.noted
    assert (request_id, texts, [answer.label for answer in answers]) == ("q7", ["a", "b!"], ["no", "yes"])


def test_after_a_revocation_no_answer_carries_the_certificate(client: TestClient, core: ToyCore) -> None:
    assert client.get("/v1/plan").json()["revoked"] is False
    core.revoked = True
    found = client.post("/v1/predict", json={"text": "a"}).json()
    assert found["certificate_id"] is None
    assert found["answers"][0]["certificate_id"] is None
    assert client.get("/v1/plan").json()["revoked"] is True
    assert client.get("/v1/audit").json() == {"verdict": "revoked"}


def test_feedback_names_answers_by_request_hash_or_text(client: TestClient, core: ToyCore) -> None:
    given = [{"request_id": "q", "index": 2, "label": "yes"}, {"text": "hi", "label": "no"}]
    response = client.post("/v1/feedback", json={"feedback": given})
    assert response.json() == {"answers": ["unknown", "unknown"]}
    by_hash = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
    assert client.post("/v1/feedback", json={"text_sha256": by_hash, "label": "no"}).status_code == 200
    assert core.labels == [
        Feedback(label="yes", request_id="q", index=2),
        Feedback(label="no", text_sha256=by_hash),
        Feedback(label="no", text_sha256=by_hash),
    ]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"request_id": "q", "label": "maybe"}, 422, "unknown_label", "label"),
        ({"request_id": "q", "label": ["no"]}, 422, "unknown_label", "label"),
        ({"label": "no"}, 422, "invalid_request", "request_id"),
        ({"request_id": "q", "text": "a", "label": "no"}, 422, "invalid_request", "request_id"),
        ({"request_id": "q" * 201, "label": "no"}, 422, "invalid_request", "request_id"),
        ({"text": 3, "label": "no"}, 422, "invalid_request", "text"),
        ({"request_id": "q", "index": -1, "label": "no"}, 422, "invalid_request", "index"),
        ({"request_id": "q", "index": True, "label": "no"}, 422, "invalid_request", "index"),
        ({"request_id": "q", "lable": "no"}, 422, "unknown_key", "lable"),
        ({"feedback": [{"request_id": "q", "label": "no"}, 3]}, 422, "invalid_request", "feedback[1]"),
        ({"feedback": [{"request_id": "q", "label": "no"}, {}]}, 422, "unknown_label", "feedback[1].label"),
        ({"feedback": []}, 422, "invalid_request", "feedback"),
        ({"feedback": [0] * 9}, 413, "too_many_texts", "feedback"),
        ([1], 422, "invalid_request", ""),
    ],
)
def test_feedback_that_cannot_be_used_says_why(
    client: TestClient, core: ToyCore, body: Any, status: int, code: str, field: str
) -> None:
    response = client.post("/v1/feedback", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["field"]) == (status, code, field)
    assert core.labels == []


def test_texts_without_an_answer_are_told_to_the_audit_whatever_the_reason(client: TestClient, core: ToyCore) -> None:
    for failure in (QueueFull("full"), StageDown("down")):
        core.fail = failure
        client.post("/v1/predict", json={"texts": ["a", "b"]})
    assert core.lost == 4


def test_the_status_page_is_html_and_says_whether_the_certificate_holds(client: TestClient, core: ToyCore) -> None:
    core.revoked = True
    found = client.get("/status")
    assert found.headers["content-type"].startswith("text/html")
    assert "No: it was revoked" in found.text
