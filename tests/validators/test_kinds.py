import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.validators import Validator

VALIDATORS = [Validator.make(name) for name in Validator.names()]


@st.composite
def probabilities(draw):
    rows, labels = draw(st.integers(1, 6)), draw(st.integers(2, 60))
    seed, scale = draw(st.integers(0, 2**16)), draw(st.floats(0.1, 30))
    logits = np.random.default_rng(seed).normal(scale=scale, size=(rows, labels))
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


@pytest.mark.parametrize("validator", VALIDATORS, ids=lambda v: v.name)
@given(p=probabilities())
def test_scores_depend_on_each_row_alone(validator, p):
    inputs = [np.array([1, 2, 3])] * len(p)
    scores = validator.score(inputs, p)
    assert scores.shape == (len(p),) and np.isfinite(scores).all()
    for row in range(len(p)):
        assert validator.score(inputs[:1], p[row : row + 1])[0] == scores[row]


@pytest.mark.parametrize("validator", VALIDATORS, ids=lambda v: v.name)
def test_certainty_scores_higher_than_doubt(validator):
    p = np.array([[1.0, 0.0, 0.0], [0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]])
    scores = validator.score([np.array([1])] * 4, p)
    assert (np.diff(scores) < 0).all()


def test_known_values():
    p, ids = np.array([[0.5, 0.3, 0.2]]), [np.array([1])]
    score = {v.name: v.score(ids, p)[0] for v in VALIDATORS}
    assert score["max_probability"] == 0.5
    assert score["margin"] == pytest.approx(0.2)
    assert score["entropy"] == pytest.approx(float((p * np.log(p)).sum()))
