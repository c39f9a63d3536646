"""What goes over the wire: requests, answers, errors."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from lspm_ray.audit.ledger import Feedback
from lspm_ray.serving.config import Limits


class ApiError(Exception):
    """An error that leaves the endpoint as JSON.

    Args:
        status: HTTP status.
        code: short name that a program can branch on.
        message: what is wrong, in one sentence.
        hint: what to change.
        field: which part of the request is at fault.
        retry_after_s: value of the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        field: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint
        self.field = field
        self.retry_after_s = retry_after_s

    def body(self) -> "ErrorBody":
        """The JSON body."""
        return ErrorBody(error=ErrorDetail(code=self.code, message=str(self), hint=self.hint, field=self.field))


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(_Wire):
    """What is wrong and what to do."""

    code: str
    message: str
    hint: str | None = None
    field: str | None = None


class ErrorBody(_Wire):
    """The body of every response that is not a success."""

    error: ErrorDetail


class PredictRequest(BaseModel):
    """Either `text` or `texts`.

    `text` is one text (a list is taken as `texts`); `texts` is a list of them. `parse_request` reads this form.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"text": "I love this dress"}]}
    )

    text: str | list[str] | None = None
    texts: list[str] | None = None
    max_risk: float | None = Field(None, ge=0, le=1)
    """Largest risk that the answers may have: the most lenient certified point that keeps it is used, never a more
    lenient one. Refused (422) if no point is certified to it."""
    deadline_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    """After this the answer is of no use. Refused at once (429) if what is waiting takes longer; else 504 in time."""
    full: bool | None = None
    """Let the full model answer."""


@dataclass(frozen=True)
class Asked:
    """A request that was read.

    Attributes:
        texts: at least one.
        max_risk: largest risk it bears; None for the plan's default.
        deadline_ms: from the arrival of the request; None for none.
        full: the full model is to answer.
    """

    texts: list[str]
    max_risk: float | None = None
    deadline_ms: float | None = None
    full: bool = False


Probability = Annotated[float, Field(ge=0, le=1)]


class ServedAnswer(_Wire):
    """The answer to one text, and where it comes from."""

    label: str
    probability: Probability
    variant: str
    """Name of the model that answered."""
    escalated: bool
    """The first variant's answer was not accepted and a later model was asked."""
    validator_score: float | None
    """Of the first variant's answer; None where there was none that could be scored."""
    reason: str | None = None
    """Why the stage before the one that answered passed it on: low_score, invalid_output, error, timeout, requested,
    revoked (the certificate no longer holds), or what a check says, such as too_short."""
    alpha: float | None = None
    """Risk level of the certified point under which the answer was given: of all requests under that point, at most
    this share gets a worse answer than full's. None where nothing had to be certified: full alone, or as requested."""
    degraded: bool = False
    """Accepted under a more lenient point than the request's own, because the last model had no capacity left."""
    certificate_id: str | None
    request_id: str
    label_set: list[str] | None = None
    """Labels, the most probable first, one of which is the true one with the plan's coverage; None without such sets
    (`select.conformal`)."""


class PredictResponse(_Wire):
    """Answers in the order of the texts."""

    answers: list[ServedAnswer]
    request_id: str
    certificate_id: str | None


