from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.training.config import TrainConfig
from lspm_ray.training.schedule import rate_factor

SCHEDULES = ["linear", "cosine", "constant", "wsd"]
schedules = st.sampled_from(SCHEDULES)


@given(total=st.integers(1, 500), warmup=st.floats(0, 0.9), schedule=schedules, decay=st.floats(0, 1))
def test_rises_to_the_peak_then_never_rises(total, warmup, schedule, decay):
    factors = [rate_factor(step, total, warmup, schedule, decay) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    peak = int(total * warmup)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[peak] == pytest.approx(1.0)


@given(total=st.integers(1, 10**6), warmup=st.floats(0, 0.9), decay=st.floats(0, 1))
def test_wsd_ends_at_zero_and_is_at_the_peak_until_it_falls(total, warmup, decay):
    assert rate_factor(total, total, warmup, "wsd", decay) == (0.0 if round(total * decay) else 1.0)
    before = max(int(total * warmup), total - round(total * decay))
    assert rate_factor(before, total, warmup, "wsd", decay) == 1.0


@given(total=st.integers(1000, 5000), warmup=st.floats(0.1, 0.5), decay=st.floats(0.1, 0.4))
def test_wsd_is_continuous(total, warmup, decay):
    factors = [rate_factor(step, total, warmup, "wsd", decay) for step in range(total + 1)]
    steepest = max(abs(b - a) for a, b in pairwise(factors))
    assert steepest <= 1.1 * max((1 / (total * decay - 1)) ** 0.5, 1 / (total * warmup - 1))


def test_known_values():
    assert rate_factor(0, 100, 0.1, "linear") == pytest.approx(0.1)
    assert rate_factor(55, 100, 0.1, "linear") == pytest.approx(0.5)
    assert rate_factor(55, 100, 0.1, "cosine") == pytest.approx(0.5)
    assert rate_factor(100, 100, 0.1, "linear") == 0
    assert rate_factor(99, 100, 0.0, "constant") == 1
    assert rate_factor(79, 100, 0.1, "wsd") == 1
    assert rate_factor(85, 100, 0.1, "wsd") == pytest.approx(0.5)
    assert rate_factor(85, 100, 0.1, "wsd", decay_fraction=0.6) == pytest.approx(1 - 0.75**0.5)
    # Where the fall would begin during the warm-up, it begins after it.
    assert rate_factor(30, 100, 0.3, "wsd", decay_fraction=0.9) == 1


def test_the_settings_know_them_all():
    for schedule in SCHEDULES:
        assert TrainConfig.parse({"schedule": schedule}).schedule == schedule
