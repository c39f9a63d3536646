"""The HTTP interface: a FastAPI application over a `Core`, testable without Ray."""

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lspm_ray import __version__
from lspm_ray.audit.ledger import Feedback
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.serving.auditor import Matched
from lspm_ray.serving.cascade import CascadeAnswer, EmptyText, Needs, NotServed, QueueFull, StageDown
from lspm_ray.serving.config import Limits
from lspm_ray.serving.metrics import Metrics
from lspm_ray.serving.schema import (
    ApiError,
    Asked,
    ErrorBody,
    FeedbackRequest,
    FeedbackResponse,
    HealthResponse,
    ModelInfo,
    ModelsResponse,
    PredictRequest,
    PredictResponse,
    ServedAnswer,
    empty_text,
    parse_feedback,
    parse_request,
)
from lspm_ray.serving.status import status_page

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_GONE = 499
_ROUTES = (
    *("/v1/predict", "/v1/models", "/v1/plan", "/v1/audit", "/v1/feedback"),
    *("/healthz", "/readyz", "/metrics", "/status", "/docs", "/openapi.json"),
)


class Core(Protocol):
    """What the HTTP interface is an interface to."""

    limits: Limits
    metrics: Metrics
    plan: Plan
    certificate: Certificate | None

    async def answer(self, texts: Sequence[str], needs: Needs) -> list[CascadeAnswer]:
        """An answer for each text.

        Raises:
            EmptyText: a text has no visible character.
            NotServed: the plan cannot give what is needed.
            QueueFull: too much is waiting.
            StageDown: the model with the last word cannot be reached.
        """

    @property
    def certificate_id(self) -> str | None:
        """What answers carry; None without a certificate, and once it is revoked."""

    def start(self) -> None:
        """Begin what runs beside the requests; the event loop runs."""

    def answered(self, request_id: str, texts: Sequence[str], answers: Sequence[CascadeAnswer]) -> None:
        """These answers are about to leave; must not take time."""

    def unanswered(self, rows: int, needs: Needs) -> None:
        """So many texts get no answer, as there was no capacity or the last model failed."""

    def feedback(self, given: Sequence[Feedback]) -> list[Matched]:
        """Take true labels in: whether each recent answer was right."""

    async def audit(self) -> dict[str, Any]:
        """How the audit stands: `verdict` is holds, revoked, off or unknown."""

    async def not_ready(self) -> str | None:
        """Why no requests should be sent here at the moment; None when they may be."""


def build_api(core: Core, *, emit_request_id: bool = True) -> FastAPI:
    """The application.

    Args:
        core: answers.
        emit_request_id: send `x-request-id` back. Ray Serve's HTTP server does it by itself.
    """

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        core.start()
        yield

    api = FastAPI(
        title="lspm_ray",
        lifespan=running,
        version=__version__,
        description="Certified cascade: a cheap model answers, a better one answers what it cannot vouch for.",
    )
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(HTTPException, _http_error)
    _add_predict(api, core)
    _add_documents(api, core)
    _add_audit(api, core)
    _add_health(api, core)
    api.add_middleware(_Envelope, metrics=core.metrics, emit_request_id=emit_request_id)
    return api


def _add_predict(api: FastAPI, core: Core) -> None:
    limits = core.limits
    gate = _Gate(limits)
    schema = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": PredictRequest.model_json_schema()}},
        }
    }
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 408, 413, 415, 422, 429, 500, 503, 504)
    }

    @api.post("/v1/predict", response_model=PredictResponse, responses=errors, openapi_extra=schema)
    async def predict(request: Request) -> Response:
        """Answers for one text (`text`) or several (`texts`)."""
        request_id: str = request.scope["state"]["request_id"]
        arrived = asyncio.get_running_loop().time()
        with gate:
            asked = parse_request(await _read(request, limits), limits)
            answers = await _answer(core, asked, arrived)
        core.metrics.answered(answers)
        core.answered(request_id, asked.texts, answers)
        certificate_id = core.certificate_id
        body = PredictResponse(
            answers=[_served(answer, certificate_id, request_id) for answer in answers],
            request_id=request_id,
            certificate_id=certificate_id,
        )
        return _json(body)


