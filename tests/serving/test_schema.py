import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lspm_ray.serving.config import Limits
from lspm_ray.serving.schema import ApiError, Asked, PredictRequest, parse_request

LIMITS = Limits(max_texts=3, max_characters=10)


def refusal(body: bytes, limits: Limits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(body, limits)
    return caught.value


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ('{"text": "a"}', ["a"]),
        ('{"text": ["a", "b"]}', ["a", "b"]),
        ('{"texts": ["a", "b"]}', ["a", "b"]),
        ('{"text": null, "texts": ["a"]}', ["a"]),
        ('{"text": "1234567890"}', ["1234567890"]),
        ('{"texts": ["a", "b", "c"]}', ["a", "b", "c"]),
    ],
)
def test_texts_are_found_in_every_allowed_form(body: str, texts: list[str]) -> None:
    assert parse_request(body.encode(), LIMITS).texts == texts


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, "invalid_json", None),
        (b"{", 400, "invalid_json", None),
        (b'{"text": "\xff"}', 400, "invalid_json", None),
        (b'{"text": "\\ud800"}', 400, "invalid_json", None),
        (b'{"text": "a"} {}', 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b"null", 422, "invalid_request", None),
        (b'"a"', 422, "invalid_request", None),
        (b'[{"text": "a"}]', 422, "invalid_request", None),
        (b"{}", 422, "invalid_request", "text"),
        (b'{"text": "a", "texts": ["b"]}', 422, "invalid_request", "text"),
        (b'{"text": NaN}', 422, "invalid_request", "text"),
        (b'{"text": 1}', 422, "invalid_request", "text"),
        (b'{"texts": "a"}', 422, "invalid_request", "texts"),
        (b'{"texts": {"a": 1}}', 422, "invalid_request", "texts"),
        (b'{"texts": ["a", 1]}', 422, "invalid_request", "texts[1]"),
        (b'{"text": ["a", null]}', 422, "invalid_request", "text[1]"),
        (b'{"text": "a", "model": "x"}', 422, "unknown_key", "model"),
        (b'{"texts": []}', 422, "no_texts", "texts"),
        (b'{"text": ""}', 422, "empty_text", "text"),
        (b'{"texts": ["a", " \\n\\t"]}', 422, "empty_text", "texts[1]"),
        (b'{"text": "a", "max_risk": -0.1}', 422, "invalid_request", "max_risk"),
        (b'{"text": "a", "max_risk": NaN}', 422, "invalid_request", "max_risk"),
        (b'{"text": "a", "max_risk": true}', 422, "invalid_request", "max_risk"),
        (b'{"text": "a", "max_risk": "1 %"}', 422, "invalid_request", "max_risk"),
        (b'{"text": "a", "deadline_ms": 0}', 422, "invalid_request", "deadline_ms"),
        (b'{"text": "a", "deadline_ms": Infinity}', 422, "invalid_request", "deadline_ms"),
        (b'{"text": "a", "full": 1}', 422, "invalid_request", "full"),
        (b'{"max_risk": 0.1}', 422, "invalid_request", "text"),
        (b'{"texts": ["a", "b", "c", "d"]}', 413, "too_many_texts", "texts"),
        (b'{"text": "12345678901"}', 413, "text_too_long", "text"),
        (b'{"texts": ["a", "12345678901"]}', 413, "text_too_long", "texts[1]"),
    ],
)
def test_bad_requests_name_status_code_and_field(body: bytes, status: int, code: str, field: str | None) -> None:
    error = refusal(body)
    assert (error.status, error.code, error.field) == (status, code, field)


def test_messages_say_the_limit_and_the_setting() -> None:
    assert "4 texts in one request; at most 3 are allowed (limits.max_texts)" in str(
        refusal(b'{"texts": ["a", "b", "c", "d"]}')
    )
    assert "11 characters; at most 10 are allowed (limits.max_characters)" in str(refusal(b'{"text": "12345678901"}'))


def test_ten_thousand_texts_and_a_text_of_a_megabyte_are_refused_by_default() -> None:
    assert refusal(json.dumps({"texts": ["a"] * 10_000}).encode(), Limits()).status == 413
    assert refusal(json.dumps({"text": "a" * 1_000_000}).encode(), Limits()).status == 413


def test_a_huge_key_is_not_echoed() -> None:
    error = refusal(json.dumps({"k" * 100_000: 1}).encode())
    assert error.field is not None
    assert len(error.field) == 100


def test_error_body_is_one_object_with_all_keys() -> None:
    body = ApiError(422, "empty_text", "the text is empty", field="text").body()
    assert json.loads(body.model_dump_json()) == {
        "error": {"code": "empty_text", "message": "the text is empty", "hint": None, "field": "text"}
    }


def test_a_request_may_state_its_needs() -> None:
    body = b'{"text": "a", "max_risk": 0.02, "deadline_ms": 150, "full": false}'
    assert parse_request(body, LIMITS) == Asked(["a"], max_risk=0.02, deadline_ms=150, full=False)
    assert parse_request(b'{"text": "a", "full": null}', LIMITS) == Asked(["a"])


values = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), lambda x: st.lists(x, max_size=3))


keys = st.sampled_from(["text", "texts", "max_risk", "deadline_ms", "full", "other"])


@given(st.dictionaries(keys, values | st.integers(-1, 2)) | values)
def test_the_documented_form_and_the_parser_agree(raw: Any) -> None:
    body = json.dumps(raw).encode()
    try:
        request = PredictRequest.model_validate_json(body)
        documented = (request.text is None) != (request.texts is None)
    except ValidationError:
        documented = False
    try:
        parse_request(body, Limits())
        parsed = True
    except ApiError as error:
        parsed = error.code in ("no_texts", "empty_text")
    assert parsed == documented


@given(st.binary(max_size=200))
def test_no_body_makes_the_parser_fail_in_another_way(body: bytes) -> None:
    try:
        parse_request(body, Limits())
    except ApiError as error:
        assert 400 <= error.status < 500
