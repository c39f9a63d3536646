import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from lspm_ray.audit.eprocess import (
    BLOCK_ROWS,
    LIFE,
    alternatives,
    live_starts,
    log_evidence,
    log_wealth,
    log_weights,
)

LEVELS = st.floats(0.001, 0.4)


def best(lost: np.ndarray, level: float) -> tuple[float, int]:
    """Largest log wealth over all rows of a stream, and the row of it; wealth grows at losses alone."""
    total = np.concatenate([[0], np.cumsum(lost)])
    top, where = -math.inf, 0
    for row in np.flatnonzero(lost) + 1:
        block = (row - 1) // BLOCK_ROWS
        begun = live_starts(block) * BLOCK_ROWS
        wealth = log_wealth(total[row] - total[begun], row - begun, block, level)
        if wealth > top:
            top, where = wealth, int(row)
    return top, where


def detection(lost: np.ndarray, level: float, delta: float) -> int | None:
    """The row at which the wealth first reaches 1 / delta."""
    total = np.concatenate([[0], np.cumsum(lost)])
    for row in np.flatnonzero(lost) + 1:
        block = (row - 1) // BLOCK_ROWS
        begun = live_starts(block) * BLOCK_ROWS
        if log_wealth(total[row] - total[begun], row - begun, block, level) >= math.log(1 / delta):
            return int(row)
    return None


@given(LEVELS)
def test_alternatives_are_above_the_level_and_ascend(level: float):
    found = alternatives(level)
    assert found[0] > level
    assert found[-1] < 1
    assert (np.diff(found) > 0).all()
    assert level > 0.3 or found[-1] > 0.6


@given(level=LEVELS, mean=st.floats(0, 1), losses=st.integers(0, 50), rows=st.integers(50, 2000))
def test_no_mean_up_to_the_level_makes_the_evidence_grow_on_average(level: float, mean: float, losses: int, rows: int):
    mean *= level
    now, lost, kept = np.exp(
        log_evidence(np.array([losses, losses + 1, losses]), np.array([rows, rows + 1, rows + 1]), level)
    )
    assert mean * lost + (1 - mean) * kept <= now * (1 + 1e-9)


@given(level=LEVELS, rows=st.integers(0, 300))
def test_evidence_has_mean_one_at_the_level(level: float, rows: int):
    losses = np.arange(rows + 1)
    logs = binom.logpmf(losses, rows, level) + log_evidence(losses, np.full(rows + 1, rows), level)
    assert np.exp(logs).sum() == pytest.approx(1)


def test_weights_sum_to_one():
    starts = np.arange(200_000)
    rest = 1 / math.log(math.e + len(starts))
    assert np.exp(log_weights(starts)).sum() + rest == pytest.approx(1)


def test_live_starts_are_those_the_rule_says_and_few():
    for block in (0, 1, 7, 16, 17, 100, 1023, 1024, 5000):
        expected = [0] + [s for s in range(1, block + 1) if block - s < LIFE * (s & -s)]
        assert live_starts(block).tolist() == expected
    assert len(live_starts(10**6)) <= LIFE / 2 * (math.log2(10**6) + 3)


@given(st.integers(0, 3000))
def test_a_start_that_was_given_up_does_not_come_back(block: int):
    later = set(live_starts(block + 1).tolist())
    assert later <= {*live_starts(block).tolist(), block + 1}


def test_without_rows_the_wealth_is_one():
    zeros = np.zeros(1, dtype=np.int64)
    assert log_wealth(zeros, zeros, 0, 0.01) == pytest.approx(0)


NULLS: dict[str, Callable[[np.random.Generator, int, float], np.ndarray]] = {
    "at the level": lambda rng, n, level: rng.random(n) < level,
    "below": lambda rng, n, level: rng.random(n) < level / 3,
    "quiet, then at the level": lambda rng, n, level: rng.random(n) < np.where(np.arange(n) < n // 2, 0, level),
    "waves": lambda rng, n, level: rng.random(n) < level * (np.sin(np.arange(n) / 200) > 0),
}


@pytest.mark.parametrize("null", NULLS)
def test_false_alarms_are_at_most_delta(null: str):
    streams, delta, level = 60, 0.2, 0.05
    rng = np.random.default_rng(0)
    alarms = sum(best(NULLS[null](rng, 1500, level), level)[0] >= math.log(1 / delta) for _ in range(streams))
    # Were the rate delta, more alarms than this would be seen once in a thousand times.
    assert alarms <= binom.ppf(0.999, streams, delta)


def test_false_alarms_are_at_most_delta_when_an_adversary_sets_the_mean():
    """The mean is at the level while the wealth is high and 0 while it is low: it tries to keep what was won."""
    streams, delta, level, rng = 60, 0.2, 0.05, np.random.default_rng(1)
    alarms = 0
    for _ in range(streams):
        lost: list[bool] = []
        recent = 0.0
        for _ in range(1000):
            recent = 0.97 * recent
            lost.append(bool(rng.random() < (level if recent >= 1 or len(lost) % 3 else 0)))
            recent += lost[-1]
        alarms += best(np.array(lost), level)[0] >= math.log(1 / delta)
    assert alarms <= binom.ppf(0.999, streams, delta)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), clean=st.integers(0, 20_000))
def test_a_large_shift_is_found_however_long_the_stream_was_clean(seed: int, clean: int):
    rng = np.random.default_rng(seed)
    lost = rng.random(clean + 1500) < np.where(np.arange(clean + 1500) < clean, 0.003, 0.1)
    found = detection(lost, 0.01, 0.01)
    assert found is not None
    assert found > clean or clean == 0
    assert found - clean < 600


def test_one_process_from_the_beginning_alone_would_find_it_much_later():
    rng = np.random.default_rng(3)
    clean = 20_000
    lost = rng.random(clean + 4000) < np.where(np.arange(clean + 4000) < clean, 0.003, 0.1)
    plain = log_evidence(np.cumsum(lost), np.arange(1, len(lost) + 1), 0.01)
    found = detection(lost, 0.01, 0.01)
    assert found is not None
    assert int(np.argmax(plain >= math.log(100))) - clean > 2 * (found - clean)
