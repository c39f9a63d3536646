from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.metrics.calibration import expected_calibration_error
from numpy.typing import NDArray
from scipy.stats import binomtest, multinomial
from sklearn import metrics as oracle

from lspm_ray.errors import DataError
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.evaluation.metrics import (
    Metrics,
    compare,
    evaluate,
    paired_difference,
    proportion,
    reliability_bins,
)

Array = NDArray[Any]
MACRO = ("balanced_accuracy", "macro_recall", "macro_precision", "macro_f1")
ESTIMATES = ("accuracy", *MACRO, "log_loss", "calibration_error")


def names(k: int) -> list[str]:
    return [f"class {i}" for i in range(k)]


def sample(n: int, k: int, skill: float, seed: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, k, n)
    logits = generator.normal(size=(n, k))
    logits[np.arange(n), labels] += skill
    return logits.astype(np.float32), labels


data = st.builds(sample, st.integers(1, 120), st.integers(2, 60), st.floats(0, 6), st.integers(0, 9999))


@given(data)
def test_values_equal_scikit_learn(rows: tuple[Array, Array]) -> None:
    logits, labels = rows
    k, predicted, present = logits.shape[1], logits.argmax(axis=1), np.unique(labels)
    ours = evaluate(logits, labels, names(k), resamples=10)
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    expected = {
        "accuracy": oracle.accuracy_score(labels, predicted),
        "balanced_accuracy": oracle.recall_score(labels, predicted, **macro),
        "macro_recall": oracle.recall_score(labels, predicted, **macro),
        "macro_precision": oracle.precision_score(labels, predicted, **macro),
        "macro_f1": oracle.f1_score(labels, predicted, **macro),
        "log_loss": oracle.log_loss(labels, softmax(logits), labels=np.arange(k)),
    }
    for name, value in expected.items():
        assert getattr(ours, name).value == pytest.approx(value, abs=1e-9), name
    assert np.array_equal(ours.confusion, oracle.confusion_matrix(labels, predicted, labels=np.arange(k)))
    assert [c.support for c in ours.classes] == np.bincount(labels, minlength=k).tolist()
    assert ours.n == len(labels)


def test_balanced_accuracy_equals_scikit_learn_where_all_predicted_classes_occur() -> None:
    logits, labels = sample(2000, 7, 2, seed=3)
    ours = evaluate(logits, labels, names(7), resamples=10)
    assert ours.balanced_accuracy.value == pytest.approx(oracle.balanced_accuracy_score(labels, logits.argmax(axis=1)))


@given(data)
def test_every_interval_holds_its_value_and_every_share_lies_between_0_and_1(rows: tuple[Array, Array]) -> None:
    logits, labels = rows
    ours = evaluate(logits, labels, names(logits.shape[1]), resamples=20)
    for name in ESTIMATES:
        estimate = getattr(ours, name)
        assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.low >= 0, name
    for name in ("accuracy", *MACRO):
        assert getattr(ours, name).high <= 1, name


def test_absent_classes_are_named_and_left_out_of_averages() -> None:
    logits = np.eye(3)[[0, 0, 1, 2]]
    ours = evaluate(logits, np.array([0, 0, 1, 1]), names(3), resamples=10)
    assert ours.absent == ["class 2"]
    assert ours.classes[2].recall is None
    assert ours.balanced_accuracy.value == pytest.approx((1 + 0.5) / 2)
    assert ours.macro_precision.value == pytest.approx(1)


def test_a_class_that_is_never_predicted_has_precision_zero() -> None:
    ours = evaluate(np.tile([[1.0, 0.0]], (10, 1)), np.repeat([0, 1], [8, 2]), names(2), resamples=50)
    assert ours.macro_precision.value == pytest.approx(0.4)
    assert ours.balanced_accuracy.value == 0.5


def test_one_class_only_is_measured_not_refused() -> None:
    ours = evaluate(np.tile([[1.0, 0.0]], (10, 1)), np.zeros(10, dtype=np.int64), names(2), resamples=10)
    assert ours.accuracy.value == ours.balanced_accuracy.value == 1


