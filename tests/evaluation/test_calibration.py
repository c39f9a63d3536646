from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax as scipy_softmax
from sklearn.isotonic import IsotonicRegression

from lspm_ray.errors import ConfigError, DataError
from lspm_ray.evaluation.calibration import (
    Calibrator,
    check_rows,
    fit_calibrator,
    fit_temperature,
    log_softmax,
    probabilities,
    softmax,
)

Array = NDArray[Any]


def sample(n: int, k: int, temperature: float, seed: int = 0) -> tuple[Array, Array]:
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(seed)
    logits = 4 * generator.normal(size=(n, k))
    noise = generator.gumbel(size=(n, k))
    return logits.astype(np.float32), (logits / temperature + noise).argmax(axis=1)


@given(st.integers(1, 20), st.integers(2, 60), st.floats(0.01, 100), st.integers(0, 999))
def test_softmax_equals_scipy(n: int, k: int, temperature: float, seed: int) -> None:
    logits = 30 * np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
    ours = softmax(logits, temperature)
    np.testing.assert_allclose(ours, scipy_softmax(logits.astype(np.float64) / temperature, axis=1), atol=1e-12)
    np.testing.assert_allclose(ours.sum(axis=1), 1)


def test_softmax_of_huge_logits_neither_overflows_nor_loses_the_loss() -> None:
    logits = np.array([[3e38, -3e38], [-3e38, 3e38]], dtype=np.float32)
    assert softmax(logits).tolist() == [[1, 0], [0, 1]]
    assert log_softmax(np.array([[0.0, 2000.0]]))[0, 0] == -2000


def test_softmax_leaves_its_input_alone() -> None:
    logits = np.array([[1.0, 2.0]])
    softmax(logits)
    assert logits.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("k", [2, 8, 60])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_recovers_the_one_the_labels_were_drawn_with(k: int, temperature: float) -> None:
    assert fit_temperature(*sample(4000, k, temperature)) == pytest.approx(temperature, rel=0.1)


def test_temperature_minimises_the_likelihood_when_rows_abound() -> None:
    logits, labels = sample(3000, 5, 1.7)

    def nll(t: Array) -> float:
        return float(-log_softmax(logits, t[0])[np.arange(3000), labels].mean())

    plain = minimize(nll, [1.0], method="Nelder-Mead").x[0]
    assert fit_temperature(logits, labels) == pytest.approx(plain, rel=2e-3)


@given(st.integers(1, 50), st.integers(2, 6), st.floats(1e-6, 1e6), st.integers(0, 999))
def test_temperature_is_finite_and_positive_on_anything(n: int, k: int, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = scale * generator.normal(size=(n, k)), generator.integers(0, k, n)
    assert 1e-3 <= fit_temperature(logits, labels) <= 1e3


def test_constant_logits_say_nothing_about_the_temperature() -> None:
    assert fit_temperature(np.ones((50, 3)), np.zeros(50, dtype=np.int64)) == pytest.approx(1, abs=1e-3)


def test_rows_all_right_do_not_saturate_the_probabilities() -> None:
    logits = np.random.default_rng(0).uniform(3, 6, size=(500, 1)) * np.array([[1.0, 0.0]])
    temperature = fit_temperature(logits, np.zeros(500, dtype=np.int64))
    assert 0.2 < temperature < 1
    assert len(np.unique(softmax(logits, temperature).max(axis=1).astype(np.float32))) > 400


def test_logits_worse_than_chance_are_flattened() -> None:
    assert fit_temperature(np.tile([[5.0, 0.0]], (200, 1)), np.ones(200, dtype=np.int64)) > 20


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros(3), np.zeros(3, dtype=int), "at least two classes"),
        (np.zeros((3, 1)), np.zeros(3, dtype=int), "at least two classes"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "no rows"),
        (np.array([[0, np.nan], [0, 1]]), np.zeros(2, dtype=int), "1 of 2 rows hold NaN"),
        (np.array([[0, np.inf], [0, 1]]), np.zeros(2, dtype=int), "1 of 2 rows hold NaN"),
        (np.zeros((3, 2)), np.zeros(2, dtype=int), r"one per row of logits \(3\)"),
        (np.zeros((3, 2)), np.zeros(3), "integer class indices"),
        (np.zeros((3, 2)), np.array([0, 2, -1]), r"between 0 and 1 \(got \[-1, 2\]\)"),
    ],
)
def test_bad_rows_are_refused(logits: Array, labels: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_rows(logits, labels)


def skewed(n: int, k: int, seed: int = 0) -> tuple[Array, Array]:
    """Logits with a bias and a scale per class that no temperature can undo."""
    logits, labels = sample(n, k, 1.0, seed)
    random = np.random.default_rng([seed, 1])
    return (logits * random.uniform(0.5, 2, k) + random.normal(size=k)).astype(np.float32), labels


def log_loss(p: Array, labels: Array) -> float:
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


@given(st.sampled_from(["vector", "isotonic"]), st.integers(2, 40), st.integers(2, 8), st.integers(0, 2**16))
def test_calibration_never_changes_an_answer_and_looks_at_each_row_alone(kind, n: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=random.uniform(0.1, 20), size=(n, k)).astype(np.float32)
    temperature, calibrator = fit_calibrator(kind, logits, random.integers(0, k, n))
    found = probabilities(logits, temperature, calibrator)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(1) == logits.argmax(1)).all()
    for row in range(min(n, 5)):
        assert (probabilities(logits[row : row + 1], temperature, calibrator)[0] == found[row]).all()


