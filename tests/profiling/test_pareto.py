from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.evaluation.forgetting import ClassChange, Verdict
from lspm_ray.profiling.pareto import Constraints, Point, dominated_by, front, violations

# Few distinct values, so that ties are common.
coarse = st.integers(0, 4).map(float)
clouds = st.lists(st.tuples(coarse, coarse), max_size=12).map(
    lambda pairs: [Point(name=f"v{i}", quality=q, cost=c) for i, (q, c) in enumerate(pairs)]
)


def no_worse(a: Point, b: Point) -> bool:
    return a.quality >= b.quality and a.cost <= b.cost


def test_variants_that_pay_for_nothing_are_dominated() -> None:
    points = [
        Point(name="full", quality=0.97, cost=1.0),
        Point(name="int8", quality=0.97, cost=0.5),
        Point(name="pruned", quality=0.95, cost=0.6),
        Point(name="bag", quality=0.90, cost=0.01),
    ]
    assert dominated_by(points) == {"full": "int8", "pruned": "int8"}
    assert front(points) == {"int8", "bag"}


def test_of_equal_points_the_alphabetically_first_stands_in_any_order() -> None:
    points = [Point(name=name, quality=0.9, cost=1) for name in "cab"]
    assert dominated_by(points) == dominated_by(points[::-1]) == {"b": "a", "c": "a"}


def test_no_points_no_front() -> None:
    assert front([]) == set()


@given(clouds)
def test_a_dominating_point_is_on_the_front_and_no_worse(points: list[Point]) -> None:
    by_name = {point.name: point for point in points}
    for loser, winner in dominated_by(points).items():
        assert winner in front(points)
        assert no_worse(by_name[winner], by_name[loser])
        assert winner != loser


@given(clouds)
def test_front_equals_brute_force(points: list[Point]) -> None:
    def beaten(point: Point) -> bool:
        return any(
            no_worse(other, point) and (not no_worse(point, other) or other.name < point.name)
            for other in points
            if other.name != point.name
        )

    assert front(points) == {point.name for point in points if not beaten(point)}


@given(clouds, st.randoms())
def test_order_of_points_does_not_matter(points: list[Point], random: Random) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    assert dominated_by(shuffled) == dominated_by(points)


def test_names_must_be_unique() -> None:
    with pytest.raises(ValueError, match=r"unique: \['a', 'a'\]"):
        front([Point(name="a", quality=1, cost=1)] * 2)


def test_no_limits_no_violations() -> None:
    assert violations(Constraints(), accuracy_drop=1, p99_ms=1e9, memory_mb=1e9) == []


def test_answers_that_depend_on_their_company_are_limited() -> None:
    def found(changed: float, limits: Constraints) -> list[str]:
        return violations(limits, accuracy_drop=0, p99_ms=1, memory_mb=1, changed=changed)

    assert found(0.01, Constraints()) == [] == found(0.5, Constraints(max_changed=None))
    assert found(0.0234, Constraints()) == [
        "2.34 % of its answers change with the rows they are computed with, 1 % may"
    ]


def test_limits_are_inclusive() -> None:
    limits = Constraints(max_accuracy_drop=0.01, max_p99_ms=20, max_memory_mb=500)
    assert violations(limits, accuracy_drop=0.01, p99_ms=20, memory_mb=500) == []


def test_each_broken_limit_is_named_with_numbers() -> None:
    limits = Constraints(max_accuracy_drop=0.005, max_p99_ms=20, max_memory_mb=500)
    assert violations(limits, accuracy_drop=0.01234, p99_ms=33.333, memory_mb=612.5) == [
        "accuracy is 1.234 points below the full model's, 0.5 are allowed",
        "p99 latency is 33.33 ms, 20 ms are allowed",
        "peak memory is 612.5 MB, 500 MB are allowed",
    ]


def test_a_variant_better_than_full_breaks_no_accuracy_limit() -> None:
    assert violations(Constraints(max_accuracy_drop=0), accuracy_drop=-0.01, p99_ms=1, memory_mb=1) == []


def change(label: str, rows: int, lost: int, verdict: Verdict | None = "forgotten") -> ClassChange:
    return ClassChange(label=label, rows=rows, right=rows, lost=lost, gained=0, verdict=verdict)


def test_forgotten_classes_are_named_the_worst_first() -> None:
    changes = [change(label, 100, lost) for label, lost in zip("abcde", (20, 50, 30, 40, 10), strict=True)]
    changes += [change("kept", 100, 0, "kept"), change("few", 3, 3, "cannot be told")]
    found = violations(Constraints(max_recall_drop=0.05), accuracy_drop=0, p99_ms=1, memory_mb=1, changes=changes)
    assert found == [
        "forgets class `b`: 50 of its 100 rows lost and 0 gained, a drop in recall of 50 points, 5 are allowed",
        "forgets class `d`: 40 of its 100 rows lost and 0 gained, a drop in recall of 40 points, 5 are allowed",
        "forgets class `c`: 30 of its 100 rows lost and 0 gained, a drop in recall of 30 points, 5 are allowed",
        "forgets 2 more classes",
    ]
    assert violations(Constraints(), accuracy_drop=0, p99_ms=1, memory_mb=1, changes=changes[-2:]) == []


@pytest.mark.parametrize("field", ["max_accuracy_drop", "max_recall_drop", "max_p99_ms", "max_memory_mb"])
def test_limits_below_zero_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Constraints.parse({field: -1})
