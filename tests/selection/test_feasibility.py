import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.selection.feasibility import achievable, comfortable_rows, prospects, requirements, rows_needed
from lspm_ray.selection.points import Wanted
from lspm_ray.selection.risk import minimum_rows, p_value
from lspm_ray.selection.select import SelectConfig


@given(st.floats(0.002, 0.3), st.floats(0.005, 0.2), st.integers(0, 40))
def test_rows_needed_is_the_least_that_certifies(alpha: float, delta: float, losses: int) -> None:
    rows = rows_needed(alpha, delta, losses)
    assert p_value(losses, rows, alpha) <= delta
    assert rows == losses + 1 or p_value(losses, rows - 1, alpha) > delta
    assert (rows == minimum_rows(alpha, delta)) or losses > 0


@given(st.floats(0.005, 0.2), st.floats(0.01, 0.2))
def test_comfortable_rows_stand_the_losses_of_half_the_risk(alpha: float, delta: float) -> None:
    rows = comfortable_rows(alpha, delta)
    assert rows >= minimum_rows(alpha, delta)
    assert p_value(int(rows * alpha / 2), rows, alpha) <= delta


def test_what_rows_achieve_is_what_they_need() -> None:
    assert achievable(299, 0.05) == pytest.approx(0.01, rel=0.01)
    assert rows_needed(achievable(700, 0.05, 3) * 1.0001, 0.05, 3) == 700


def test_requirements_name_rows_and_the_corpus() -> None:
    lines = requirements(SelectConfig.parse({"points": [0.005], "per_class": {"alpha": 0.05}}), 0.1)
    assert len(lines) == 3
    assert lines[0].startswith("alpha = 0.005: 919 calibration rows (a corpus of 9,190) without a loss; left out")
    assert lines[1].startswith("alpha = 0.01: 299 calibration rows (a corpus of 2,990) without a loss;")
    assert lines[2] == "alpha = 0.05 per class: 59 calibration rows (a corpus of 590) of each without a loss"
    assert "corpus" not in requirements(SelectConfig(), None)[0]


def test_prospects_name_the_smallest_class() -> None:
    lines = prospects(1000, Wanted(0.01, (), 0.05, {0: 0.05, 1: 0.05}), [940, 60], ["good", "bad"])
    assert lines[0] == "1,000 calibration rows certify alpha = 0.00299 at best, 0.0105 with 5 losses"
    assert lines[1] == "class 'bad' has the fewest, 60: alpha = 0.0487 at best"
