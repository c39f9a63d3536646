from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import BinaryClassificationController, BinaryRisk, control_fwer
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from lspm_ray.errors import CertificateError
from lspm_ray.selection.risk import (
    ACCEPT_ALL,
    Certified,
    cost_of_stages,
    fixed_sequence,
    losses,
    minimum_rows,
    p_value,
    smallest_alpha,
    threshold_grid,
    upper_bound,
)

Array = NDArray[Any]
levels = st.floats(0.001, 0.5)


def calibration(n: int, seed: int, steepness: float = 6.0) -> tuple[Array, Array]:
    """Scores uniform on [0, 1]; the lower one is, the likelier a loss. `risk_at` gives the true risk at a threshold."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(size=n)
    return scores, generator.uniform(size=n) < 0.3 * np.exp(-steepness * scores)


def risk_at(threshold: float, steepness: float = 6.0) -> float:
    t = min(max(threshold, 0.0), 1.0)
    return float(0.3 / steepness * (np.exp(-steepness * t) - np.exp(-steepness)))


def test_regret_is_a_right_answer_given_away() -> None:
    cheap, full, labels = np.array([0, 1, 1, 0, 2]), np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 0])
    assert losses("regret", cheap, full, labels).tolist() == [False, True, False, False, False]
    assert losses("disagreement", cheap, full).tolist() == [False, True, False, True, True]


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=50))
def test_regret_implies_disagreement_and_bounds_the_accuracy_lost(rows: list[tuple[int, int, int]]) -> None:
    cheap, full, labels = np.array(rows).T
    regret = losses("regret", cheap, full, labels)
    assert not (regret & ~losses("disagreement", cheap, full)).any()
    assert np.mean(full == labels) - np.mean(cheap == labels) <= regret.mean() + 1e-12


def test_disagreement_ignores_labels() -> None:
    cheap, full = np.array([0, 1]), np.array([1, 1])
    assert losses("disagreement", cheap, full, np.array([0, 0])).tolist() == [True, False]


def test_regret_without_labels_is_refused() -> None:
    with pytest.raises(CertificateError, match=r"regret needs labelled rows.*use `disagreement`"):
        losses("regret", np.array([0]), np.array([0]))


def test_predictions_on_different_rows_are_refused() -> None:
    with pytest.raises(CertificateError, match="same rows"):
        losses("disagreement", np.array([0, 1]), np.array([0]))


@given(st.integers(1, 5000), st.data(), levels)
def test_p_value_is_the_exact_binomial_test(n: int, draw: st.DataObject, alpha: float) -> None:
    k = draw.draw(st.integers(0, n))
    assert p_value(k, n, alpha) == pytest.approx(binomtest(k, n, alpha, alternative="less").pvalue, rel=1e-9)


@given(st.integers(1, 3000), st.data(), levels)
def test_upper_bound_is_clopper_pearson(n: int, draw: st.DataObject, delta: float) -> None:
    k = draw.draw(st.integers(0, n))
    expected = binomtest(k, n, alternative="less").proportion_ci(1 - delta, method="exact").high
    assert upper_bound(k, n, delta) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 3000), st.data(), levels, levels)
def test_bound_and_p_value_are_two_views_of_one_test(n: int, draw: st.DataObject, alpha: float, delta: float) -> None:
    k = draw.draw(st.integers(0, n))
    assert (upper_bound(k, n, delta) <= alpha * (1 - 1e-9)) <= (p_value(k, n, alpha) <= delta)
    assert (p_value(k, n, alpha) <= delta * (1 - 1e-9)) <= (upper_bound(k, n, delta) <= alpha)


@given(st.integers(2, 1000), st.data(), st.floats(0.01, 0.4))
def test_p_value_and_bound_are_monotone(n: int, draw: st.DataObject, alpha: float) -> None:
    k = draw.draw(st.integers(0, n - 1))
    assert p_value(k, n, alpha) <= p_value(k + 1, n, alpha)
    assert p_value(k, n, alpha) >= p_value(k, n + 1, alpha)
    assert p_value(k, n, alpha) >= p_value(k, n, alpha + 0.05)
    assert upper_bound(k, n, 0.05) < upper_bound(k + 1, n, 0.05)
    assert upper_bound(k, n, 0.05) > upper_bound(k, n + 1, 0.05)


def test_bound_for_no_and_for_only_losses() -> None:
    assert [round(100 * upper_bound(0, n, 0.05), 2) for n in (500, 1000, 2000)] == [0.6, 0.3, 0.15]
    assert upper_bound(7, 7, 0.05) == 1


def test_299_rows_are_the_fewest_for_one_percent() -> None:
    assert minimum_rows(0.01, 0.05) == 299


@given(st.floats(1e-5, 0.99), st.floats(1e-9, 0.9))
def test_minimum_rows_is_minimal(alpha: float, delta: float) -> None:
    rows = minimum_rows(alpha, delta)
    assert p_value(0, rows, alpha) <= delta
    assert rows == 1 or p_value(0, rows - 1, alpha) > delta


@given(st.integers(1, 100_000), levels)
def test_smallest_alpha_is_the_bound_without_losses(n: int, delta: float) -> None:
    assert smallest_alpha(n, delta) == pytest.approx(upper_bound(0, n, delta), rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300), st.integers(2, 250))
def test_grid_descends_strictly_from_the_largest_score_to_accepting_all(scores: list[float], size: int) -> None:
    grid = threshold_grid(np.array(scores), size)
    assert (np.diff(grid) < 0).all()
    assert grid[0] == max(scores)
    assert grid[-1] == ACCEPT_ALL < min(scores)
    assert set(grid[:-1]) <= set(scores)
    assert len(grid) <= size


def test_grid_steps_accept_equally_many_more_rows() -> None:
    scores = np.random.default_rng(0).normal(size=1000)
    accepted = (scores[:, None] >= threshold_grid(scores, 101)).mean(axis=0)
    assert np.allclose(np.diff(accepted), 0.01, atol=0.0011)
    assert accepted[-1] == 1


@pytest.mark.parametrize("scores", [[], [[1.0]], [np.nan, 1.0], [np.inf]])
def test_grid_of_unusable_scores_is_refused(scores: list[float]) -> None:
    with pytest.raises(CertificateError, match="selection scores"):
        threshold_grid(np.array(scores))


def test_accepting_all_survives_float32_and_json() -> None:
    assert np.float32(ACCEPT_ALL) == ACCEPT_ALL
    certified = fixed_sequence(np.ones(400), np.zeros(400, dtype=bool), threshold_grid(np.ones(9)), 0.01, 0.05)
    assert certified.point is not None
    assert certified.point.threshold == ACCEPT_ALL
    assert Certified.model_validate_json(certified.model_dump_json()) == certified


@given(st.integers(300, 900), st.integers(0, 999), st.sampled_from([0.01, 0.03, 0.1]), st.sampled_from([0.01, 0.05]))
def test_curve_equals_brute_force(n: int, seed: int, alpha: float, delta: float) -> None:
    scores, lost = calibration(max(n, minimum_rows(alpha, delta)), seed)
    scores = scores.round(2)  # ties between scores and thresholds
    grid = threshold_grid(calibration(200, seed + 1)[0].round(2), 40)
    certified = fixed_sequence(scores, lost, grid, alpha, delta)
    n, going, last = len(scores), True, None
    for threshold, point in zip(grid, certified.curve, strict=True):
        k = int((lost & (scores >= threshold)).sum())
        p = float(binom.cdf(k, n, alpha))
        going = going and p <= delta
        last = point if going else last
        assert (point.threshold, point.losses, point.risk, point.passed) == (threshold, k, k / n, going)
        assert point.p_value == pytest.approx(p)
        assert point.bound == pytest.approx(upper_bound(k, n, delta))
        assert point.escalation_rate == pytest.approx((scores < threshold).mean())
    assert certified.point == last
    assert certified.n == n
    if certified.point is not None:
        assert certified.point.bound <= alpha * (1 + 1e-9)


def test_losses_among_the_best_scores_stop_the_walk_early() -> None:
    scores, lost = np.linspace(0, 1, 1000), np.zeros(1000, dtype=bool)
    lost[-40:] = True
    certified = fixed_sequence(scores, lost, np.array([2.0, 0.98, 0.9, ACCEPT_ALL]), 0.03, 0.05)
    assert [point.passed for point in certified.curve] == [True, True, False, False]
    assert certified.point == certified.curve[1]
    p_values = [point.p_value for point in certified.curve]
    assert p_values == sorted(p_values)


def test_a_threshold_that_accepts_nothing_passes_trivially() -> None:
    certified = fixed_sequence(np.zeros(299), np.ones(299, dtype=bool), np.array([1.0, 0.0]), 0.01, 0.05)
    assert certified.point is not None
    assert (certified.point.threshold, certified.escalation_rate, certified.point.losses) == (1.0, 1.0, 0)


def test_minus_infinity_in_the_grid_means_accept_all() -> None:
    certified = fixed_sequence(np.ones(299), np.zeros(299, dtype=bool), np.array([0.5, -np.inf]), 0.01, 0.05)
    assert certified.point is not None
    assert (certified.point.threshold, certified.escalation_rate) == (ACCEPT_ALL, 0)


def test_when_the_strictest_threshold_fails_everything_is_escalated() -> None:
    certified = fixed_sequence(np.zeros(400), np.ones(400, dtype=bool), np.array([0.0]), 0.01, 0.05)
    assert certified.point is None
    assert certified.escalation_rate == 1


@given(st.integers(0, 999))
def test_a_laxer_promise_never_escalates_more(seed: int) -> None:
    scores, lost = calibration(1000, seed)
    grid = threshold_grid(calibration(500, seed + 1)[0], 100)
    by_alpha = [fixed_sequence(scores, lost, grid, a, 0.05).escalation_rate for a in (0.005, 0.01, 0.02, 0.05)]
    by_delta = [fixed_sequence(scores, lost, grid, 0.01, d).escalation_rate for d in (0.001, 0.01, 0.1)]
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_delta == sorted(by_delta, reverse=True)


@given(st.integers(0, 999), st.sampled_from([0.01, 0.02, 0.05]), st.sampled_from([0.01, 0.05, 0.1]))
@settings(max_examples=40)
def test_equals_mapie_learn_then_test(seed: int, alpha: float, delta: float) -> None:
    # With n a power of two, mapie's ceil(n * risk) cannot be thrown off by rounding.
    scores, lost = calibration(1024, seed)
    grid = threshold_grid(calibration(500, seed + 1)[0], 60)
    certified = fixed_sequence(scores, lost, grid, alpha, delta)
    risks = np.array([point.risk for point in certified.curve])
    theirs = compute_hoeffding_bentkus_p_value(risks, 1024, alpha, binary=True)[:, 0]
    np.testing.assert_allclose([point.p_value for point in certified.curve], theirs, rtol=1e-9, atol=1e-300)
    passed = [i for i, point in enumerate(certified.curve) if point.passed]
    assert passed == control_fwer(theirs, delta, "fixed_sequence").tolist()


def test_equals_mapie_controller_from_scores_to_thresholds() -> None:
    scores, lost = calibration(1024, seed=5)
    grid = threshold_grid(calibration(500, seed=6)[0], 60)[:-1]  # mapie takes thresholds from 0 to 1
    risk = BinaryRisk(lambda lost, accepted: (lost == 1) & (accepted == 1), lambda lost, _: lost >= 0, False)
    controller = BinaryClassificationController(
        lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
        risk,
        target_level=0.02,
        confidence_level=0.95,
        best_predict_param_choice=risk,
        list_predict_params=grid,
        fwer_method="fixed_sequence",
    ).calibrate(scores[:, None], lost.astype(int))
    passed = [point.threshold for point in fixed_sequence(scores, lost, grid, 0.02, 0.05).curve if point.passed]
    assert 10 < len(passed) < len(grid)
    assert np.array_equal(passed, controller.valid_predict_params)


@pytest.mark.parametrize("n", [400, 1000])
def test_the_promise_is_broken_less_often_than_delta_and_the_naive_rule_breaks_it_often(n: int) -> None:
    alpha, delta, draws = 0.01, 0.05, 2000
    grid = threshold_grid(calibration(2000, seed=1)[0], 100)
    broken = naive_broken = 0
    for seed in range(draws):
        certified = fixed_sequence(*calibration(n, seed + 100), grid, alpha, delta)
        broken += certified.point is not None and risk_at(certified.point.threshold) > alpha
        naive = [point.threshold for point in certified.curve if point.risk <= alpha][-1]
        naive_broken += risk_at(naive) > alpha
    # A procedure that breaks it with probability delta exactly would pass this 999 times in 1000.
    assert broken <= binom.ppf(0.999, draws, delta)
    assert naive_broken > 0.3 * draws


def test_the_promise_is_not_idle() -> None:
    """With many rows the certified risk comes close to alpha: caution costs little."""
    grid = threshold_grid(calibration(5000, seed=1)[0], 400)
    point = fixed_sequence(*calibration(50_000, seed=2), grid, 0.01, 0.05).point
    assert point is not None
    assert 0.008 < risk_at(point.threshold) <= 0.01


def test_too_few_rows_say_how_many_are_needed_and_what_can_be_had() -> None:
    with pytest.raises(CertificateError) as caught:
        fixed_sequence(np.ones(200), np.zeros(200, dtype=bool), np.array([0.5]), 0.01, 0.05)
    text = str(caught.value)
    assert "calibration rows: alpha = 0.01 at delta = 0.05 needs at least 299 rows" in text
    assert "(got 200)" in text
    assert "alpha = 0.0149, the smallest" in text


@given(st.integers(1, 3000), st.sampled_from([0.01, 0.05, 0.1]))
def test_the_advised_alpha_works_when_followed(n: int, delta: float) -> None:
    if n >= minimum_rows(1e-4, delta):
        return
    with pytest.raises(CertificateError) as caught:
        fixed_sequence(np.ones(n), np.zeros(n, dtype=bool), np.array([0.5]), 1e-4, delta)
    advised = float(str(caught.value).split("no less than alpha = ")[1].split(",")[0])
    assert fixed_sequence(np.ones(n), np.zeros(n, dtype=bool), np.array([0.5]), advised, delta).point is not None


@pytest.mark.parametrize(("alpha", "delta", "field"), [(0, 0.05, "alpha"), (1, 0.05, "alpha"), (0.01, 1.5, "delta")])
def test_levels_out_of_range_are_refused(alpha: float, delta: float, field: str) -> None:
    with pytest.raises(CertificateError, match=f"{field}: must lie strictly between 0 and 1"):
        fixed_sequence(np.ones(400), np.zeros(400, dtype=bool), np.array([0.5]), alpha, delta)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(CertificateError, match="calibration scores: 1 of 400 are NaN"):
        fixed_sequence(np.append(np.ones(399), np.nan), np.zeros(400, dtype=bool), np.array([0.5]), 0.01, 0.05)


def test_scores_and_losses_of_different_rows_are_refused() -> None:
    with pytest.raises(CertificateError, match="scores and losses must cover the same rows"):
        fixed_sequence(np.ones(400), np.zeros(399, dtype=bool), np.array([0.5]), 0.01, 0.05)


@pytest.mark.parametrize("grid", [[], [0.1, 0.5], [0.5, 0.5]])
def test_a_grid_that_does_not_descend_is_a_bug(grid: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly descending"):
        fixed_sequence(np.ones(400), np.zeros(400, dtype=bool), np.array(grid), 0.01, 0.05)


def test_cost_of_a_cascade() -> None:
    assert cost_of_stages([0.02, 1.0], 0.01, [0.1]) == pytest.approx(0.13)


@given(seed=st.integers(0, 2**16), n=st.integers(100, 400))
def test_escalated_losses_count_where_rows_are_escalated(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    scores, lost, lost_above = random.random(n).round(2), random.random(n) < 0.05, random.random(n) < 0.02
    grid = np.array([0.9, 0.5, 0.1, ACCEPT_ALL])
    curve = fixed_sequence(scores, lost, grid, 0.1, 0.05, lost_above).curve
    for point, threshold in zip(curve, grid, strict=True):
        accepted = scores >= threshold
        assert point.losses == int(lost[accepted].sum() + lost_above[~accepted].sum())
        assert point.p_value == pytest.approx(p_value(point.losses, n, 0.1))


def test_the_walk_stops_at_the_first_failure_even_if_a_later_threshold_would_pass() -> None:
    n = 200
    scores, lost = np.linspace(0, 1, n), np.zeros(n, dtype=bool)
    lost_above = np.zeros(n, dtype=bool)
    lost_above[100:150] = True  # lost if escalated: a middling threshold loses all, a lenient one none
    certified = fixed_sequence(scores, lost, np.array([0.99, 0.8, 0.1]), 0.1, 0.05, lost_above)
    assert [point.p_value <= 0.05 for point in certified.curve] == [False, False, True]
    assert certified.point is None
