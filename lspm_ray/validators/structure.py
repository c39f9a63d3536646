"""Whether a text answer has the form that was asked for: for tasks whose answers are texts."""

import json
import re
from collections.abc import Mapping
from typing import Any


def json_problem(answer: str, schema: Mapping[str, Any]) -> str | None:
    """Why an answer is not JSON of a schema: `not_json` or `other_schema`; None if it is.

    NaN and infinity are no JSON, and neither is an object that has a key twice.

    Args:
        answer: the text.
        schema: JSON Schema (draft 2020-12 unless it names another).
    """
    from jsonschema import exceptions, validators

    try:
        value = json.loads(answer, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return "not_json"
    found = validators.validator_for(schema)(schema)
    return None if exceptions.best_match(found.iter_errors(value)) is None else "other_schema"


def pattern_problem(answer: str, pattern: re.Pattern[str], max_characters: int = 10_000) -> str | None:
    """`too_long`, or `other_pattern` where the whole answer does not match; None if it does.

    Args:
        answer: the text.
        pattern: written by the operator, not by who asks.
        max_characters: longer answers are not looked at: the time of a match may grow faster than the text.
    """
    if len(answer) > max_characters:
        return "too_long"
    return None if pattern.fullmatch(answer) else "other_pattern"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
