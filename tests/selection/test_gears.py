from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ConfigError
from lspm_ray.profiling.table import ProfileTable
from lspm_ray.selection.gears import (
    Gear,
    GearsConfig,
    GearTable,
    gear_table,
    predict,
    prerouting_ceiling,
)
from lspm_ray.selection.plan import ModelRef, OperatingPoint, Plan, PlanStage
from tests.profiling.toy_table import toy_table
from tests.toys import toy_point

RATES = {
    "full": {1: 50.0, 8: 100.0, 64: 110.0},
    "int8": {1: 100.0, 8: 150.0},
    "bag": {1: 5000.0, 64: 50_000.0},
}


def profile(**changes: float) -> ProfileTable:
    """Full takes 20 ms a text alone and 10 in company, the bag next to nothing."""
    table = toy_table(RATES, encode_ms=0.2)
    variants = [
        v.model_copy(update={"speed": v.speed and v.speed.model_copy(update=_latency(v.name) | changes)})
        for v in table.variants
    ]
    return table.model_copy(update={"variants": variants})


def _latency(name: str) -> dict[str, float]:
    p50 = 1e3 / RATES[name][1]
    return {"p50_ms": p50, "p99_ms": 1.5 * p50}


def point(alpha: float, escalation_rate: float, default: bool = False) -> OperatingPoint:
    made = toy_point(1 - escalation_rate if escalation_rate else None, alpha, default=default)
    return made.model_copy(update={"escalation_rate": escalation_rate})


POINTS = (point(0.005, 0.5), point(0.01, 0.3, True), point(0.02, 0.1))


def plan(points: Sequence[OperatingPoint] = POINTS, names: Sequence[str] = ("bag", "full")) -> Plan:
    thresholds = [0.9] * (len(names) - 1) + [None]
    return Plan(
        labels=["no", "yes"],
        task={"task": "text_classification"},
        validator={"validator": "max_probability"},
        stages=[
            PlanStage(
                model=ModelRef(name=name, uri=name, digest=name),
                temperature=1,
                threshold=threshold,
                batch_1_latency_ms=1,
                cost=1,
            )
            for name, threshold in zip(names, thresholds, strict=True)
        ],
        points=list(points),
        certificate_id="c" if points else None,
        expected={},
        reasons={},
    )


ALONE = plan((), ("full",))


def made(served: Plan | None = None, **changes: Any) -> GearTable:
    raw = {"inline_latency_ms": 2.0, "ingress_threads": 1, "requests": 2000, "max_replicas": 3}
    return gear_table(GearsConfig.parse(raw | changes), profile(), served or plan())


def gears(table: GearTable) -> list[Gear | None]:
    return [shift.gear for shift in table.shifts]


def test_at_low_rates_the_default_point_with_one_of_each_is_enough() -> None:
    (shift,) = made(rates=[5]).shifts
    gear = shift.gear
    assert gear is not None and shift.expected is not None
    assert (gear.stages, gear.alpha, gear.degraded) == (["bag", "full"], 0.01, False)
    assert (gear.ingress_replicas, gear.replicas, gear.cpus) == (1, {"full": 1}, 2)
    assert gear.escalation_rate == 0.3
    # The way there, the hop, both models: nobody waits.
    assert 20 < shift.expected.p99_ms < 60
    assert shift.expected.p50_ms < 6


def test_more_requests_take_more_replicas_and_then_a_more_lenient_point() -> None:
    table = made(rates=[5, 400, 1000, 5000], slo_ms=300)
    low, middle, high, none = gears(table)
    assert low and middle and high
    assert (low.alpha, middle.alpha, high.alpha) == (0.01, 0.01, 0.02)
    assert low.cpus < middle.cpus
    assert (middle.degraded, high.degraded) == (False, True)
    assert none is None
    assert "at most" in table.shifts[3].reason and "gears.max_replicas is 3" in table.shifts[3].reason


def test_a_latency_that_nothing_keeps_is_said_so_with_the_best_there_is() -> None:
    (shift,) = made(rates=[1], slo_ms=5).shifts
    assert shift.gear is None and shift.expected is None
    assert shift.reason.startswith("even without load the lowest p99 is ")
    assert shift.reason.endswith("gears.slo_ms is 5")
    first, second = made(rates=[100, 200], slo_ms=36, max_replicas=1, max_load=1.0).shifts
    assert first.gear is None
    assert "the lowest p99 is" in first.reason and "CPUs" in first.reason
    assert second.reason


def test_without_a_certificate_the_full_model_answers_alone() -> None:
    for gear in gears(made(ALONE, rates=[5, 100])):
        assert gear is not None
        assert (gear.stages, gear.alpha, gear.escalation_rate) == (["full"], None, 0.0)
        assert list(gear.replicas) == ["full"]


