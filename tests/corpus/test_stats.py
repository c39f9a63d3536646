import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.stats import Histogram, add_counts, majority_share

VALUES = st.lists(st.integers(0, 300), max_size=30)


def histogram(values: list[int], width: int = 1) -> Histogram:
    return Histogram.of(np.array(values, dtype=np.int64), width)


@given(VALUES, VALUES, st.sampled_from([1, 100]))
def test_parts_add_up_to_the_whole(left: list[int], right: list[int], width: int) -> None:
    assert histogram(left, width) + histogram(right, width) == histogram(left + right, width)


@given(VALUES)
def test_raw_form_is_complete(values: list[int]) -> None:
    assert Histogram.from_raw(histogram(values).raw()) == histogram(values)


@given(VALUES.filter(bool), st.sampled_from([1, 50, 95, 99, 100]))
def test_percentiles_of_unit_bins_are_those_of_the_values(values: list[int], percent: int) -> None:
    assert histogram(values).percentile(percent) == np.percentile(values, percent, method="inverted_cdf")


def test_numbers_of_a_histogram() -> None:
    found = histogram([3, 3, 250], width=100).to_dict()
    assert found == {"bin_width": 100, "counts": [2, 0, 1], "mean": 85.33, "p50": 0, "p95": 200, "p99": 200, "max": 250}
    assert histogram([]).to_dict()["p50"] == 0


def test_different_bins_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="different bins"):
        histogram([1]) + histogram([1], 10)


def test_counts_add_up_by_key() -> None:
    assert add_counts([{"b": 1}, {"a": 2, "b": 3}, {}]) == {"a": 2, "b": 4}


def test_majority_share() -> None:
    assert majority_share([1, 3]) == 0.75
    assert majority_share([0, 0]) == 0
