"""A client of the endpoint."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from lspm_ray.errors import UserError
from lspm_ray.serving.schema import ErrorBody, ModelsResponse, PredictResponse, ServedAnswer

T = TypeVar("T", bound=BaseModel)

_BUSY = (429, 503)
_LONGEST_WAIT_S = 10.0


class EndpointError(UserError):
    """The endpoint cannot be reached, or refused the request."""

    status: int | None = None
    """HTTP status of the refusal."""


class Client:
    """Asks the endpoint; safe to retry, because answering changes nothing.

    Args:
        url: of the endpoint, e.g. `http://127.0.0.1:8000`.
        batch_size: texts per request; at most the endpoint's `limits.max_texts`.
        max_characters: per request, so that a batch of long texts stays below the endpoint's `limits.max_body_bytes`.
        timeout_s: for one request.
        retries: how often a request is sent again after a broken connection, 429 or 503; one with a deadline is not.
        transport: for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        max_characters: int = 400_000,
        timeout_s: float = 60.0,
        retries: int = 1,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.batch_size = batch_size
        self.max_characters = max_characters
        self.retries = retries
        try:
            self._http = httpx2.Client(base_url=self.url, timeout=timeout_s, transport=transport)
        except (httpx2.InvalidURL, ValueError) as error:
            raise EndpointError(f"not a URL: {error}", field="url", value=url) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def predict(
        self,
        texts: Sequence[str],
        *,
        max_risk: float | None = None,
        deadline_ms: float | None = None,
        full: bool = False,
    ) -> list[ServedAnswer]:
        """An answer for each text, in order; long lists are sent in several requests.

        Args:
            texts: to be answered.
            max_risk: largest risk that the answers may have; None for the plan's default.
            deadline_ms: of each request, after which its answers are of no use; None for none.
            full: let the full model answer.

        Raises:
            EndpointError: no connection, or the endpoint refused: with its own words.
        """
        answers: list[ServedAnswer] = []
        given = {"max_risk": max_risk, "deadline_ms": deadline_ms, "full": full or None}
        needs = {key: value for key, value in given.items() if value is not None}
        for batch in self._batches(texts):
            response = self._ask("POST", "/v1/predict", PredictResponse, {"texts": batch, **needs})
            if len(response.answers) != len(batch):
                raise EndpointError(f"{len(batch)} texts were sent, {len(response.answers)} answers came back")
            answers += response.answers
        return answers

    def models(self) -> ModelsResponse:
        """The models behind the endpoint."""
        return self._ask("GET", "/v1/models", ModelsResponse)

    def plan(self) -> dict[str, Any]:
        """The plan and its certificate."""
        found: dict[str, Any] = self._send("GET", "/v1/plan", None).json()
        return found

    def ready(self) -> bool:
        """The endpoint answers and so do all its models."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        characters = 0
        for text in texts:
            if batch and (len(batch) == self.batch_size or characters + len(text) > self.max_characters):
                yield batch
                batch, characters = [], 0
            batch.append(text)
            characters += len(text)
        if batch:
            yield batch

    def _ask(self, method: str, path: str, cls: type[T], body: dict[str, Any] | None = None) -> T:
        response = self._send(method, path, body)
        try:
            return cls.model_validate_json(response.content)
        except ValidationError as error:
            raise EndpointError(
                f"{self.url}{path} does not answer as an lspm endpoint does: {error.error_count()} problems",
                field="url",
                value=response.text[:200],
            ) from None

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        for attempt in range(self.retries + 1):
            final = attempt == self.retries or (body is not None and "deadline_ms" in body)
            try:
                response = self._http.request(method, path, json=body)
            except httpx2.TimeoutException:
                raise EndpointError(
                    f"no answer within {self._http.timeout.read} s", field="url", value=self.url
                ) from None
            except httpx2.TransportError as error:
                if final or isinstance(error, httpx2.UnsupportedProtocol):
                    raise self._unreachable(error) from None
                continue
            if response.status_code not in _BUSY or final:
                break
            time.sleep(retry_after_s(response.headers.get("retry-after")))
        if response.status_code >= 400:
            raise self._refused(response)
        return response

    def _unreachable(self, error: Exception) -> EndpointError:
        return EndpointError(
            f"cannot reach the endpoint: {error}",
            field="url",
            value=self.url,
            hint="Start it with `lspm serve`, or give its address",
        )

    def _refused(self, response: httpx2.Response) -> EndpointError:
        status = response.status_code
        try:
            detail = ErrorBody.model_validate_json(response.content).error
        except ValidationError:
            error = EndpointError(f"HTTP {status}: {response.text[:200]}", field="url", value=self.url)
        else:
            error = EndpointError(
                f"{detail.message} (HTTP {status} {detail.code})", field=detail.field, hint=detail.hint
            )
        error.status = status
        return error


def retry_after_s(header: str | None) -> float:
    """Seconds to wait, from a Retry-After header."""
    try:
        return min(max(float(header or "1"), 0.0), _LONGEST_WAIT_S)
    except ValueError:
        return 1.0