@pytest.mark.parametrize("name", ["accuracy", *MACRO])
def test_a_perfect_score_on_few_rows_is_not_certain(name: str) -> None:
    ours = evaluate(10 * np.eye(2)[[0, 1] * 20], np.array([0, 1] * 20), names(2), resamples=50)
    estimate = getattr(ours, name)
    assert estimate.high == 1
    assert 0.8 < estimate.low < 0.97


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "log_loss"])
@pytest.mark.parametrize("k", [2, 12])
def test_intervals_hold_the_truth_about_as_often_as_they_say(name: str, k: int) -> None:
    truth = getattr(evaluate(*sample(100_000, k, 2.5, seed=1), names(k), resamples=2), name).value
    estimates = (getattr(evaluate(*sample(300, k, 2.5, seed=s), names(k), resamples=200), name) for s in range(200))
    assert 178 <= sum(e.low <= truth <= e.high for e in estimates) <= 200


def test_calibration_error_of_a_calibrated_model_is_compatible_with_zero() -> None:
    lows = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        logits = 2 * generator.normal(size=(400, 4))
        labels = (logits + generator.gumbel(size=(400, 4))).argmax(axis=1)
        lows.append(evaluate(logits, labels, names(4), resamples=200).calibration_error.low)
    assert sum(low < 1e-3 for low in lows) >= 54


def test_calibration_error_of_an_overconfident_model_is_far_from_zero() -> None:
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(2000, 4))
    labels = (logits + generator.gumbel(size=(2000, 4))).argmax(axis=1)
    honest, loud = (evaluate(f * logits, labels, names(4), resamples=100).calibration_error for f in (1, 5))
    assert loud.low > 0.1 > honest.high


def test_interval_of_a_large_calibration_error_holds_it() -> None:
    def loud(n: int, seed: int) -> tuple[Array, Array]:
        generator = np.random.default_rng(seed)
        logits = 2 * generator.normal(size=(n, 4))
        return 5 * logits, (logits + generator.gumbel(size=(n, 4))).argmax(axis=1)

    truth = evaluate(*loud(100_000, 0), names(4), resamples=2).calibration_error.value
    estimates = (evaluate(*loud(400, s), names(4), resamples=200).calibration_error for s in range(1, 101))
    assert sum(e.low <= truth <= e.high for e in estimates) >= 87


def test_macro_f1_of_two_classes_is_as_uncertain_as_accuracy() -> None:
    """One error lowers the F1 of both classes; an interval that took them as independent would be a fifth too short."""
    ours = evaluate(*sample(1000, 2, 0.5, seed=0), names(2))
    f1, accuracy = ours.macro_f1, ours.accuracy
    assert f1.value - f1.low > 0.9 * (accuracy.value - accuracy.low)
    assert f1.high - f1.value > 0.9 * (accuracy.high - accuracy.value)


@given(st.integers(100, 400), st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=25)
def test_calibration_error_equals_mapie_when_bins_divide_the_rows(n: int, k: int, seed: int) -> None:
    n -= n % 15
    logits, labels = sample(n, k, 1.0, seed)
    ours = evaluate(logits, labels, names(k), resamples=2).calibration_error.value
    probabilities = softmax(logits)
    order = probabilities.max(axis=1).argsort()  # mapie splits the rows as they come
    probabilities, labels = probabilities[order], labels[order]
    right = (probabilities.argmax(axis=1) == labels).astype(int)
    theirs = expected_calibration_error(right, probabilities, num_bins=15, split_strategy="array split")
    assert ours == pytest.approx(theirs, abs=1e-9)


@given(data)
def test_calibration_error_is_the_weighted_gap_of_the_plotted_bins(rows: tuple[Array, Array]) -> None:
    logits, labels = rows
    bins = reliability_bins(softmax(logits), labels)
    error = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / len(labels)
    assert evaluate(logits, labels, names(logits.shape[1]), resamples=2).calibration_error.value == pytest.approx(error)
    assert sum(b.count for b in bins) == len(labels)
    assert len(bins) <= 15
    assert all(b.count > 0 for b in bins)
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)


def test_ties_in_confidence_share_a_bin_so_that_row_order_does_not_matter() -> None:
    probabilities = np.array([[0.9, 0.1]] * 60 + [[0.7, 0.3]] * 40)
    labels = np.repeat([0, 1, 0, 1], [50, 10, 20, 20])
    order = np.random.default_rng(0).permutation(100)
    bins = reliability_bins(probabilities, labels)
    assert [(b.count, round(b.accuracy, 9)) for b in bins] == [(40, 0.5), (60, round(50 / 60, 9))]
    assert [b.count for b in reliability_bins(probabilities[order], labels[order])] == [40, 60]