def test_full_alone_is_the_fallback_where_the_cascade_costs_more() -> None:
    slow_first = plan((point(0.01, 0.9, True),), ("int8", "full"))
    (gear,) = gears(made(slow_first, rates=[5]))
    assert gear is not None
    assert gear.stages == ["full"]  # one replica less than int8 and full


def test_a_variant_alone_lives_in_the_ingress_if_it_is_fast() -> None:
    (gear,) = gears(made(plan((point(0.01, 0.0, True),), ("bag",)), rates=[5]))
    assert gear is not None
    assert (gear.stages, gear.replicas, gear.cpus) == (["bag"], {}, 1)
    (gear,) = gears(made(plan((point(0.01, 0.0, True),), ("bag",)), rates=[5], inline_latency_ms=0))
    assert gear is not None
    assert gear.replicas == {"bag": 1}


def three_points() -> list[OperatingPoint]:
    def of(alpha: float, first: float, middle: float, default: bool = False) -> OperatingPoint:
        shares = {"middle_thresholds": [0.8], "middle_escalation_rates": [middle]}
        return point(alpha, first, default).model_copy(update=shares)

    return [of(0.01, 0.3, 0.1, True), of(0.02, 0.2, 0.05)]


THREE = ("bag", "int8", "full")


def test_every_stage_of_three_is_a_queue_that_its_share_of_the_requests_comes_to() -> None:
    config = GearsConfig(requests=20_000).as_served(2.0, 1)
    given: dict[str, Any] = {"ingress_replicas": 1, "replicas": {"int8": 1, "full": 1}, "max_batch_size": 8}
    gear, expected = predict(config, profile(), plan(three_points(), THREE), 100, **given)
    assert (gear.stages, gear.escalation_rate, gear.cpus) == (list(THREE), 0.3, 3)
    # At 100 requests/s int8, 10 ms for one text, has 30 of them, and full, 20 ms, has 10.
    assert expected.busy[1:] == pytest.approx((0.3, 0.2), rel=0.05)
    assert gear.capacity == pytest.approx(150 / 0.3, rel=1e-6)  # int8 at its best is the first to be busy
    without = predict(config, profile(), plan(three_points()[:1], THREE), 100, **given)[1]
    assert without == expected


def test_what_is_judged_is_every_answer_but_the_last_model_s() -> None:
    """The validator's time follows from the plan's cost, and each of 1.3 answers per text takes it."""
    costs = {name: profile()[name].cost for name in THREE}
    models = costs["bag"] + 0.3 * costs["int8"] + 0.1 * costs["full"]
    served = plan(three_points(), THREE)
    served = served.model_copy(update={"expected": {"cost": models + 1.3 * 0.2}})
    config = GearsConfig(requests=2000, overhead_ms=0).as_served(2.0, 1)
    given: dict[str, Any] = {"ingress_replicas": 1, "replicas": {"int8": 1, "full": 1}, "max_batch_size": 8}
    judged = predict(config, profile(), served, 1, **given)[1]
    free = predict(config, profile(), plan(three_points(), THREE), 1, **given)[1]
    full_ms = 1e3 / profile()["full"].speed.best_rows_per_s  # type: ignore[union-attr]
    assert judged.cpu_ms - free.cpu_ms == pytest.approx(1.3 * 0.2 * full_ms, rel=0.05)


def test_three_stages_have_gears_from_the_default_to_more_lenient_points() -> None:
    low, high = gears(made(plan(three_points(), THREE), rates=[300, 800], slo_ms=300, max_replicas=2))
    assert low and high  # full alone could not answer so many
    assert (low.stages, low.alpha, set(low.replicas)) == (list(THREE), 0.01, {"int8", "full"})
    assert (high.stages, high.cpus > low.cpus or high.degraded) == (list(THREE), True)


def test_the_load_stays_below_what_is_allowed() -> None:
    for share in (0.3, 0.9):
        for shift in made(rates=[5, 100, 300], max_load=share).shifts:
            assert shift.gear is None or shift.rate <= share * shift.gear.capacity


def lenience(gear: Gear | None) -> tuple[float, float]:
    """What must never fall as the rate rises; no gear is the worst."""
    if gear is None:
        return (2.0, 0.0)
    return ((gear.alpha or 0.0) if gear.degraded else 0.0, gear.cpus)


some_rates = st.lists(st.floats(1, 3000), min_size=2, max_size=5, unique=True).map(sorted)


