import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.labels import MAX_LABELS, LabelSet, canonical, check_count, natural_order
from lspm_ray.errors import DataError


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), ("1", "1"), (" a ", "a"), (True, "true"), (0.5, "0.5"), (-3, "-3"), (math.inf, "inf")],
)
def test_one_label_has_one_form_in_every_file_format(value: object, text: str) -> None:
    assert canonical(value) == text


@pytest.mark.parametrize("value", [None, "", "  ", math.nan])
def test_missing_values(value: object) -> None:
    assert canonical(value) is None


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a"])
def test_what_is_no_single_value_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is not a label"):
        canonical(value)


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans()))
def test_canonical_is_idempotent(value: object) -> None:
    once = canonical(value)
    assert canonical(once) == once


def test_unknown_label_names_value_row_and_valid_ones() -> None:
    with pytest.raises(DataError) as caught:
        LabelSet.of({"0": "no", "1": "yes"}).name("2", "row 7 of a.csv")
    text = str(caught.value)
    assert "data.labels" in text
    assert "got '2'" in text
    assert "row 7 of a.csv" in text
    assert "valid: 0, 1" in text


def test_order_is_that_of_the_setting_and_merged_values_count_once() -> None:
    label_set = LabelSet.of({"3": "good", "1": "bad", "2": "bad"})
    assert label_set.ordered({"bad": 3, "good": 1}) == ["good", "bad"]
    assert LabelSet.of(["b", "a", "c"]).ordered({"a": 1, "b": 1}) == ["b", "a", "c"]


def test_found_labels_are_sorted_as_numbers_where_they_are() -> None:
    assert LabelSet.of(None).ordered({"10": 1, "9": 1, "-1": 2}) == ["-1", "9", "10"]
    assert natural_order(["10", "9", "x"]) == ["10", "9", "x"]


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match=r"only one class has rows.*'yes'"):
        LabelSet.of(["no", "yes"]).ordered({"no": 0, "yes": 9})
    with pytest.raises(DataError, match="no row has a label"):
        LabelSet.of(None).ordered({})


def test_a_column_of_ever_new_values_is_no_label() -> None:
    check_count({str(i): 1 for i in range(MAX_LABELS)})
    with pytest.raises(DataError, match="is this a column of labels"):
        check_count({str(i): 1 for i in range(MAX_LABELS + 1)})
