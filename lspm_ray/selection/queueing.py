"""How long requests take under load: an exact simulation of queues that serve in batches. Pure, and seeded.

Closed formulas (Kingman, Allen-Cunneen) describe queues that serve one at a time; here a batch takes whatever waits, so
that service gets faster per request as the load grows. Simulating that is simpler than approximating it, and as exact
as the service times it is given.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NORMAL_99 = 2.3263
"""The 99th percentile of the standard normal distribution."""


def batch_seconds(rows_per_s: Mapping[int, float], largest: int) -> Floats:
    """Seconds of a batch of 1, 2, ..., `largest` rows [largest], from the throughput at some batch sizes.

    Linear between the sizes that were measured, proportional to the rows outside of them; never falling.
    """
    sizes = sorted(rows_per_s)
    seconds = [size / rows_per_s[size] for size in sizes]
    wanted = np.arange(1, largest + 1, dtype=np.float64)
    found = np.interp(wanted, sizes, seconds)
    found = np.where(wanted < sizes[0], seconds[0] * wanted / sizes[0], found)
    found = np.where(wanted > sizes[-1], seconds[-1] * wanted / sizes[-1], found)
    return np.maximum.accumulate(found)


def spread(p50: float, p99: float) -> float:
    """Standard deviation of the logarithm of a service time with these percentiles, were it log-normal."""
    return max(0.0, math.log(p99 / p50)) / _NORMAL_99 if p50 > 0 and p99 > 0 else 0.0


@dataclass(frozen=True)
class Station:
    """Where requests wait and are served in batches: whoever is free takes all that waits, up to `len(seconds)` rows.

    Attributes:
        seconds: of a batch of 1, 2, ... rows.
        servers: that serve at the same time.
        shared: they share one queue; otherwise requests are dealt out to them in turn.
        sigma: see `spread`; how much one row's time differs from the mean.
        reach: share of all requests that come here.
        delay_s: on the way here, which keeps nobody else waiting.
        threads: CPUs that one server keeps busy.
        calls: batches that may be under way for each server. Beyond one they wait there, and take in nobody who comes
            later: latencies rise, and nobody waits for the next call to travel.
    """

    seconds: Floats
    servers: int = 1
    shared: bool = True
    sigma: float = 0.0
    reach: float = 1.0
    delay_s: float = 0.0
    threads: int = 1
    calls: int = 1

    @property
    def capacity(self) -> float:
        """Requests per second, of all and not only those that come here, at which it is busy all the time."""
        rows = np.arange(1, len(self.seconds) + 1)
        most = self.servers * float((rows / self.seconds).max())
        return most / self.reach if self.reach > 0 else math.inf


@dataclass(frozen=True)
class Seen:
    """What a simulation saw.

    Attributes:
        p50_ms: median time from arrival to answer.
        p99_ms: 99th percentile.
        busy: share of the time that each station's servers compute.
        cpu_ms: CPU time per request.
    """

    p50_ms: float
    p99_ms: float
    busy: tuple[float, ...]
    cpu_ms: float


@dataclass(frozen=True)
class Draws:
    """What is random about a simulation, drawn once: every estimate is made with the same luck.

    Attributes:
        gaps: between arrivals, with mean 1 [requests].
        depth: how far each request has to go, uniform in [0, 1) [requests].
        noise: of each request's service time, standard normal [requests].
    """

    gaps: Floats
    depth: Floats
    noise: Floats

    @classmethod
    def of(cls, requests: int, seed: int) -> Draws:
        """For so many requests that arrive independently of each other (a Poisson process)."""
        rng = np.random.default_rng(seed)
        return cls(rng.exponential(size=requests), rng.random(requests), rng.standard_normal(requests))


def simulate(stations: Sequence[Station], rate: float, draws: Draws) -> Seen:
    """Let requests arrive, `rate` per second on average, and pass the stations one after the other.

    The first tenth, which finds the stations empty, is left out of the percentiles.
    """
    arrivals = np.cumsum(draws.gaps) / rate
    at, answered = arrivals.copy(), arrivals.copy()
    span = float(arrivals[-1])
    busy, cpu_s = [], 0.0
    for station in stations:
        rows = np.flatnonzero(draws.depth < station.reach)
        at[rows] += station.delay_s
        rows = rows[np.argsort(at[rows], kind="stable")]
        factors = np.exp(station.sigma * draws.noise[rows] - station.sigma**2 / 2)
        done, worked_s = _pass(station, at[rows], factors)
        at[rows] = answered[rows] = done
        busy.append(worked_s / station.servers / max(span, 1e-9))
        cpu_s += worked_s * station.threads
    taken = 1e3 * (answered - arrivals)[len(arrivals) // 10 :]
    return Seen(
        p50_ms=float(np.quantile(taken, 0.5)),
        p99_ms=float(np.quantile(taken, 0.99)),
        busy=tuple(min(1.0, share) for share in busy),
        cpu_ms=1e3 * cpu_s / len(arrivals),
    )


def _pass(station: Station, at: Floats, factors: Floats) -> tuple[Floats, float]:
    """When each row is done [rows], and the seconds that all servers worked."""
    if station.shared or station.servers == 1:
        return _serve(at, station.servers, station, factors)
    done, worked_s = np.empty_like(at), 0.0
    for server in range(station.servers):
        own = slice(server, None, station.servers)
        done[own], seconds = _serve(at[own], 1, station, factors[own])
        worked_s += seconds
    return done, worked_s


def _serve(at: Floats, servers: int, station: Station, factors: Floats) -> tuple[Floats, float]:
    arrivals, times, most = at.tolist(), station.seconds.tolist(), len(station.seconds)
    sums = np.concatenate([[0.0], np.cumsum(factors)]).tolist()
    places, free = [0.0] * (servers * station.calls), [0.0] * servers
    done, worked_s = np.empty(len(at)), 0.0
    begin = 0
    while begin < len(arrivals):
        formed = max(places[0], arrivals[begin])
        end = bisect_right(arrivals, formed, begin, min(begin + most, len(arrivals)))
        start = max(formed, free[0])
        rows = end - begin
        took = times[rows - 1] * (sums[end] - sums[begin]) / rows
        heapreplace(free, start + took)
        heapreplace(places, start + took)
        done[begin:end] = start + took
        worked_s += took
        begin = end
    return done, worked_s