@settings(max_examples=25, deadline=None)
@given(some_rates, st.floats(20, 400), st.integers(1, 3))
def test_more_requests_are_never_served_more_cheaply(rates: list[float], slo_ms: float, replicas: int) -> None:
    found = [lenience(gear) for gear in gears(made(rates=rates, slo_ms=slo_ms, max_replicas=replicas, requests=1000))]
    assert found == sorted(found)


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 1500), st.floats(20, 200), st.floats(1, 3), st.integers(1, 2))
def test_more_time_or_more_replicas_never_make_it_worse(
    rate: float, slo_ms: float, factor: float, replicas: int
) -> None:
    def found(slo_ms: float, replicas: int) -> tuple[float, float]:
        return lenience(gears(made(rates=[rate], slo_ms=slo_ms, max_replicas=replicas, requests=1000))[0])

    assert found(slo_ms * factor, replicas) <= found(slo_ms, replicas)
    assert found(slo_ms, replicas + 1) <= found(slo_ms, replicas)


def test_every_gear_keeps_the_latency_and_equal_settings_give_equal_tables() -> None:
    table = made(rates=[1, 10, 100, 300], slo_ms=80)
    assert all(shift.expected.p99_ms <= 80 for shift in table.shifts if shift.expected)
    assert table == made(rates=[1, 10, 100, 300], slo_ms=80)
    assert table != made(rates=[1, 10, 100, 300], slo_ms=80, seed=1)


def test_only_certified_points_from_the_default_on_are_used() -> None:
    alphas = {gear.alpha for gear in gears(made(rates=[1, 100, 400, 700, 900], slo_ms=300)) if gear}
    assert alphas <= {0.01, 0.02, None}


def test_a_given_way_to_serve_is_the_default_point_s() -> None:
    config = GearsConfig(requests=2000).as_served(2.0, 1)
    gear, expected = predict(config, profile(), plan(), 50, ingress_replicas=1, replicas={"full": 2}, max_batch_size=8)
    assert (gear.alpha, gear.escalation_rate, gear.cpus) == (0.01, 0.3, 3)
    one = predict(config, profile(), plan(), 50, ingress_replicas=1, replicas={"full": 1}, max_batch_size=8)[1]
    assert expected.p99_ms <= one.p99_ms
    table = made(rates=[1])
    assert table.prerouting_saves_at_most == pytest.approx(prerouting_ceiling([1 / 50_000, 1 / 110], 0.0002, [0.3]))


def test_routing_past_a_cheap_first_model_saves_next_to_nothing() -> None:
    assert prerouting_ceiling([0.02, 1.0], 0.0, [0.3]) == pytest.approx(0.3 * 0.02 / 0.32)
    assert prerouting_ceiling([0.02, 1.0], 0.01, [0.3]) == pytest.approx(0.3 * 0.02 / 0.33)
    assert prerouting_ceiling([0.02, 0.2, 1.0], 0.0, [0.3, 0.1]) == pytest.approx((0.3 * 0.02 + 0.1 * 0.2) / 0.18)
    assert prerouting_ceiling([0.0, 1.0], 0.0, [0.0]) == 0.0
    assert made(rates=[1]).prerouting_saves_at_most < 0.005
    assert made(plan((point(0.01, 0.3, True),), ("int8", "full")), rates=[1]).prerouting_saves_at_most > 0.2
    assert made(ALONE, rates=[1]).prerouting_saves_at_most == 0.0


@pytest.mark.parametrize("raw", [{"rates": [2, 1]}, {"rates": []}, {"rates": [0]}, {"slo_ms": 0}, {"max_load": 1.1}])
def test_settings_that_make_no_sense_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(raw))):
        GearsConfig.parse(raw)


def test_open_settings_are_those_of_the_endpoint() -> None:
    assert GearsConfig().as_served(2.0, 3).inline_latency_ms == 2.0
    assert GearsConfig().as_served(2.0, 3).ingress_threads == 3
    own = GearsConfig(inline_latency_ms=0.0, ingress_threads=1).as_served(2.0, 3)
    assert (own.inline_latency_ms, own.ingress_threads) == (0.0, 1)


def test_the_table_is_an_artifact(tmp_path: Any) -> None:
    from lspm_ray.profiling.profile import PROFILE_FILE
    from lspm_ray.selection.gears import make_gears, read_gears
    from tests.toys import write_plan

    store = ArtifactStore(str(tmp_path))
    table = profile()
    measured = store.make(
        "profile", {}, {}, lambda draft: (draft.path / PROFILE_FILE).write_text(table.model_dump_json()) and None
    )
    select = write_plan(store, ALONE, None)
    config = GearsConfig(rates=[5], requests=1000).as_served(2.0, 1)
    artifact = make_gears(config, measured, select, store, lambda _: None)
    assert read_gears(artifact) == gear_table(config, table, ALONE)
    assert artifact.manifest.summary == {"slo_ms": 200.0, "planned": 1}
