import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.documents.lengths import Lengths

VALUES = st.lists(st.integers(1, 1 << 30), max_size=50).map(lambda values: np.array(values, dtype=np.int64))


@given(VALUES, VALUES)
def test_parts_add_up_to_the_whole(left: np.ndarray, right: np.ndarray) -> None:
    whole = Lengths.of(np.concatenate([left, right]))
    assert Lengths.of(left) + Lengths.of(right) == whole
    assert Lengths.from_raw(whole.raw()) == whole
    assert (whole.number, whole.total) == (len(left) + len(right), int(left.sum() + right.sum()))


@given(VALUES.filter(len), st.integers(1, 100))
def test_a_percentile_is_at_most_a_bin_too_small(values: np.ndarray, percent: int) -> None:
    exact = np.percentile(values, percent, method="inverted_cdf")
    found = Lengths.of(values).percentile(percent)
    assert exact / 2**0.25 * 0.99 - 1 <= found <= exact + 0.5


def test_bins_say_where_they_begin() -> None:
    assert Lengths.of(np.array([1, 1, 16, 17])).to_dict()["bins"] == [[1.0, 2], [16.0, 2]]