@pytest.mark.parametrize("bins", [1, 3, 10, 15])
def test_bins_of_distinct_confidences_have_equal_mass(bins: int) -> None:
    logits, labels = sample(1500, 3, 1, seed=0)
    assert {b.count for b in reliability_bins(softmax(logits), labels, bins=bins)} == {1500 // bins}


def test_result_survives_json_and_repeats_itself() -> None:
    logits, labels = sample(200, 3, 1, seed=0)
    first = evaluate(logits, labels, names(3), seed=7)
    assert Metrics.model_validate_json(first.model_dump_json()) == first
    assert evaluate(logits, labels, names(3), seed=7) == first
    assert evaluate(logits, labels, names(3), seed=8) != first


def test_more_confidence_means_wider_intervals() -> None:
    logits, labels = sample(300, 4, 1, seed=0)
    narrow, wide = (evaluate(logits, labels, names(4), confidence=c) for c in (0.8, 0.99))
    for name in ESTIMATES:
        a, b = getattr(narrow, name), getattr(wide, name)
        assert b.high - b.low > a.high - a.low, name


def test_label_names_must_match_the_logits() -> None:
    with pytest.raises(DataError, match="label_names: 3 classes need as many names"):
        evaluate(np.zeros((2, 3)), np.zeros(2, dtype=int), ["yes", "no"])


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_proportion_equals_scipy(n: int, draw: st.DataObject, confidence: float) -> None:
    k = draw.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    ours = proportion(k, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert ours.value == k / n


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_paired_difference_and_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs).T
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(a.mean() - b.mean())
    assert -1 <= difference.low <= difference.value <= difference.high <= 1
    mirrored = paired_difference(b, a)
    assert (mirrored.low, mirrored.high) == pytest.approx((-difference.high, -difference.low))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    expected = 1.0 if only_a + only_b == 0 else binomtest(only_a, only_a + only_b, 0.5).pvalue
    found = compare(a, b)
    assert found.p_value == pytest.approx(expected)
    assert found.distinguishable == (expected <= 0.05)
    assert found.n == len(pairs)


def test_paired_difference_keeps_its_coverage() -> None:
    """Exact coverage over all outcomes (only a right, only b right, else) of 40 rows."""
    n, only_a, only_b = 40, 0.1, 0.05
    covered = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            a, b = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
            a[:i], b[i : i + j] = True, True
            interval = paired_difference(a, b)
            if interval.low <= only_a - only_b <= interval.high:
                covered += multinomial.pmf([i, j, n - i - j], n, [only_a, only_b, 1 - only_a - only_b])
    assert covered >= 0.94


def test_paired_difference_by_hand() -> None:
    a, b = np.repeat([True, True], [9, 1]), np.repeat([False, True], [9, 1])
    variance = (10 / 12 + 1 / 12 - (9 / 12) ** 2) / 12
    interval = paired_difference(a, b)
    assert interval.value == 0.9
    assert interval.low == pytest.approx(9 / 12 - 1.959964 * variance**0.5, rel=1e-6)
    assert interval.high == 1


@pytest.mark.parametrize(("only_a", "distinguishable"), [(5, False), (6, True)])
def test_the_verdict_is_mcnemars(only_a: int, distinguishable: bool) -> None:
    found = compare(np.ones(50, dtype=bool), np.arange(50) >= only_a)
    assert found.p_value == pytest.approx(2 * 0.5**only_a)
    assert found.distinguishable is distinguishable


def test_equal_models_differ_by_zero_but_not_with_certainty() -> None:
    right = np.ones(100, dtype=bool)
    difference = paired_difference(right, right)
    assert difference.value == 0
    assert difference.high == -difference.low == pytest.approx(1.95996 * np.sqrt(2 / 102**2), rel=1e-5)


def test_comparison_says_in_words_what_it_found() -> None:
    base = np.ones(1000, dtype=bool)
    bad, close = base.copy(), base.copy()
    bad[:100], close[:1] = False, False
    assert (
        compare(base, bad)
        .sentence("the full model", "the linear baseline")
        .startswith("the full model is better than the linear baseline (accuracy +10.00 points, interval +8.")
    )
    assert compare(bad, base).sentence("A", "B").startswith("A is worse than B (accuracy -10.00 points")
    assert (
        compare(close, base)
        .sentence("the full model", "the linear baseline")
        .startswith("the full model is not distinguishable from the linear baseline (accuracy -0.10 points")
    )


@pytest.mark.parametrize(("a", "b"), [(np.ones(3), np.ones(2)), (np.ones(0), np.ones(0)), (np.ones((2, 2)),) * 2])
def test_models_compared_on_different_rows_are_refused(a: Array, b: Array) -> None:
    with pytest.raises(DataError, match="on the same rows, at least one"):
        compare(a.astype(bool), b.astype(bool))
