import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as oracle

from lspm_ray.tuning import finalists
from lspm_ray.tuning.finalists import Answers, interval, level, resample, score

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "loss")


def sample(n, k, skill, seed):
    """Logits [n, k] and labels [n] of some of the k classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, max(1, k - seed % 3), n)
    logits = random.normal(size=(n, k))
    logits[np.arange(n), labels] += skill
    return logits.astype(np.float32), labels


rows = st.builds(sample, st.integers(1, 60), st.integers(2, 6), st.floats(0, 4), st.integers(0, 9999))


def expected(logits, labels):
    """By scikit-learn, over the classes that occur in the labels."""
    guess = logits.argmax(axis=1)
    macro = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return {
        "accuracy": oracle.accuracy_score(labels, guess),
        "balanced_accuracy": oracle.recall_score(labels, guess, **macro),
        "macro_f1": oracle.f1_score(labels, guess, **macro),
        "loss": oracle.log_loss(labels, probabilities, labels=np.arange(logits.shape[1])),
    }


@given(rows)
def test_scores_equal_scikit_learn(data):
    logits, labels = data
    for metric, value in expected(logits, labels).items():
        assert score(metric, logits, labels) == pytest.approx(value, abs=1e-9), metric


@given(rows)
def test_balanced_accuracy_is_that_of_scikit_learn(data):
    logits, labels = data
    guess = logits.argmax(axis=1)
    if set(guess) <= set(labels) and len(set(labels)) > 1:  # it warns of other classes
        value = oracle.balanced_accuracy_score(labels, guess)
        assert score("balanced_accuracy", logits, labels) == pytest.approx(value)


@pytest.mark.parametrize("metric", METRICS)
def test_resamples_are_the_scores_of_rows_drawn_again(metric):
    """Few rows, so that every outcome comes often: their mean and spread are those of drawing by hand."""
    logits, labels = sample(12, 3, 1.0, 3)
    drawn = resample(metric, [Answers(labels, logits[None])], seed=1)[0]
    assert drawn.shape == (1000,)
    random = np.random.default_rng(0)
    picks = (random.integers(0, 12, 12) for _ in range(2000))
    byhand = np.array([score(metric, logits[pick], labels[pick]) for pick in picks])
    assert drawn.mean() == pytest.approx(byhand.mean(), abs=5 * byhand.std() / 1000**0.5)
    assert drawn.std() == pytest.approx(byhand.std(), rel=0.15)


def test_the_spread_of_accuracy_is_that_of_theory():
    logits, labels = sample(400, 2, 1.0, 0)
    accuracy = score("accuracy", logits, labels)
    drawn = resample("accuracy", [Answers(labels, logits[None])])[0]
    assert drawn.var(ddof=1) == pytest.approx(accuracy * (1 - accuracy) / 400, rel=0.15)
    assert drawn.mean() == pytest.approx(accuracy, abs=0.005)


def test_resamples_are_means_over_seeds_on_the_same_rows_for_all_points():
    first, labels = sample(50, 3, 1.0, 0)
    second = sample(50, 3, 0.0, 1)[0]
    alone = [resample("macro_f1", [Answers(labels, logits[None])], seed=3)[0] for logits in (first, second)]
    both, again = resample(
        "macro_f1", [Answers(labels, np.stack([first, second])), Answers(labels, second[None])], seed=3
    )
    assert both == pytest.approx((alone[0] + alone[1]) / 2)
    assert again == pytest.approx(alone[1])
    assert not np.array_equal(alone[0], resample("macro_f1", [Answers(labels, first[None])], seed=4)[0])


def test_many_rows_are_drawn_in_parts(monkeypatch):
    logits, labels = sample(30, 2, 1.0, 0)
    monkeypatch.setattr(finalists, "_DRAWS_AT_ONCE", 30 * 64)
    drawn = resample("accuracy", [Answers(labels, logits[None])])[0]
    assert drawn.shape == (1000,)
    assert len(np.unique(drawn[:64])) > 3
    assert not np.array_equal(drawn[:64], drawn[64:128])


def test_intervals_by_hand():
    """Student's t with two degrees of freedom: 4.302653."""
    found = interval([0.7, 0.8, 0.9], None)
    half = 4.302653 * 0.1 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 0.8 + half))
    drawn = np.array([0.7, 0.9] * 500)
    alone = interval([0.8], drawn)
    assert (alone.value, alone.high - 0.8, 0.8 - alone.low) == pytest.approx(
        (0.8, 1.959964 * drawn.std(ddof=1), 1.959964 * drawn.std(ddof=1))
    )
    # Both: variances add up; one part of 0.01 / 3 has two degrees of freedom, the other very many.
    both = interval([0.7, 0.8, 0.9], drawn)
    variance, seeds = 0.01 / 3 + drawn.var(ddof=1), 0.01 / 3
    from scipy.stats import t

    assert both.high - both.value == pytest.approx(t.ppf(0.975, 2 * (variance / seeds) ** 2) * variance**0.5)
    exact = interval([0.5, 0.5], None)
    assert (exact.low, exact.value, exact.high) == (0.5, 0.5, 0.5)


