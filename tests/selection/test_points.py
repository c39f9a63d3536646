"""Several points, classes and stages under one certificate, against simulation and exact probabilities."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, multinomial

from lspm_ray.errors import CertificateError
from lspm_ray.selection.points import (
    Walk,
    Wanted,
    answered_by,
    certify,
    critical_losses,
    curve,
    joint_error,
    tied_path,
    walk,
)
from lspm_ray.selection.risk import ACCEPT_ALL, fixed_sequence, minimum_rows, p_value, threshold_grid

Array = NDArray[Any]
NAMES = ["a", "b", "c"]


def wanted(alpha: float = 0.02, points: tuple[float, ...] = (), per_class: dict[int, float] | None = None) -> Wanted:
    return Wanted(alpha, points, 0.05, per_class or {})


class Task:
    """A random task of two or three stages with three classes: its truth is known by a large sample of itself.

    Losses get rarer with higher scores, at a pace and from a height of the task's own; classes differ in difficulty.
    """

    def __init__(self, seed: int, *, stages: int = 2, last_loses: bool = False) -> None:
        own = np.random.default_rng([seed, 1])
        self.stages, self.last_loses = stages, last_loses
        self.height, self.pace = own.uniform(0.1, 0.5, stages), own.uniform(3, 9, stages)
        self.hard, self.prior = own.uniform(0.3, 2.0, 3), own.dirichlet([40, 40, 30])
        self.path = tied_path(self.draw(1000, own)[0], 60, float(own.choice([0.5, 1.0, 2.0])))
        self.truth = self.walk(50_000, own)

    def draw(self, n: int, random: np.random.Generator) -> tuple[list[Array], list[Array | None], Array]:
        labels = random.choice(3, size=n, p=self.prior)
        scores, lost = [], []
        for stage in range(self.stages - 1):
            scores.append(random.uniform(size=n))
            risk = self.height[stage] * np.exp(-self.pace[stage] * scores[-1]) * self.hard[labels]
            lost.append(random.uniform(size=n) < risk)
        last = random.uniform(size=n) < 0.004 if self.last_loses else None
        return scores, [*lost, last], labels

    def walk(self, n: int, random: np.random.Generator) -> Walk:
        scores, lost, labels = self.draw(n, random)
        return walk(scores, lost, self.path, labels, 3)

    def wrong(self, n: int, seed: int, asked: Wanted) -> bool:
        """Whether any promise of a certificate from n rows is false."""
        found = certify(self.walk(n, np.random.default_rng([seed, 2])), asked, NAMES)
        for point in found.points:
            first = ACCEPT_ALL if point.threshold is None else point.threshold
            step = int(np.flatnonzero(self.path[:, 0] == first)[0])
            if self.truth.losses[step] / self.truth.rows > point.alpha:
                return True
            per_class = self.truth.class_losses[step] / self.truth.class_rows
            if any(per_class[index] > alpha for index, alpha in asked.per_class.items()):
                return True
        return False


KINDS = {
    "two stages": ({}, wanted(points=(0.01, 0.04))),
    "an escalation that loses too": ({"last_loses": True}, wanted(points=(0.01, 0.04))),
    "three stages": ({"stages": 3}, wanted(points=(0.01, 0.04))),
    "per class": ({}, wanted(points=(0.01, 0.04), per_class={0: 0.03, 1: 0.03, 2: 0.03})),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_of_the_promises_is_false_less_often_than_delta(kind: str) -> None:
    settings_of, asked = KINDS[kind]
    wrong = runs = 0
    for number in range(8):
        task = Task(number, **settings_of)
        for seed in range(40):
            wrong += task.wrong(900, 1000 * number + seed, asked)
            runs += 1
    # A procedure that is wrong with probability delta exactly would pass this 999 times in 1000.
    assert wrong <= binom.ppf(0.999, runs, asked.delta)


def test_without_a_correction_points_would_be_wrong_together_too_often() -> None:
    alphas = [0.01, 0.02, 0.04]
    assert joint_error(alphas, [critical_losses(2000, alpha, 0.05) for alpha in alphas], 2000) > 0.07


@given(
    st.lists(st.floats(0.01, 0.4), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(-1, 6), min_size=3, max_size=3),
    st.integers(7, 9),
)
@settings(max_examples=50)
def test_joint_error_is_the_sum_over_all_outcomes(alphas: list[float], criticals: list[int], n: int) -> None:
    alphas, criticals = sorted(alphas), criticals[: len(alphas)]
    cells = np.diff([0.0, *alphas, 1.0])
    expected = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(alphas)):
        if sum(counts) <= n and any(k <= c for k, c in zip(np.cumsum(counts), criticals, strict=True)):
            expected += multinomial.pmf([*counts, n - sum(counts)], n, cells)
    assert joint_error(alphas, criticals, n) == pytest.approx(expected, abs=1e-9)


def test_too_many_losses_for_the_exact_way_fall_back_on_the_sum() -> None:
    assert joint_error([0.2, 0.3], [700, 1000], 4000) == pytest.approx(
        binom.cdf(700, 4000, 0.2) + binom.cdf(1000, 4000, 0.3)
    )


@given(st.integers(1, 3000), st.floats(0.001, 0.3), st.floats(0.001, 0.2))
def test_critical_losses_are_the_most_that_pass(n: int, alpha: float, level: float) -> None:
    k = critical_losses(n, alpha, level)
    assert k == -1 or p_value(k, n, alpha) <= level
    assert p_value(k + 1, n, alpha) > level
    assert (k == -1) == (n < minimum_rows(alpha, level))


@pytest.mark.parametrize("nested", [True, False])
def test_shares_of_delta_add_up_and_the_default_has_the_largest(nested: bool) -> None:
    task = Task(3, last_loses=not nested)
    asked = wanted(points=(0.01, 0.04))
    walked = task.walk(2000, np.random.default_rng(0))
    found = certify(walked, asked, NAMES)
    assert found.multiplicity == ("nested" if nested else "bonferroni")
    by_alpha = {point.alpha: point.level for point in found.points}
    assert by_alpha[0.02] == pytest.approx(0.04)
    if nested:
        assert by_alpha[0.01] > 0.005
        levels = [by_alpha[0.01], by_alpha[0.02], by_alpha[0.01]]
        criticals = [critical_losses(2000, a, level) for a, level in zip([0.01, 0.02, 0.04], levels, strict=True)]
        assert joint_error([0.01, 0.02, 0.04], criticals, 2000) <= 0.05
    else:
        assert by_alpha[0.01] == pytest.approx(0.005)


@given(st.integers(0, 500), st.sampled_from([(), (0.01,), (0.01, 0.04)]))
@settings(max_examples=25, deadline=None)
def test_points_go_from_strict_to_lenient_and_keep_their_bounds(seed: int, points: tuple[float, ...]) -> None:
    random = np.random.default_rng(seed)
    scores = random.uniform(size=900)
    walked = walk(
        [scores],
        [random.uniform(size=900) < 0.2 * np.exp(-6 * scores), None],
        tied_path([random.uniform(size=300)], 50),
        np.zeros(900, dtype=np.int64),
        1,
    )
    found = certify(walked, wanted(points=points), NAMES)
    rates = [point.escalation_rate for point in found.points]
    assert rates == sorted(rates, reverse=True)
    for point in found.points:
        assert point.p_value <= point.level <= 0.05
        assert point.upper_bound <= point.alpha * (1 + 1e-9)
    left = {float(alpha) for alpha in found.left_out}
    assert left | {point.alpha for point in found.points} == {0.02, *points}


def test_one_point_and_two_stages_is_the_fixed_sequence() -> None:
    random = np.random.default_rng(4)
    scores, chosen = random.uniform(size=1500), random.uniform(size=500)
    lost = random.uniform(size=1500) < 0.3 * np.exp(-6 * scores)
    walked = walk([scores], [lost, None], tied_path([chosen], 80), np.zeros(1500, dtype=np.int64), 1)
    found = certify(walked, wanted(), NAMES)
    expected = fixed_sequence(scores, lost, threshold_grid(chosen, 80), 0.02, 0.05)
    assert found.default is not None and expected.point is not None
    assert (found.multiplicity, found.default.level) == ("none", 0.05)
    assert (found.default.threshold, found.default.losses) == (expected.point.threshold, expected.point.losses)
    assert found.default.upper_bound == pytest.approx(expected.point.bound)
    assert curve(walked, found, wanted()) == expected


def test_every_class_has_to_pass() -> None:
    """One class loses 6 % of its rows, which the average of 1 % hides."""
    labels = np.repeat([0, 1], [2000, 400])
    lost = np.zeros(2400, dtype=bool)
    lost[2000:2024] = True
    scores = np.linspace(1, 0, 2400)
    scores[2000:2024] = 0.5
    walked = walk([scores], [lost, None], np.array([[0.6], [0.4], [ACCEPT_ALL]]), labels, 2)
    without = certify(walked, wanted(), NAMES).default
    each = certify(walked, wanted(per_class={0: 0.05, 1: 0.05}), NAMES).default
    assert without is not None and each is not None
    assert without.threshold is None and each.threshold == 0.6
    assert [(c.label, c.rows, c.losses) for c in each.classes] == [("a", 2000, 0), ("b", 400, 0)]


def test_classes_with_too_few_rows_are_named_with_what_it_takes() -> None:
    labels = np.repeat([0, 1, 2], [900, 50, 20])
    walked = walk([np.ones(970)], [np.zeros(970, dtype=bool), None], np.array([[ACCEPT_ALL]]), labels, 3)
    with pytest.raises(CertificateError, match=r"'b' 50 of 59, 'c' 20 of 59") as caught:
        certify(walked, wanted(per_class={0: 0.05, 1: 0.05, 2: 0.05}), NAMES)
    assert caught.value.field == "select.per_class"


def test_points_that_the_rows_cannot_back_are_left_out_and_cost_nothing() -> None:
    scores, labels = np.linspace(0, 1, 400), np.zeros(400, dtype=np.int64)
    walked = walk([scores], [scores < 0.3, None], tied_path([scores], 50), labels, 1)
    found = certify(walked, wanted(alpha=0.02, points=(0.001,)), NAMES)
    assert found.default is not None and found.default.level == 0.05
    assert "calibration rows, there are 400" in found.left_out["0.001"]
    just_enough = minimum_rows(0.02, 0.05)
    walked = walk(
        [scores[:just_enough]], [scores[:just_enough] < 0.3, None], tied_path([scores], 50), labels[:just_enough], 1
    )
    found = certify(walked, wanted(alpha=0.02, points=(0.05,)), NAMES)
    assert found.left_out == {"0.05": "the rows are only just enough for alpha = 0.02"}


def test_three_stages_count_who_answers() -> None:
    scores = [np.array([0.9, 0.2, 0.2, 0.9]), np.array([0.1, 0.9, 0.1, 0.1])]
    lost: list[Array | None] = [np.array([0, 1, 1, 1], bool), np.array([1, 1, 1, 0], bool), None]
    walked = walk(scores, lost, np.array([[0.8, 0.8], [ACCEPT_ALL, ACCEPT_ALL]]), np.array([0, 0, 1, 1]), 2)
    assert walked.losses.tolist() == [2, 3]  # the first errs on row 3, the second on row 1; full answers row 2
    assert walked.escalated.tolist() == [[2, 1], [0, 0]]
    assert walked.class_losses.tolist() == [[1, 1], [1, 2]]
    assert not walked.nested


@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**16))
@settings(max_examples=50)
def test_a_row_is_answered_by_the_first_stage_that_may(stages: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, limits = random.integers(0, 5, (stages, rows)).astype(float), random.integers(0, 5, stages).astype(float)
    expected = [
        next((stage for stage in range(stages) if scores[stage, row] >= limits[stage]), stages) for row in range(rows)
    ]
    assert answered_by(list(scores), limits).tolist() == expected


def test_the_path_of_two_stages_is_tied_by_quantiles() -> None:
    first, second = np.linspace(0, 1, 1001), np.linspace(0, 10, 1001)
    path = tied_path([first, second], 101, tie=2.0)
    assert path[-1].tolist() == [ACCEPT_ALL, ACCEPT_ALL]
    assert (np.diff(path[:, 0]) < 0).all() and (np.diff(path[:, 1]) <= 0).all()
    np.testing.assert_allclose(path[:-1, 1] / 10, path[:-1, 0] ** 2, atol=2e-3)


def test_a_default_that_accepts_everything_stands_alone() -> None:
    scores = np.linspace(0, 1, 800)
    walked = walk([scores], [np.zeros(800, bool), None], tied_path([scores], 20), np.zeros(800, dtype=np.int64), 1)
    found = certify(walked, wanted(points=(0.01, 0.04)), NAMES)
    assert [point.threshold for point in found.points] == [None]
    assert set(found.left_out) == {"0.01", "0.04"}


def test_nothing_is_certified_where_the_strictest_step_fails() -> None:
    scores = np.linspace(0, 1, 800)
    walked = walk([scores], [np.ones(800, bool), None], tied_path([scores], 5), np.zeros(800, dtype=np.int64), 1)
    found = certify(walked, wanted(alpha=0.0006 + 0.01, points=()), NAMES)
    assert found.default is not None  # the strictest quantile accepts one row only
    walked = walk([scores], [np.ones(800, bool), None], np.array([[0.5]]), np.zeros(800, dtype=np.int64), 1)
    assert certify(walked, wanted(points=(0.04,)), NAMES).points == []


def test_nan_scores_and_other_rows_are_refused() -> None:
    with pytest.raises(CertificateError, match="NaN"):
        walk([np.array([np.nan])], [np.array([False]), None], np.array([[0.5]]), np.array([0]), 1)
    with pytest.raises(CertificateError, match="same rows"):
        walk([np.array([0.1, 0.2])], [np.array([False]), None], np.array([[0.5]]), np.array([0]), 1)