def _add_documents(api: FastAPI, core: Core) -> None:
    @api.get("/v1/models", response_model=ModelsResponse)
    async def models() -> Response:
        """The models that answer, and when."""
        return _json(ModelsResponse(labels=core.plan.labels, models=model_infos(core.plan)))

    @api.get("/v1/plan")
    async def plan() -> dict[str, Any]:
        """The plan and its certificate, as they were written, and whether that was revoked since."""
        certificate = None
        if core.certificate is not None:
            certificate = {
                "id": core.certificate.id,
                "alpha": core.certificate.alpha,
                **core.certificate.model_dump(mode="json"),
            }
        revoked = core.plan.certificate_id is not None and core.certificate_id is None
        return {"plan": core.plan.model_dump(mode="json"), "certificate": certificate, "revoked": revoked}


def _add_audit(api: FastAPI, core: Core) -> None:
    schema = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": FeedbackRequest.model_json_schema()}},
        }
    }
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (400, 408, 413, 415, 422)}

    @api.get("/v1/audit")
    async def audit() -> dict[str, Any]:
        """How the audit of live traffic stands, over all routers."""
        return await core.audit()

    @api.get("/status", response_class=HTMLResponse)
    async def status() -> HTMLResponse:
        """Plan, certificate, traffic and audit, for people."""
        return HTMLResponse(status_page(core.plan, core.certificate, core.metrics, await core.audit()))

    @api.post("/v1/feedback", response_model=FeedbackResponse, responses=errors, openapi_extra=schema)
    async def feedback(request: Request) -> Response:
        """True labels of texts that were answered: they show the regret that the audit cannot see by itself."""
        given = parse_feedback(await _read(request, core.limits), core.limits, core.plan.labels)
        return _json(FeedbackResponse(answers=core.feedback(given)))


