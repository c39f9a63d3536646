import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.training.schedule import rate_factor

schedules = st.sampled_from(["linear", "cosine", "constant"])


@given(total=st.integers(1, 500), warmup=st.floats(0, 0.9), schedule=schedules)
def test_rises_to_the_peak_then_never_rises(total, warmup, schedule):
    factors = [rate_factor(step, total, warmup, schedule) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    peak = int(total * warmup)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[peak] == pytest.approx(1.0)


def test_known_values():
    assert rate_factor(0, 100, 0.1, "linear") == pytest.approx(0.1)
    assert rate_factor(55, 100, 0.1, "linear") == pytest.approx(0.5)
    assert rate_factor(55, 100, 0.1, "cosine") == pytest.approx(0.5)
    assert rate_factor(100, 100, 0.1, "linear") == 0
    assert rate_factor(99, 100, 0.0, "constant") == 1
