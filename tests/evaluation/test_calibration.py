from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax as scipy_softmax

from lspm_ray.errors import DataError
from lspm_ray.evaluation.calibration import check_rows, fit_temperature, log_softmax, softmax

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