class FeedbackRequest(BaseModel):
    """The true label of one answered text (one of `request_id`, `text_sha256`, `text` names it), or a list of them.

    `parse_feedback` reads this form.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"request_id": "3f2a", "index": 0, "label": "yes"}]},
    )

    label: str | None = None
    request_id: str | None = None
    index: int = 0
    """Which text of that request."""
    text_sha256: str | None = None
    text: str | None = None
    """As it was sent; only its hash is used."""
    feedback: list[dict[str, Any]] | None = None
    """Several of these, instead of one."""


class FeedbackResponse(_Wire):
    """For each label whether the router's own recent answer was right, wrong, or is unknown to this router.

    Unknown ones are not lost: the audit matches them with what any router sampled.
    """

    answers: list[Literal["right", "wrong", "unknown"]]


class ModelInfo(_Wire):
    """One model of the plan."""

    name: str
    role: str
    """`first`: answers first; `middle`: what the first may not; `last`: what is left; `only`: serves alone."""
    digest: str
    temperature: float
    threshold: float | None
    batch_1_latency_ms: float
    cost: float


class ModelsResponse(_Wire):
    """The models behind the endpoint."""

    labels: list[str]
    models: list[ModelInfo]


class HealthResponse(_Wire):
    """State of the endpoint."""

    status: str


def parse_request(body: bytes, limits: Limits) -> Asked:
    """The texts of a request and what it asks for.

    Checked by hand and not with `PredictRequest`: pydantic reports every error of a hostile body, which takes it
    seconds and gigabytes, and here the first one is enough.

    Raises:
        ApiError: 400 for what is not JSON, 413 for too much, 422 for JSON of another form.
    """
    try:
        raw = from_json(body)
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"not valid JSON: {error}", hint=f"Send UTF-8. {_EXAMPLE}") from None
    if not isinstance(raw, dict):
        raise ApiError(422, "invalid_request", "the body must be a JSON object", hint=_EXAMPLE)
    unknown = next((key for key in raw if key not in _WANTED), None)
    if unknown is not None:
        raise ApiError(422, "unknown_key", "unknown key", field=unknown[:100], hint=f"Valid: {', '.join(_WANTED)}")
    given = [(key, raw[key]) for key in ("text", "texts") if raw.get(key) is not None]
    if len(given) != 1:
        raise ApiError(422, "invalid_request", "give either `text` or `texts`", field="text", hint=_EXAMPLE)
    field, value = given[0]
    texts = [value] if field == "text" and isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ApiError(422, "invalid_request", f"must be {_WANTED[field]}", field=field)
    needs = _needs(raw)
    check_texts(texts, limits, field if texts is value else None)
    return Asked(texts, **needs)


def _needs(raw: dict[str, Any]) -> dict[str, Any]:
    needs = {key: raw[key] for key in _NEEDS if raw.get(key) is not None}
    for key, value in needs.items():
        if not _NEEDS[key](value):
            raise ApiError(422, "invalid_request", f"must be {_WANTED[key]}", field=key)
    return needs


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_NEEDS: dict[str, Callable[[Any], bool]] = {
    "max_risk": lambda value: _is_number(value) and 0 <= value <= 1,
    "deadline_ms": lambda value: _is_number(value) and 0 < value < math.inf,
    "full": lambda value: isinstance(value, bool),
}


def parse_feedback(body: bytes, limits: Limits, labels: Sequence[str]) -> list[Feedback]:
    """The labels of a request, see `FeedbackRequest`.

    Args:
        body: JSON.
        limits: at most `max_texts` labels.
        labels: that there are.

    Raises:
        ApiError: 400 for what is not JSON, 413 for too much, 422 for JSON of another form.
    """
    try:
        raw = from_json(body)
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"not valid JSON: {error}", hint=_FEEDBACK_EXAMPLE) from None
    several = isinstance(raw, dict) and set(raw) == {"feedback"}
    entries = raw["feedback"] if several else [raw]
    if not isinstance(entries, list) or not entries:
        raise ApiError(422, "invalid_request", "must be a list of labels", field="feedback", hint=_FEEDBACK_EXAMPLE)
    if len(entries) > limits.max_texts:
        why = f"{len(entries)} labels in one request; at most {limits.max_texts} are allowed (limits.max_texts)"
        raise ApiError(413, "too_many_texts", why, field="feedback", hint="Send several requests")
    where = [f"feedback[{index}]." if several else "" for index in range(len(entries))]
    return [_feedback(entry, labels, place) for entry, place in zip(entries, where, strict=True)]


_FEEDBACK_KEYS = ("label", "request_id", "index", "text_sha256", "text")
_NAMES = ("request_id", "text_sha256", "text")
_FEEDBACK_EXAMPLE = 'For example {"request_id": "3f2a", "index": 0, "label": "yes"}'
_LONGEST_NAME = 200


def _feedback(entry: Any, labels: Sequence[str], place: str) -> Feedback:
    if not isinstance(entry, dict):
        raise ApiError(422, "invalid_request", "must be a JSON object", field=place.rstrip("."), hint=_FEEDBACK_EXAMPLE)
    unknown = next((key for key in entry if key not in _FEEDBACK_KEYS), None)
    if unknown is not None:
        hint = f"Valid: {', '.join(_FEEDBACK_KEYS)}"
        raise ApiError(422, "unknown_key", "unknown key", field=f"{place}{unknown}"[:100], hint=hint)
    if entry.get("label") not in list(labels):
        hint = f"Valid: {', '.join(labels)}"[:500]
        raise ApiError(422, "unknown_label", "there is no such label", field=f"{place}label", hint=hint)
    names = [name for name in _NAMES if entry.get(name) is not None]
    if len(names) != 1:
        why = f"give one of {', '.join(_NAMES)}"
        raise ApiError(422, "invalid_request", why, field=f"{place}request_id", hint=_FEEDBACK_EXAMPLE)
    value = entry[names[0]]
    if not isinstance(value, str) or (names[0] != "text" and len(value) > _LONGEST_NAME):
        raise ApiError(422, "invalid_request", "must be a short string", field=f"{place}{names[0]}")
    index = entry.get("index", 0)
    if type(index) is not int or index < 0:
        raise ApiError(422, "invalid_request", "must be a whole number from 0", field=f"{place}index")
    if names[0] == "text":
        value = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    by_hash = names[0] != "request_id"
    return Feedback(
        label=entry["label"],
        text_sha256=value.lower() if by_hash else None,
        request_id=None if by_hash else value,
        index=index,
    )


_EXAMPLE = 'For example {"text": "I love this dress"} or {"texts": ["one", "two"]}'
_WANTED = {
    "text": "a string or a list of strings",
    "texts": "a list of strings",
    "max_risk": "a number between 0 and 1",
    "deadline_ms": "a number above 0",
    "full": "true or false",
}


def check_texts(texts: Sequence[Any], limits: Limits, field: str | None = "texts") -> None:
    """Refuse empty, too many and too long texts, and what is not text.

    Args:
        texts: of one request.
        limits: what is allowed.
        field: name of the list in error messages; None where it was a single text.

    Raises:
        ApiError: names the text at fault.
    """
    if not texts:
        raise ApiError(422, "no_texts", "there are no texts", field=field, hint="Send at least one")
    if len(texts) > limits.max_texts:
        raise ApiError(
            413,
            "too_many_texts",
            f"{len(texts)} texts in one request; at most {limits.max_texts} are allowed (limits.max_texts)",
            field=field,
            hint="Send several requests, or use `lspm predict --offline` for whole data sets",
        )
    places = ["text" if field is None else f"{field}[{index}]" for index in range(len(texts))]
    for where, text in zip(places, texts, strict=True):
        if not isinstance(text, str):
            raise ApiError(422, "invalid_request", "must be a string", field=where)
    for where, text in zip(places, texts, strict=True):
        if len(text) > limits.max_characters:
            raise ApiError(
                413,
                "text_too_long",
                f"{len(text)} characters; at most {limits.max_characters} are allowed (limits.max_characters)",
                field=where,
                hint="Shorten the text: the model reads its beginning only",
            )
        if not text.strip():
            raise empty_text(where)


def empty_text(field: str) -> ApiError:
    """The error for a text without a visible character."""
    return ApiError(422, "empty_text", "the text is empty", field=field, hint="Leave empty texts out")
