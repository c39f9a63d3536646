"""Stage `gears`: for each of some request rates the cheapest way to serve the plan within a latency. See docs/load.md.

A gear is a certified point (or the full model alone), numbers of replicas and a largest batch. There are few enough of
them to look at them all, in the order of their cost, and to take the first that keeps the latency: no solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.profiling.profile import read_profile
from lspm_ray.profiling.table import ProfileTable, Speed
from lspm_ray.progress import Report
from lspm_ray.selection.plan import OperatingPoint, Plan
from lspm_ray.selection.queueing import Draws, Seen, Station, batch_seconds, simulate, spread
from lspm_ray.selection.risk import cost_of_stages
from lspm_ray.selection.select import read_plan

STAGE = "gears"
GEARS_FILE = "gears.json"
_CALLS = 2
"""Under way for each replica at the endpoint, so that it need not wait for the next one to travel."""
_NO_LOAD = 1e-3
"""Requests per second of which none ever meets another."""


class GearsConfig(Config):
    """Which load is planned for, and what the endpoint costs beside its models.

    Attributes:
        rates: requests per second, rising, of one text each.
        slo_ms: 99 % of all requests are to be answered within this.
        max_load: share of a gear's capacity that may be used: the rest is for moments with more than the average.
        max_replicas: of the ingress, and of every model that has replicas of its own.
        batch_sizes: largest batches that are tried.
        inline_latency_ms: see `serve.inline_latency_ms`; None takes that.
        ingress_threads: see `serve.ingress.threads`; None takes that.
        overhead_ms: CPU time of the ingress per request, beside tokenising and models; others wait meanwhile.
        path_ms: what else the way to the ingress and back takes; nobody waits meanwhile.
        hop_ms: what a call of a model in another process takes beside its computing.
        requests: that are simulated for each estimate.
        seed: of the simulation.
    """

    rates: list[PositiveFloat] = Field(default=[1, 10, 30, 100, 300, 1000], min_length=1, max_length=50)
    slo_ms: float = Field(200.0, gt=0)
    max_load: float = Field(0.8, gt=0, le=1)
    max_replicas: int = Field(8, ge=1, le=64)
    batch_sizes: list[PositiveInt] = Field(default=[1, 8, 64], min_length=1, max_length=8)
    inline_latency_ms: float | None = Field(None, ge=0)
    ingress_threads: int | None = Field(None, ge=1)
    overhead_ms: float = Field(1.0, ge=0)
    path_ms: float = Field(2.5, ge=0)
    hop_ms: float = Field(3.5, ge=0)
    requests: int = Field(6000, ge=1000, le=1_000_000)
    seed: int = 0

    @field_validator("rates")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if any(a >= b for a, b in pairwise(value)):
            raise ValueError("must rise, each rate above the one before")
        return value

    def as_served(self, inline_latency_ms: float, ingress_threads: int) -> GearsConfig:
        """With what is open settled as for the endpoint."""
        settled: dict[str, float] = {"ingress_threads": self.ingress_threads or ingress_threads}
        if self.inline_latency_ms is None:
            settled["inline_latency_ms"] = inline_latency_ms
        return self.model_copy(update=settled)


class Gear(Config):
    """One way to serve.

    Attributes:
        stages: models in the order in which they are asked.
        alpha: of the certified point; None where the full model answers everything.
        threshold: of the first model at that point.
        degraded: the point is more lenient than the plan's default.
        escalation_rate: share of requests that the first model passes on.
        ingress_replicas: processes with the HTTP interface, the tokenizer and models that live inside it.
        replicas: of each model that has its own.
        max_batch_size: texts that are computed together at most.
        cpus: that all replicas compute with.
        capacity: requests per second at which some replica is busy all the time.
    """

    stages: list[str]
    alpha: float | None
    threshold: float | None
    degraded: bool
    escalation_rate: float
    ingress_replicas: int
    replicas: dict[str, int]
    max_batch_size: int
    cpus: float
    capacity: float


class Estimate(Config):
    """What a gear is expected to do at a rate: see `lspm_ray.selection.queueing.Seen`."""

    p50_ms: float
    p99_ms: float
    busy: list[float]
    cpu_ms: float


class Shift(Config):
    """The gear for one rate.

    Attributes:
        rate: requests per second.
        gear: the cheapest that keeps the latency; None if there is none.
        expected: of that gear.
        reason: why there is none; empty if there is one.
    """

    rate: float
    gear: Gear | None
    expected: Estimate | None
    reason: str = ""


class GearTable(Config):
    """What to serve at which load.

    Attributes:
        slo_ms: that was planned for.
        shifts: by rate, rising.
        machine_cpus: CPUs of the machine where the models were measured: a gear with more needs more machines, and
            where models share CPUs they are slower than planned.
        prerouting_saves_at_most: share of the cost that sending hard texts past models that pass them on could save,
            were it known for free which ones these are.
    """

    slo_ms: float
    shifts: list[Shift]
    machine_cpus: int | None
    prerouting_saves_at_most: float


def make_gears(
    config: GearsConfig, profile: Artifact, select: Artifact, store: ArtifactStore, report: Report
) -> Artifact:
    """Plan for every rate.

    Returns:
        An artifact with gears.json, a `GearTable`.
    """
    parents = {"profile": profile.digest, "select": select.digest}

    def build(draft: Draft) -> None:
        report("gears: simulating")
        table = gear_table(config, read_profile(profile), read_plan(select)[0])
        (draft.path / GEARS_FILE).write_text(table.model_dump_json(indent=1), encoding="utf-8")
        draft.summary = {"slo_ms": config.slo_ms, "planned": sum(s.gear is not None for s in table.shifts)}

    return store.make(STAGE, {"gears": config.model_dump(mode="json")}, parents, build)


def read_gears(artifact: Artifact) -> GearTable:
    """The table that `make_gears` wrote."""
    return GearTable.parse(artifact.read_json(GEARS_FILE))


def gear_table(config: GearsConfig, profile: ProfileTable, plan: Plan) -> GearTable:
    """The cheapest gear for each rate.

    Points more lenient than the default are only used where nothing else keeps the latency, and what fails at a rate is
    not tried at a higher one: so as the rate rises leniency never falls, and at one leniency neither do the CPUs.
    """
    measured = _Measured(config, profile, plan)
    draws = Draws.of(config.requests, config.seed)
    left = measured.choices(draws)
    shifts: list[Shift] = []
    for rate in config.rates:
        shift, best = None, None
        while left and shift is None:
            tried = measured.best(left[0], rate, draws)
            if tried is not None and tried[1].p99_ms <= config.slo_ms:
                gear, seen = tried
                shift = Shift(rate=rate, gear=gear, expected=_estimate(seen))
            else:
                left.pop(0)
                if tried is not None and (best is None or tried[1].p99_ms < best[1].p99_ms):
                    best = tried
        shifts.append(shift or Shift(rate=rate, gear=None, expected=None, reason=measured.why_not(rate, best)))
    return GearTable(
        slo_ms=config.slo_ms,
        shifts=shifts,
        machine_cpus=profile.hardware.get("cpus"),
        prerouting_saves_at_most=measured.prerouting_saves_at_most(),
    )


def predict(
    config: GearsConfig,
    profile: ProfileTable,
    plan: Plan,
    rate: float,
    *,
    ingress_replicas: int,
    replicas: Mapping[str, int],
    max_batch_size: int,
) -> tuple[Gear, Estimate]:
    """What one given way to serve the plan at its default point is expected to do.

    Args:
        config: of the endpoint, `rates` and what is searched apart.
        profile: as measured.
        plan: what is served.
        rate: requests per second.
        ingress_replicas: processes with the HTTP interface.
        replicas: of each model that has its own.
        max_batch_size: texts that are computed together at most.
    """
    measured = _Measured(config, profile, plan)
    gear, seen = measured.of(ingress_replicas, replicas, max_batch_size, rate, Draws.of(config.requests, config.seed))
    return gear, _estimate(seen)


def prerouting_ceiling(seconds: Sequence[float], encode_s: float, shares: Sequence[float]) -> float:
    """Share of a cascade's cost that is spent on asking models about texts that they then pass on.

    No rule that sends each text straight to the model that answers it can save more, and a real one saves less: it
    takes time itself, and sends some texts further than they would have gone. Tokenising is spent either way.

    Args:
        seconds: of each model per text, with the validator for all but the last, in the order in which they are asked.
        encode_s: seconds of tokenising per text.
        shares: of all texts, those that each model but the last passes on.
    """
    whole = encode_s + cost_of_stages(seconds, 0.0, shares)
    wasted = sum(share * own for share, own in zip(shares, seconds, strict=False))
    return wasted / whole if whole > 0 else 0.0


@dataclass(frozen=True)
class _Mode:
    """What answers, and how often it passes texts on.

    Attributes:
        names: of the models, in the order in which they are asked.
        reach: share of all texts that each of them is asked about.
        point: None for the full model alone.
        degraded: more lenient than the default point.
    """

    names: tuple[str, ...]
    reach: tuple[float, ...]
    point: OperatingPoint | None
    degraded: bool = False

    @property
    def alpha(self) -> float | None:
        return self.point.alpha if self.point else None

    @property
    def sentence(self) -> str:
        return _sentence(self.names, self.alpha)


@dataclass(frozen=True)
class _Choice:
    """A gear before its batch size."""

    mode: _Mode
    ingress: int
    replicas: Mapping[str, int]
    cpus: float


def _estimate(seen: Seen) -> Estimate:
    return Estimate(p50_ms=seen.p50_ms, p99_ms=seen.p99_ms, busy=list(seen.busy), cpu_ms=seen.cpu_ms)


def _sentence(names: Sequence[str], alpha: float | None) -> str:
    models = " before ".join(names) if len(names) > 1 else f"{names[0]} alone"
    return models if alpha is None else f"{models} at alpha = {alpha:g}"


class _Measured:
    """The plan's models as they were measured, and what follows from it."""

    def __init__(self, config: GearsConfig, profile: ProfileTable, plan: Plan) -> None:
        self._config, self._profile, self._plan = config, profile, plan
        self._encode_s = profile.encode_ms / 1e3
        self._validator_s = self._validator()
        self._modes = list(self._points())
        self._sizes = sorted(set(config.batch_sizes))
        self._unloaded: dict[str, float] = {}

    def choices(self, draws: Draws) -> list[_Choice]:
        """Every way to serve that keeps the latency without load, the preferred first."""
        self._unloaded = {
            mode.sentence: simulate(self._stations(next(self._replicas(mode)), 1), _NO_LOAD, draws).p99_ms
            for mode in self._modes
        }
        return sorted(
            (
                choice
                for mode in self._modes
                if self._unloaded[mode.sentence] <= self._config.slo_ms
                for choice in self._replicas(mode)
            ),
            key=self._order,
        )

    def best(self, choice: _Choice, rate: float, draws: Draws) -> tuple[Gear, Seen] | None:
        """With the batch size that gives the lowest p99; None if every one falls behind."""
        tried = []
        for size in self._sizes:
            stations = self._stations(choice, size)
            capacity = min(station.capacity for station in stations)
            if rate <= self._config.max_load * capacity:
                tried.append((self._gear(choice, size, capacity), simulate(stations, rate, draws)))
        return min(tried, key=lambda pair: pair[1].p99_ms, default=None)

    def of(self, ingress: int, replicas: Mapping[str, int], size: int, rate: float, draws: Draws) -> tuple[Gear, Seen]:
        """A given gear of the default point, good or not."""
        mode = self._modes[0]
        threads = sum(self._speed(name).threads * count for name, count in replicas.items())
        choice = _Choice(mode, ingress, replicas, ingress * (self._config.ingress_threads or 1) + threads)
        stations = self._stations(choice, size)
        capacity = min(station.capacity for station in stations)
        return self._gear(choice, size, capacity), simulate(stations, rate, draws)

    def why_not(self, rate: float, best: tuple[Gear, Seen] | None) -> str:
        """The reason that no gear is good enough at this rate.

        Args:
            rate: requests per second.
            best: the one with the lowest p99 among those tried; None if none could take so many.
        """
        config = self._config
        slo = f"gears.slo_ms is {config.slo_ms:g}"
        fastest = min(self._unloaded, key=lambda sentence: self._unloaded[sentence])
        if self._unloaded[fastest] > config.slo_ms:
            return f"even without load the lowest p99 is {self._unloaded[fastest]:.3g} ms, by {fastest}; {slo}"
        if best is not None:
            gear, seen = best
            how = _sentence(gear.stages, gear.alpha)
            return f"the lowest p99 is {seen.p99_ms:.3g} ms, by {how} on {gear.cpus:g} CPUs; {slo}"
        most, sentence = max((config.max_load * self._most(mode), mode.sentence) for mode in self._modes)
        if most < rate:
            return (
                f"at most {most:.0f} requests/s, by {sentence}; gears.max_replicas is {config.max_replicas}, "
                f"gears.max_load {config.max_load:g}"
            )
        return f"what could take so many requests was too slow at a lower rate; {slo}"

    def prerouting_saves_at_most(self) -> float:
        """See `prerouting_ceiling`; at the default point."""
        mode = self._modes[0]
        *judged, last = (self._row_s(name) for name in mode.names)
        return prerouting_ceiling([*(own + self._validator_s for own in judged), last], self._encode_s, mode.reach[1:])

    def _points(self) -> Iterator[_Mode]:
        names, default = tuple(stage.model.name for stage in self._plan.stages), self._plan.default
        if default is not None:
            for point in self._plan.points:
                if point.alpha >= default.alpha:
                    # A point that accepts everything passes nothing on.
                    reach = (1.0, *point.shares, *[0.0] * len(names))[: len(names)]
                    yield _Mode(names, reach, point, point.alpha > default.alpha)
        yield _Mode((FULL,), (1.0,), None)

    def _replicas(self, mode: _Mode) -> Iterator[_Choice]:
        counts = range(1, self._config.max_replicas + 1)
        own = [name for name in mode.names if not self._inline(mode, name)]
        inside = self._config.ingress_threads or 1
        for ingress, *numbers in product(counts, repeat=1 + len(own)):
            replicas = dict(zip(own, numbers, strict=True))
            cpus = ingress * inside + sum(self._speed(name).threads * n for name, n in replicas.items())
            yield _Choice(mode, ingress, replicas, cpus)

    def _order(self, choice: _Choice) -> tuple[float, float, float, int]:
        mode = choice.mode
        work_s = sum(reach * self._row_s(name) for name, reach in zip(mode.names, mode.reach, strict=True))
        return mode.alpha or 0.0 if mode.degraded else 0.0, choice.cpus, work_s, choice.ingress

    def _stations(self, choice: _Choice, size: int) -> list[Station]:
        mode, config = choice.mode, self._config
        # Every answer but the last model's is judged, in the ingress.
        judged = sum(mode.reach[: max(1, len(mode.names) - 1)]) if mode.point else 0.0
        serial_s = config.overhead_ms / 1e3 + self._encode_s + judged * self._validator_s
        ingress = Station(
            serial_s * np.arange(1, size + 1, dtype=np.float64),
            choice.ingress,
            shared=False,
            delay_s=config.path_ms / 1e3,
        )
        stations = [ingress]
        for name, reach in zip(mode.names, mode.reach, strict=True):
            speed = self._speed(name)
            seconds, sigma = batch_seconds(speed.rows_per_s, size), spread(speed.p50_ms, speed.p99_ms)
            if name not in choice.replicas:
                stations[0] = replace(ingress, seconds=ingress.seconds + seconds, sigma=sigma)
            else:
                stations.append(
                    Station(
                        seconds,
                        choice.replicas[name],
                        sigma=sigma,
                        reach=reach,
                        delay_s=config.hop_ms / 1e3,
                        threads=speed.threads,
                        calls=_CALLS,
                    )
                )
        return stations

    def _gear(self, choice: _Choice, size: int, capacity: float) -> Gear:
        mode = choice.mode
        return Gear(
            stages=list(mode.names),
            alpha=mode.alpha,
            threshold=mode.point.threshold if mode.point else None,
            degraded=mode.degraded,
            escalation_rate=mode.reach[1] if len(mode.reach) > 1 else 0.0,
            ingress_replicas=choice.ingress,
            replicas=dict(choice.replicas),
            max_batch_size=size,
            cpus=choice.cpus,
            capacity=capacity,
        )

    def _most(self, mode: _Mode) -> float:
        *_, choice = self._replicas(mode)
        return max(min(s.capacity for s in self._stations(choice, size)) for size in self._sizes)

    def _inline(self, mode: _Mode, name: str) -> bool:
        """Only the model that answers first may live in the ingress, as at the endpoint."""
        limit = self._config.inline_latency_ms
        return name == mode.names[0] and limit is not None and self._speed(name).p50_ms <= limit

    def _speed(self, name: str) -> Speed:
        speed = self._profile[name].speed
        if speed is None:
            raise ValueError(f"{name} has no measured speed")
        return speed

    def _row_s(self, name: str) -> float:
        return 1 / self._speed(name).best_rows_per_s

    def _validator(self) -> float:
        """Seconds per answer that is judged: what the plan's cost holds beside its models."""
        names, default = [stage.model.name for stage in self._plan.stages], self._plan.default
        if default is None or len(names) == 1:
            return 0.0
        costs = [self._profile[name].cost for name in names]
        relative = self._plan.expected.get("cost", 0.0) - cost_of_stages(costs, 0.0, default.shares)
        return max(0.0, relative) / (1 + sum(default.shares[:-1])) * self._row_s(FULL)