@pytest.mark.parametrize("kind", ["vector", "isotonic"])
def test_what_a_temperature_cannot_undo_is_undone(kind) -> None:
    if kind == "vector":
        logits, labels = skewed(4000, 4)
    else:  # a quarter of the labels is drawn blindly: no temperature knows that certainty ends at 0.8
        logits, labels = sample(4000, 4, 1.0)
        random = np.random.default_rng(1)
        labels = np.where(random.random(4000) < 0.25, random.integers(0, 4, 4000), labels)
    fresh, truth = logits[2000:], labels[2000:]
    temperature, calibrator = fit_calibrator(kind, logits[:2000], labels[:2000])
    better, plain = probabilities(fresh, temperature, calibrator), probabilities(fresh, temperature)
    assert log_loss(better, truth) < log_loss(plain, truth) - 0.01


def test_vector_scaling_minimises_its_likelihood() -> None:
    logits, labels = skewed(3000, 3, seed=4)
    temperature, calibrator = fit_calibrator("vector", logits, labels)
    logs, rows = log_softmax(logits, temperature), np.arange(3000)

    def loss(x: Array, y: Array) -> float:
        prior = 0.5 * (np.log(x) ** 2).sum() + 0.5 * (y**2).sum()
        return float(-log_softmax(logs * x + y)[rows, labels].sum() + prior)

    x, y = np.array(calibrator.x), np.array(calibrator.y)
    best = loss(x, y)
    random = np.random.default_rng(0)
    for _ in range(50):
        assert loss(x * np.exp(random.normal(scale=0.02, size=3)), y + random.normal(scale=0.02, size=3)) > best - 1e-3


def test_isotonic_is_the_regression_of_all_classes_but_for_a_thousandth() -> None:
    logits, labels = skewed(500, 3)
    temperature, calibrator = fit_calibrator("isotonic", logits, labels)
    p = softmax(logits, temperature)
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(p.ravel(), np.eye(3)[labels].ravel())
    ours = np.interp(p.ravel(), calibrator.x, calibrator.y)
    np.testing.assert_allclose(ours, 0.999 * fitted.predict(p.ravel()) + 0.001 * p.ravel(), atol=1e-12)


def test_a_class_above_the_answer_shares_with_it() -> None:
    calibrator = Calibrator(kind="vector", x=(1.0, 1.0, 1.0), y=(0.0, 2.0, 0.0))
    logs = np.log(np.array([[0.5, 0.3, 0.2], [0.05, 0.9, 0.05]]))
    found = calibrator.probabilities(logs)
    plain = softmax(logs + np.array([0.0, 2.0, 0.0]))
    np.testing.assert_allclose(found[0], [(plain[0, 0] + plain[0, 1]) / 2] * 2 + [plain[0, 2]])
    assert found[0].argmax() == 0 and found[0, 0] > found[0, 1]
    np.testing.assert_array_equal(found[1], plain[1])


def test_temperature_alone_needs_nothing_more() -> None:
    logits, labels = sample(300, 3, 2.0)
    assert fit_calibrator("temperature", logits, labels) == (fit_temperature(logits, labels), None)


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "vector", "x": [1.0], "y": [0.0]},
        {"kind": "vector", "x": [1.0, 2.0], "y": [0.0]},
        {"kind": "isotonic", "x": [0.0, 0.5, 0.5], "y": [0.0, 0.1, 0.2]},
        {"kind": "isotonic", "x": [0.0, 1.0], "y": [0.5, 0.5]},
        {"kind": "platt", "x": [0.0, 1.0], "y": [0.0, 1.0]},
    ],
)
def test_numbers_that_are_no_calibrator_are_refused(raw) -> None:
    with pytest.raises(ConfigError):
        Calibrator.parse(raw)
