import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from lspm_ray.errors import DataError
from lspm_ray.evaluation.forgetting import class_changes, excess_p_value, exemplars, verdict

Array = NDArray[Any]


def chance(lost: int, gained: int, rows: int, p_lost: float, p_gained: float) -> float:
    """Of just so many, trinomial, by way of two binomials."""
    share = min(1.0, p_gained / (1 - p_lost))
    conditional = binom.pmf(gained, rows - lost, share) if lost < rows else float(gained == 0)
    return float(binom.pmf(lost, rows, p_lost) * conditional)


@pytest.mark.parametrize("bound", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("significance", [0.05, 0.05 / 60])
@pytest.mark.parametrize("rows", [4, 8, 20])
def test_verdicts_are_wrong_no_more_often_than_asked_for(bound: float, significance: float, rows: int) -> None:
    outcomes = [(b, c) for b, c in itertools.product(range(rows + 1), repeat=2) if b + c <= rows]
    told = {o: verdict(*o, rows, bound, significance) for o in outcomes}
    for p_gained in (0.0, 0.01, 0.05, 0.2, 0.33, 0.4):
        p_lost = p_gained + bound
        if p_lost + p_gained > 1 + 1e-9:
            continue
        for wrong in ("forgotten", "kept"):  # the truth is the bound itself: neither can be proved
            total = sum(chance(*o, rows, p_lost, p_gained) for o in outcomes if told[o] == wrong)
            assert total <= significance * (1 + 1e-9)


def test_a_clear_loss_is_found_and_a_clear_match_too() -> None:
    assert verdict(30, 2, 100, 0.05, 0.005) == "forgotten"
    assert verdict(3, 2, 1000, 0.05, 0.005) == "kept"
    assert verdict(2, 30, 100, 0.05, 0.005) == "kept"
    assert verdict(8, 0, 100, 0.05, 0.005) == "cannot be told"


def test_few_rows_prove_nothing() -> None:
    assert {verdict(b, 0, 1, 0.05, 0.025) for b in (0, 1)} == {"cannot be told"}
    assert verdict(0, 0, 20, 0.05, 0.025) == "cannot be told"
    assert verdict(0, 0, 200, 0.05, 0.025) == "kept"


def test_what_decides_is_lost_rows_minus_gained_ones() -> None:
    assert excess_p_value(10, 6, 100, 0.05, 0.05) == 1.0
    p_values = [excess_p_value(20, gained, 100, 0.05, 0.05) for gained in (0, 4, 8, 12)]
    assert p_values == sorted(p_values) and p_values[0] < 0.01 < 0.05 < p_values[-1]


def test_without_nuisance_it_is_the_binomial_test() -> None:
    # Nothing gained in many rows: what is lost is binomial.
    expected = float(binom.sf(29, 400, 0.05))
    assert excess_p_value(30, 0, 400, 0.05, 1e-3) == pytest.approx(expected, rel=2.5)
    assert excess_p_value(30, 0, 400, 0.05, 1e-3) >= expected


def test_large_classes_are_no_problem() -> None:
    assert excess_p_value(7_000, 1_000, 100_000, 0.05, 0.001) < 1e-3
    assert excess_p_value(6_010, 1_000, 100_000, 0.05, 0.05) > 0.3
    assert verdict(0, 100_000, 100_000, 0.05, 0.05) == "kept"
    assert verdict(100_000, 0, 100_000, 0.99, 0.05) == "forgotten"


def world() -> tuple[Array, Array, Array]:
    labels = np.repeat([0, 1, 3], [1000, 100, 2])
    full = np.ones(1102, dtype=bool)
    full[:50] = False
    right = full.copy()
    right[1000:1030] = False  # 30 of 100 of class 1
    right[:4] = True
    right[100:103] = False
    return right, full, labels


def test_each_class_is_counted_and_those_that_do_not_occur_are_left_out() -> None:
    right, full, labels = world()
    changes = class_changes(right, full, labels, ["a", "b", "c", "d"], 0.05)
    assert [(c.label, c.rows, c.right, c.lost, c.gained) for c in changes] == [
        ("a", 1000, 950, 3, 4),
        ("b", 100, 100, 30, 0),
        ("d", 2, 2, 0, 0),
    ]
    assert [c.verdict for c in changes] == ["kept", "forgotten", "cannot be told"]
    assert [c.drop for c in changes] == pytest.approx([-0.001, 0.3, 0.0])


def test_without_a_bound_there_are_no_verdicts() -> None:
    right, full, labels = world()
    assert {c.verdict for c in class_changes(right, full, labels, list("abcd"), None)} == {None}


def test_more_classes_take_more_proof() -> None:
    labels = np.zeros(100, dtype=int)
    full, right = np.ones(100, dtype=bool), np.arange(100) >= 16
    (one,) = class_changes(right, full, labels, ["a"], 0.05)
    more = class_changes(
        np.append(right, np.ones(99, dtype=bool)),
        np.ones(199, dtype=bool),
        np.append(labels, np.arange(1, 100)),
        [str(k) for k in range(100)],
        0.05,
    )
    assert (one.verdict, more[0].verdict) == ("forgotten", "cannot be told")


def test_models_on_different_rows_are_refused() -> None:
    right, full, labels = world()
    with pytest.raises(DataError, match="same rows"):
        class_changes(right[1:], full, labels, list("abcd"), 0.05)


def test_rows_that_most_models_flip_come_first() -> None:
    full = np.array([True, True, False, True, False])
    right = {
        "a": np.array([False, True, True, False, False]),
        "b": np.array([False, False, True, True, False]),
        "c": np.array([False, True, False, True, False]),
    }
    found = exemplars(right, full, 10)
    assert [(e.row, e.direction, e.models) for e in found] == [
        (0, "lost", ["a", "b", "c"]),
        (2, "gained", ["a", "b"]),
        (1, "lost", ["b"]),
        (3, "lost", ["a"]),
    ]
    assert exemplars(right, full, 2) == found[:2]
    assert exemplars({}, full, 2) == []