def _add_health(api: FastAPI, core: Core) -> None:
    @api.get("/healthz", response_model=HealthResponse)
    async def healthz() -> Response:
        """The process answers."""
        return _json(HealthResponse(status="ok"))

    @api.get("/readyz", response_model=HealthResponse, responses={503: {"model": ErrorBody}})
    async def readyz() -> Response:
        """Every model of the plan answers."""
        reason = await core.not_ready()
        if reason is not None:
            raise ApiError(503, "not_ready", reason, retry_after_s=core.limits.retry_after_s)
        return _json(HealthResponse(status="ready"))

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters of this replica in Prometheus' text format."""
        return PlainTextResponse(core.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def model_infos(plan: Plan) -> list[ModelInfo]:
    """The plan's stages, as clients see them."""
    later = len(plan.stages) - 1
    roles = ["first", *["middle"] * (later - 1), "last"] if later else ["only"]
    return [
        ModelInfo(
            name=stage.model.name,
            role=role,
            digest=stage.model.digest,
            temperature=stage.temperature,
            threshold=stage.threshold,
            batch_1_latency_ms=stage.batch_1_latency_ms,
            cost=stage.cost,
        )
        for stage, role in zip(plan.stages, roles, strict=True)
    ]


class _Gate:
    """Counts the requests in progress and refuses the one too many."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside = 0

    def __enter__(self) -> None:
        if self._inside >= self._limits.max_requests:
            raise _overloaded(self._limits, f"{self._inside} requests are in progress")
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1


def _overloaded(limits: Limits, why: str, code: str = "overloaded", wait_s: float | None = None) -> ApiError:
    return ApiError(
        429,
        code,
        f"too much is waiting: {why}",
        hint="Send the request again after the time in Retry-After",
        retry_after_s=max(limits.retry_after_s, math.ceil(wait_s or 0)),
    )


async def _answer(core: Core, asked: Asked, arrived: float) -> list[CascadeAnswer]:
    limits, texts = core.limits, asked.texts
    timeout = asyncio.get_running_loop().time() + limits.request_timeout_s
    deadline = None if asked.deadline_ms is None else arrived + asked.deadline_ms / 1e3
    needs = Needs(asked.max_risk, asked.full, deadline)
    try:
        async with asyncio.timeout_at(timeout if deadline is None else min(timeout, deadline)):
            return await core.answer(texts, needs)
    except EmptyText as error:
        raise empty_text("text" if len(texts) == 1 else f"texts[{error.index}]") from None
    except NotServed as error:
        raise ApiError(422, "not_served", str(error), hint=error.hint, field=error.field) from None
    except asyncio.CancelledError:
        core.unanswered(len(texts), needs)  # the client has gone
        raise
    except QueueFull as error:
        core.unanswered(len(texts), needs)
        core.metrics.refused(error.cause)
        code = "deadline" if error.cause == "deadline" else "overloaded"
        raise _overloaded(limits, str(error), code, error.retry_after_s) from None
    except StageDown as error:
        core.unanswered(len(texts), needs)
        _log.error("no answer: %s", error)
        raise ApiError(
            503,
            "unavailable",
            f"no validated answer can be given: {error}",
            hint="Send the request again after the time in Retry-After",
            retry_after_s=limits.retry_after_s,
        ) from None
    except TimeoutError:
        core.unanswered(len(texts), needs)
        if deadline is not None and deadline <= timeout:
            raise ApiError(
                504,
                "deadline",
                f"no answer within {asked.deadline_ms:g} ms (deadline_ms)",
                field="deadline_ms",
                hint="Send fewer texts per request, or give them more time",
            ) from None
        raise ApiError(
            504,
            "timeout",
            f"no answer within {limits.request_timeout_s:g} s (limits.request_timeout_s)",
            hint="Send fewer texts per request, or add replicas",
        ) from None


async def _read(request: Request, limits: Limits) -> bytes:
    """The body, refused as soon as it is known to be too large.

    Raises:
        ApiError: wrong content type or encoding, too large, or too slow.
    """
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            f"content-type must be application/json, not {media_type or 'missing'}"[:200],
            field="content-type",
            hint="With curl: -H 'content-type: application/json'",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(
            415,
            "unsupported_encoding",
            "compressed bodies are not accepted",
            field="content-encoding",
            hint="Send the body uncompressed",
        )
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.receive_timeout_s):
            return await _collect(request, limits)
    except TimeoutError:
        raise ApiError(
            408,
            "body_too_slow",
            f"the body did not arrive within {limits.receive_timeout_s:g} s (limits.receive_timeout_s)",
        ) from None


async def _collect(request: Request, limits: Limits) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.max_body_bytes:
                raise _too_large(limits)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ApiError(_CLIENT_GONE, "client_gone", "the client closed the connection") from None
    return b"".join(chunks)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"the body may have at most {limits.max_body_bytes} bytes (limits.max_body_bytes)",
        hint="Send several requests",
    )


def _served(answer: CascadeAnswer, certificate_id: str | None, request_id: str) -> ServedAnswer:
    return ServedAnswer(
        label=answer.label,
        probability=min(answer.probability, 1.0),
        variant=answer.variant,
        escalated=answer.escalated,
        validator_score=answer.validator_score,
        reason=answer.reason,
        alpha=answer.alpha,
        degraded=answer.degraded,
        certificate_id=certificate_id,
        request_id=request_id,
        label_set=None if answer.label_set is None else list(answer.label_set),
    )


def _json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status in (408, 413, 415, _CLIENT_GONE):
        headers["connection"] = "close"  # the rest of the body is not read
    return _json(error.body(), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 404:
        found = ApiError(404, "not_found", f"there is nothing at {request.url.path[:200]}", hint=f"Try {_ROUTES[-2]}")
    elif error.status_code == 405:
        allowed = ", ".join(value for key, value in (error.headers or {}).items() if key.lower() == "allow")
        found = ApiError(405, "method_not_allowed", f"{request.method} is not allowed here", hint=f"Allowed: {allowed}")
    else:
        found = ApiError(error.status_code, "http_error", str(error.detail))
    return _json(found.body(), error.status_code, dict(error.headers or {}))


class _Envelope:
    """Request id, metrics, and a JSON body for what nobody expected."""

    def __init__(self, app: ASGIApp, metrics: Metrics, emit_request_id: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._emit = emit_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._emit:
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, reply)
        except Exception:
            _log.exception("request %s failed", request_id)
            if status:
                raise
            error = ApiError(500, "internal", "unexpected error", hint=f"The log tells more about request {request_id}")
            await _json(error.body(), 500)(scope, receive, reply)
        finally:
            route = scope["path"] if scope["path"] in _ROUTES else "other"
            self._metrics.responded(route, status or _CLIENT_GONE, time.perf_counter() - start)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = str(value.decode("latin-1"))
            if _REQUEST_ID.fullmatch(given):
                return given
    return uuid.uuid4().hex
