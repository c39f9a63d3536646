import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.audit.drift import LEAST_ROWS, Reference, Window, compare, embeddings, pooled, psi, reference


def texts(rng: np.random.Generator, rows: int, top: int = 300) -> list[np.ndarray]:
    return [rng.integers(0, top, size=rng.integers(5, 30)) for _ in range(rows)]


def window(ref: Reference, scores: np.ndarray, inputs: list[np.ndarray]) -> Window:
    counts = np.bincount(ref.bins(scores), minlength=len(ref.shares))
    return Window(
        scores=tuple(counts.tolist()),
        rows=len(inputs),
        features=tuple(ref.embed(inputs).sum(axis=0).tolist()),
    )


@pytest.fixture(scope="module")
def ref() -> Reference:
    rng = np.random.default_rng(0)
    return reference(rng.beta(8, 2, size=600), texts(rng, 600))


def test_windows_like_the_calibration_rows_hardly_ever_warn(ref: Reference):
    rng = np.random.default_rng(1)
    found = [compare(window(ref, rng.beta(8, 2, size=400), texts(rng, 256)), ref).warnings for _ in range(60)]
    assert sum(map(bool, found)) <= 1


def test_other_scores_and_other_inputs_warn(ref: Reference):
    rng = np.random.default_rng(2)
    scores = compare(window(ref, rng.beta(2, 2, size=400), texts(rng, 256)), ref)
    assert [warning.partition(" ")[0] for warning in scores.warnings] == ["scores"]
    inputs = compare(window(ref, rng.beta(8, 2, size=400), texts(rng, 256, top=150)), ref)
    assert [warning.partition(" ")[0] for warning in inputs.warnings] == ["inputs"]


def test_little_says_nothing(ref: Reference):
    rng = np.random.default_rng(3)
    found = compare(window(ref, rng.random(LEAST_ROWS - 1), texts(rng, LEAST_ROWS - 1, top=5)), ref)
    assert (found.psi, found.mmd, found.warnings) == (None, None, ())


@given(st.lists(st.integers(1, 50), min_size=2, max_size=10))
def test_psi_is_zero_for_equal_shares_only_and_never_negative(counts: list[int]):
    found = np.array(counts)
    assert psi(found, found / found.sum()) < 0.05
    assert psi(found, np.full(len(counts), 1 / len(counts))) >= 0


def test_windows_add_up(ref: Reference):
    rng = np.random.default_rng(4)
    scores, inputs = rng.random(200), texts(rng, 200)
    parts = [window(ref, scores[:90], inputs[:90]), Window(), window(ref, scores[90:], inputs[90:])]
    whole, found = window(ref, scores, inputs), pooled(parts)
    assert (found.scores, found.rows) == (whole.scores, whole.rows)
    assert found.features == pytest.approx(whole.features)


def test_an_embedding_depends_on_its_text_alone():
    short, long = np.array([1, 2, 3]), np.array([5000, 9000])
    together = embeddings([short, long])
    assert np.array_equal(embeddings([short])[0], together[0])
    assert not np.allclose(together[0], together[1])


def test_scores_that_are_all_equal_are_no_trouble():
    found = reference(np.ones(50), texts(np.random.default_rng(5), 50))
    assert sum(found.shares) == pytest.approx(1)
    assert found.bins(np.array([np.nan])).tolist() == [len(found.shares) - 1]
