import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.validators.structure import json_problem, pattern_problem

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "score": {"type": "number", "minimum": 0}},
    "required": ["label"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"label": "yes"}', None),
        ('{"label": "yes", "score": 0.5}', None),
        ('{"label": "maybe"}', "other_schema"),
        ('{"score": 1}', "other_schema"),
        ('{"label": "yes", "more": 1}', "other_schema"),
        ("yes", "not_json"),
        ('{"label": "yes"} and more', "not_json"),
        ('{"label": "yes", "label": "no"}', "not_json"),
        ('{"label": "yes", "score": NaN}', "not_json"),
        ("", "not_json"),
        ("[" * 100_000, "not_json"),
    ],
)
def test_json(answer: str, problem: str | None) -> None:
    assert json_problem(answer, SCHEMA) == problem


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values)
def test_everything_that_is_json_fits_the_schema_of_everything(value: object) -> None:
    assert json_problem(json.dumps(value), {}) is None
    assert json_problem(json.dumps(value), {"const": value}) is None
    assert json_problem(json.dumps([value]), {"const": value}) == "other_schema"


def test_patterns_match_the_whole_answer() -> None:
    pattern = re.compile(r"\d{4}-\d\d")
    assert pattern_problem("2024-05", pattern) is None
    assert pattern_problem("2024-05\n", pattern) == "other_pattern"
    assert pattern_problem("in 2024-05", pattern) == "other_pattern"
    assert pattern_problem("1" * 20, pattern, max_characters=10) == "too_long"
