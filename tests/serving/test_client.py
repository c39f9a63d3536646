import json
from collections.abc import Callable, Iterator

import httpx2
import pytest

from lspm_ray.serving.client import Client, EndpointError, retry_after_s

Handler = Callable[[httpx2.Request], httpx2.Response]


def answered(request: httpx2.Request) -> httpx2.Response:
    answers = [
        {
            "label": text,
            "probability": 0.9,
            "variant": "small",
            "escalated": False,
            "validator_score": 0.9,
            "certificate_id": "c",
            "request_id": "r",
        }
        for text in json.loads(request.content)["texts"]
    ]
    return httpx2.Response(200, json={"answers": answers, "request_id": "r", "certificate_id": "c"})


def failed(status: int, code: str, message: str, field: str | None = None) -> httpx2.Response:
    error = {"code": code, "message": message, "hint": "Do this", "field": field}
    return httpx2.Response(status, json={"error": error}, headers={"retry-after": "0"})


class Server:
    """Answers with the prepared responses one after the other, then properly."""

    def __init__(self, *prepared: httpx2.Response | Exception) -> None:
        self.prepared = list(prepared)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if not self.prepared:
            return answered(request)
        outcome = self.prepared.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    waits: list[float] = []
    monkeypatch.setattr("lspm_ray.serving.client.time.sleep", waits.append)
    yield waits


def make(server: Server, **options: int) -> Client:
    return Client("http://test/", transport=httpx2.MockTransport(server), **options)


def test_long_lists_are_split_and_answered_in_order() -> None:
    server = Server()
    texts = [f"t{index}" for index in range(7)]
    assert [a.label for a in make(server, batch_size=3).predict(texts)] == texts
    assert [len(json.loads(r.content)["texts"]) for r in server.requests] == [3, 3, 1]


def test_requests_stay_below_a_number_of_characters() -> None:
    server = Server()
    make(server, max_characters=10).predict(["12345", "12345", "1", "12345678901", "1"])
    assert [len(json.loads(r.content)["texts"]) for r in server.requests] == [2, 1, 1, 1]


def test_no_texts_need_no_request() -> None:
    server = Server()
    assert make(server).predict([]) == []
    assert server.requests == []


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.RemoteProtocolError("closed"),
        httpx2.ReadError("reset"),
        failed(503, "unavailable", "no replica"),
        failed(429, "overloaded", "busy"),
    ],
)
def test_trouble_that_passes_is_tried_once_more(trouble: httpx2.Response | Exception) -> None:
    server = Server(trouble)
    assert make(server).predict(["a"])[0].label == "a"
    assert len(server.requests) == 2


def test_the_wait_is_the_one_the_endpoint_asks_for(slept: list[float]) -> None:
    busy = failed(429, "overloaded", "busy")
    busy.headers["retry-after"] = "3"
    make(Server(busy)).predict(["a"])
    assert slept == [3.0]


def test_trouble_that_stays_is_an_error_with_the_endpoint_s_words() -> None:
    server = Server(*[failed(429, "overloaded", "too much is waiting")] * 5)
    with pytest.raises(EndpointError, match=r"too much is waiting \(HTTP 429 overloaded\)") as caught:
        make(server).predict(["a"])
    assert caught.value.status == 429
    assert len(server.requests) == 2


def test_a_refusal_is_not_tried_again() -> None:
    server = Server(failed(422, "empty_text", "the text is empty", "texts[0]"))
    with pytest.raises(EndpointError) as caught:
        make(server).predict([" "])
    assert (caught.value.field, caught.value.hint, caught.value.status) == ("texts[0]", "Do this", 422)
    assert len(server.requests) == 1


def test_nobody_there_says_how_to_start_the_endpoint() -> None:
    server = Server(*[httpx2.ConnectError("refused")] * 5)
    with pytest.raises(EndpointError, match=r"cannot reach the endpoint: refused.*http://test.*lspm serve"):
        make(server).predict(["a"])


def test_a_timeout_is_not_tried_again() -> None:
    server = Server(httpx2.ReadTimeout("slow"))
    with pytest.raises(EndpointError, match=r"no answer within 60\.0 s"):
        make(server).predict(["a"])
    assert len(server.requests) == 1


@pytest.mark.parametrize("response", [httpx2.Response(200, text="<html>"), httpx2.Response(200, json={"answers": []})])
def test_another_service_at_the_address_is_recognised(response: httpx2.Response) -> None:
    with pytest.raises(EndpointError, match="does not answer as an lspm endpoint does"):
        make(Server(response)).predict(["a"])


def test_an_error_that_is_not_ours_is_shown() -> None:
    with pytest.raises(EndpointError, match="HTTP 500: boom"):
        make(Server(httpx2.Response(500, text="boom"))).predict(["a"])


def test_a_wrong_number_of_answers_is_an_error() -> None:
    empty = httpx2.Response(200, json={"answers": [], "request_id": "r", "certificate_id": None})
    with pytest.raises(EndpointError, match="1 texts were sent, 0 answers came back"):
        make(Server(empty)).predict(["a"])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://[", ""])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(EndpointError), Client(url) as client:
        client.predict(["a"])


def test_ready() -> None:
    assert make(Server(httpx2.Response(200, json={"status": "ready"}))).ready()
    assert not make(Server(failed(503, "not_ready", "no"))).ready()
    assert not make(Server(httpx2.ConnectError("refused"))).ready()


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 1), ("2", 2), ("0.5", 0.5), ("-1", 0), ("900", 10), ("soon", 1)]
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds


def test_needs_are_sent_where_there_are_some() -> None:
    server = Server()
    client = make(server, batch_size=1)
    client.predict(["a", "b"], max_risk=0.01, deadline_ms=50, full=True)
    client.predict(["c"])
    needs = {"max_risk": 0.01, "deadline_ms": 50, "full": True}
    bodies = [json.loads(request.content) for request in server.requests]
    assert bodies == [{"texts": ["a"]} | needs, {"texts": ["b"]} | needs, {"texts": ["c"]}]


def test_what_has_a_deadline_is_not_sent_again(slept: list[float]) -> None:
    server = Server(failed(429, "deadline", "9 rows are waiting"))
    with pytest.raises(EndpointError, match="9 rows are waiting"):
        make(server, retries=3).predict(["a"], deadline_ms=50)
    assert (len(server.requests), slept) == (1, [])
