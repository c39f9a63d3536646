import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.selection.queueing import Draws, Seen, Station, batch_seconds, simulate, spread

MANY = Draws.of(100_000, seed=1)
DETERMINISTIC = Station(np.array([0.01]))


def waits_at_most(t: float, rate: float, service_s: float) -> float:
    """P(wait <= t) in M/D/1: Erlang's formula (1909)."""
    total = 0.0
    for k in range(int(t / service_s) + 1):
        x = rate * (t - k * service_s)
        total += (-x) ** k / math.factorial(k) * math.exp(x)
    return (1 - rate * service_s) * total


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_deterministic_server_waits_as_erlang_says(load: float) -> None:
    seen = simulate([DETERMINISTIC], load / 0.01, MANY)
    wait_s = seen.p99_ms / 1e3 - 0.01
    assert waits_at_most(wait_s, load / 0.01, 0.01) == pytest.approx(0.99, abs=0.005)
    assert seen.busy[0] == pytest.approx(load, rel=0.01)
    assert seen.cpu_ms == pytest.approx(10.0)


def kiefer_wolfowitz(gaps: list[float], services: list[float], servers: int) -> list[float]:
    """Time in the system of each request, first come first served: the recursion of 1955."""
    work, found = [0.0] * servers, []
    for gap, service in zip(gaps, services, strict=True):
        work = sorted(max(0.0, w - gap) for w in work)
        found.append(work[0] + service)
        work[0] += service
    return found


@given(st.integers(1, 4), st.floats(0.1, 5), st.floats(0, 1), st.integers(0, 1000))
def test_several_servers_follow_the_recursion(servers: int, rate: float, sigma: float, seed: int) -> None:
    draws = Draws.of(300, seed)
    station = Station(np.array([1.0]), servers, sigma=sigma, delay_s=0.25)
    services = np.exp(sigma * draws.noise - sigma**2 / 2)
    expected = 0.25 + np.array(kiefer_wolfowitz((draws.gaps / rate).tolist(), services.tolist(), servers))
    seen = simulate([station], rate, draws)
    assert seen.p99_ms == pytest.approx(1e3 * np.quantile(expected[30:], 0.99))
    assert seen.p50_ms == pytest.approx(1e3 * np.quantile(expected[30:], 0.5))


def test_a_batch_takes_what_waits_and_nothing_waits_for_company() -> None:
    # Arrivals at 1, 1.5, 1.6 and 9: the first goes alone, the next two together, the last alone again.
    draws = Draws(np.array([1.0, 0.5, 0.1, 7.4]), np.zeros(4), np.zeros(4))
    seen = simulate([Station(np.array([1.0, 1.2, 1.4]))], 1.0, draws)

    assert seen.p50_ms == pytest.approx(1e3 * np.median([1.0, 1.7, 1.6, 1.0]))
    assert seen.p99_ms == pytest.approx(1e3 * np.quantile([1.0, 1.7, 1.6, 1.0], 0.99))
    one = simulate([Station(np.array([1.0]))], 1.0, draws)
    assert one.p99_ms == pytest.approx(1e3 * np.quantile([1.0, 1.5, 2.4, 1.0], 0.99))


def test_only_some_reach_the_second_station() -> None:
    stations = [Station(np.array([0.001])), Station(np.array([0.02]), reach=0.25, delay_s=0.1, threads=2)]
    seen = simulate(stations, 1.0, MANY)
    assert seen.p50_ms == pytest.approx(1.0, rel=0.01)
    assert seen.p99_ms >= 121
    assert seen.cpu_ms == pytest.approx(1 + 0.25 * 20 * 2, rel=0.02)
    assert stations[1].capacity == pytest.approx(200)


def test_batches_raise_capacity_until_they_are_full() -> None:
    station = Station(batch_seconds({1: 100, 8: 400}, 8), servers=2)
    assert station.capacity == pytest.approx(800)
    assert simulate([station], 700, MANY).p99_ms < 100
    assert simulate([station], 900, MANY).p99_ms > 1000


def test_requests_that_are_dealt_out_wait_longer_than_those_that_share_a_queue() -> None:
    def seen(shared: bool) -> Seen:
        return simulate([Station(np.array([0.01]), 2, shared=shared, sigma=0.5)], 150, MANY)

    assert seen(True).p99_ms < seen(False).p99_ms
    assert seen(True).busy == pytest.approx(seen(False).busy)


@given(st.dictionaries(st.sampled_from([1, 2, 8, 32]), st.floats(1, 1e5), min_size=1), st.integers(1, 100))
def test_a_batch_takes_as_long_as_was_measured_and_never_less_than_a_smaller_one(
    rates: dict[int, float], largest: int
) -> None:
    seconds = batch_seconds(rates, largest)
    assert seconds.shape == (largest,)
    assert (np.diff(seconds) >= 0).all()
    for size, rate in rates.items():
        if size <= largest:
            assert seconds[size - 1] >= size / rate * (1 - 1e-9)
    assert batch_seconds({2: 10.0}, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_spread_is_that_of_the_percentiles() -> None:
    rng = np.random.default_rng(0)
    sample = np.exp(0.3 * rng.standard_normal(200_000))
    assert spread(*np.quantile(sample, [0.5, 0.99])) == pytest.approx(0.3, rel=0.02)
    assert spread(2.0, 2.0) == spread(2.0, 1.0) == spread(0.0, 1.0) == 0.0


@given(st.floats(1, 200), st.floats(1.05, 3))
def test_more_load_never_makes_a_single_server_faster(rate: float, factor: float) -> None:
    draws = Draws.of(2000, 0)
    light, heavy = (simulate([DETERMINISTIC], r, draws) for r in (rate, rate * factor))
    assert heavy.p99_ms >= light.p99_ms - 1e-9
    assert heavy.p50_ms >= light.p50_ms - 1e-9