def answers(random, n, seeds, quality, easy):
    """Answers of trainings whose accuracy varies with the seed, on rows that are easier or harder for all."""
    level = quality + random.normal(0, 0.4, (seeds, 1))
    right = random.normal(level + easy, 1) > 0
    return np.stack([np.where(right, 1.0, -1.0), np.where(right, -1.0, 1.0)], axis=2).astype(np.float32)


def scores(made, metric="accuracy"):
    return [score(metric, logits, made.labels) for logits in made.logits]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Over fresh seeds and fresh rows. Too wide is no better than too narrow."""
    random = np.random.default_rng(0)
    labels = np.zeros(80, dtype=np.int64)
    # A row is right if the sum of three normals and the quality is above zero.
    from scipy.stats import norm

    truth = norm.cdf(0.8 / (0.4**2 + 0.5**2 + 1) ** 0.5)
    covered = []
    for _ in range(300):
        made = Answers(labels, answers(random, 80, 3, 0.8, random.normal(0, 0.5, 80)))
        found = interval(scores(made), resample("accuracy", [made])[0])
        covered.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.985


def differences(random, better, seeds=3, n=80):
    """The first point against the second, as finalists are compared."""
    labels, easy = np.zeros(n, dtype=np.int64), random.normal(0, 1.0, n)
    one, other = (Answers(labels, answers(random, n, seeds, 0.5 + gain, easy)) for gain in (better, 0.0))
    drawn = resample("accuracy", [one, other])
    return interval(np.subtract(scores(one), scores(other)).tolist(), drawn[0] - drawn[1])


def test_equal_points_are_seldom_told_apart_and_different_ones_often():
    random = np.random.default_rng(0)
    equal = [differences(random, 0.0) for _ in range(200)]
    assert np.mean([not found.low <= 0 <= found.high for found in equal]) <= 0.07
    assert np.mean([differences(random, 1.5).low > 0 for _ in range(40)]) > 0.6
    exact = Answers(np.zeros(80, dtype=np.int64), answers(random, 80, 3, 0.5, np.zeros(80)))
    drawn = resample("accuracy", [exact, exact])
    found = interval([0.0, 0.0, 0.0], drawn[0] - drawn[1])
    assert (found.low, found.high) == (0, 0)


def test_comparing_on_the_same_rows_is_sharper():
    random = np.random.default_rng(1)
    labels, easy = np.zeros(200, dtype=np.int64), random.normal(0, 5.0, 200)  # hard for one is hard for all
    one, other = (Answers(labels, answers(random, 200, 1, 0.5, easy)) for _ in range(2))
    paired = resample("accuracy", [one, other])
    apart = resample("accuracy", [one], seed=1)[0] - resample("accuracy", [other], seed=2)[0]
    assert (paired[0] - paired[1]).std() < 0.7 * apart.std()


def test_equal_points_are_told_apart_as_rarely_as_promised_though_the_best_is_picked():
    random = np.random.default_rng(5)
    false = 0
    for _ in range(300):
        scores = random.normal(size=(4, 5))  # four equal points, five seeds each
        best = int(scores.mean(axis=1).argmax())
        others = [row for place, row in enumerate(scores) if place != best]
        false += any(interval(list(scores[best] - row), None, level(4)).low > 0 for row in others)
    assert false / 300 < 0.07
