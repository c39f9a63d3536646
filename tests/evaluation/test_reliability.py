import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from lspm_ray.errors import DataError
from lspm_ray.evaluation.calibration import probabilities, softmax
from lspm_ray.evaluation.reliability import before_and_after, reliability


def test_known_values() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    found = reliability(p, np.array([0, 1, 1, 1]), bins=10)
    # Bins of width 0.1 hold 0.9 twice (one of two right), 0.6 and 0.8 (both right).
    assert found.ece == pytest.approx((abs(1.8 - 1) + abs(0.6 - 1) + abs(0.8 - 1)) / 4)
    assert found.brier == pytest.approx(2 * (0.01 + 0.81 + 0.16 + 0.04) / 4)
    assert found.log_loss == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.8]).mean())
    # Two classes: the bins of the second mirror those of the first.
    assert found.classwise_ece == pytest.approx((abs(1.8 - 1) + 0.4 + 0.2) / 4)
    assert found.rows == sum(entry.count for entry in found.bins) == 4


@given(st.integers(2, 6), st.integers(0, 2**16))
def test_scores_are_those_of_scikit_learn(k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    p, labels = softmax(random.normal(scale=3, size=(40, k))), random.integers(0, k, 40)
    found = reliability(p, labels)
    assert found.log_loss == pytest.approx(log_loss(labels, p, labels=range(k)))
    assert found.brier == pytest.approx(brier_score_loss(labels, p, labels=range(k), scale_by_half=False))


def test_labels_drawn_from_the_probabilities_leave_only_noise() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20000, 4))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
    found = before_and_after("m", 3 * logits, labels, 3.0, None)
    for name in ("ece", "adaptive_ece", "classwise_ece"):
        assert getattr(found.after, name) < 0.02 < getattr(found.before, name) / 2
    assert found.after.log_loss < found.before.log_loss and found.after.brier < found.before.brier
    np.testing.assert_allclose(probabilities(3 * logits, 3.0), softmax(logits))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        reliability(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
