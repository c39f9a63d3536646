from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from lspm_ray.errors import ConfigError
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.validators import Examples, Outputs, Training, Validator
from lspm_ray.validators.embedding import embed

VOCABULARY = 300
KINDS = [
    *Validator.names(),
    {"validator": "familiarity", "distance": "mahalanobis"},
    {"validator": "familiarity", "distance": "knn", "neighbours": 3},
    {"validator": "deferral", "model": "boosting"},
    {"validator": "combined", "of": ["margin", "energy", "known_tokens"]},
]
VALIDATORS = [Validator.make(kind) for kind in KINDS]


def outputs_of(logits, inputs=None, labels=None):
    logits = np.asarray(logits, dtype=np.float64)
    rows = [np.array([1, 2, 3])] * len(logits) if inputs is None else inputs
    names = [str(label) for label in range(logits.shape[1])]
    return Outputs(rows, logits, softmax(logits), names)


def topics(rows, seed):
    """Token ids of two topics with vocabularies of their own, and the topic."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    return [random.integers(1, 100, random.integers(3, 30)) + 100 * label for label in labels], labels


@cache
def examples(labels):
    random = np.random.default_rng(labels)
    inputs, _ = topics(300, 1)
    logits = random.normal(scale=2, size=(300, labels))
    losses = random.random(300) > softmax(logits).max(axis=1)
    return Examples(outputs_of(logits, inputs), losses, Training(*topics(400, 2)))


@cache
def state_of(validator_name, labels):
    validator = dict(zip(map(str, KINDS), VALIDATORS, strict=True))[validator_name]
    return validator.fit(examples(labels))


each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def parts(kind, labels):
    return VALIDATORS[[str(k) for k in KINDS].index(str(kind))], state_of(str(kind), labels)


@st.composite
def some_outputs(draw):
    rows, seed, scale = draw(st.integers(1, 6)), draw(st.integers(0, 2**16)), draw(st.floats(0.1, 60))
    random = np.random.default_rng(seed)
    inputs = [random.integers(0, VOCABULARY, n) for n in random.integers(0, 40, rows)]
    return outputs_of(random.normal(scale=scale, size=(rows, draw(st.sampled_from([2, 20])))), inputs)


@each_kind
@settings(max_examples=25, deadline=None)
@given(found=some_outputs())
def test_scores_are_finite_and_depend_on_each_row_alone(kind, found):
    validator, state = parts(kind, found.logits.shape[1])
    scores = validator.score(found, state)
    assert scores.shape == (len(found),) and np.isfinite(scores).all()
    for row in range(len(found)):
        assert validator.score(found[row : row + 1], state)[0] == scores[row]


@each_kind
def test_what_is_learnt_is_plain_arrays_that_survive_their_file_and_are_learnt_again_alike(kind):
    validator, state = parts(kind, 2)
    assert validator.learns == bool(state)
    again = validator.fit(examples(2))
    assert {name: a.tobytes() for name, a in again.items()} == {name: a.tobytes() for name, a in state.items()}
    stored = load(save(dict(state))) if state else {}
    found = examples(2).outputs
    np.testing.assert_array_equal(validator.score(found, stored), validator.score(found, state))


CONFIDENCE = ["max_probability", "margin", "entropy", "energy", "deferral", "combined"]


@pytest.mark.parametrize("kind", CONFIDENCE, ids=str)
def test_certainty_scores_higher_than_doubt(kind):
    validator, state = parts(kind, 2)
    found = outputs_of([[4.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    assert (np.diff(validator.score(found, state)) < 0).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "known_tokens"], ids=str)
def test_without_a_single_loss_there_is_still_an_order(kind):
    """A variant that never loses on the selection rows teaches nothing."""
    validator = VALIDATORS[[str(k) for k in KINDS].index(str(kind))]
    good = Examples(examples(2).outputs, np.zeros(300, dtype=bool), examples(2).training)
    scores = validator.score(good.outputs, validator.fit(good))
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 5


def test_known_values():
    p = np.array([[0.5, 0.3, 0.2]])
    found = Outputs([np.array([1])], np.log(p) + 7, p, ["a", "b", "c"])
    score = {name: Validator.make(name).score(found, {})[0] for name in ("max_probability", "margin", "entropy")}
    assert score["max_probability"] == 0.5
    assert score["margin"] == pytest.approx(0.2)
    assert score["entropy"] == pytest.approx(float((p * np.log(p)).sum()))
    assert Validator.make("energy").score(found, {})[0] == pytest.approx(7)
    logits = np.array([[3.0, 1.0]])
    warm = Validator.make({"validator": "energy", "temperature": 2.0}).score(outputs_of(logits), {})
    assert warm[0] == pytest.approx(2 * logsumexp(logits / 2))


def lesson(seed, rows=1500):
    """Losses come with long texts, which confidence cannot know."""
    random = np.random.default_rng(seed)
    inputs = [random.integers(1, 100, n) for n in random.integers(3, 60, rows)]
    logits = random.normal(scale=2, size=(rows, 3))
    losses = random.random(rows) < np.where(np.array([len(row) for row in inputs]) > 40, 0.5, 0.02)
    return Examples(outputs_of(logits, inputs), losses, Training(*topics(300, 2)))


@pytest.mark.parametrize("model", ["logistic", "boosting"])
def test_deferral_learns_what_confidence_misses(model):
    validator = Validator.make({"validator": "deferral", "model": model})
    state, fresh = validator.fit(lesson(0)), lesson(1)
    scores = validator.score(fresh.outputs, state)
    assert separation(scores, fresh.losses) > 0.8 > 0.6 > separation(fresh.outputs.probabilities.max(1), fresh.losses)


def separation(scores, losses):
    """Area under the ROC curve."""
    return float((scores[~losses][:, None] > scores[losses][None, :]).mean())


def test_boosted_trees_are_those_of_scikit_learn():
    from sklearn.ensemble import GradientBoostingClassifier

    from lspm_ray.validators.boosting import fit_trees, sum_of_trees

    random = np.random.default_rng(0)
    features, good = random.normal(size=(400, 5)), random.random(400) < 0.8
    good |= features[:, 0] > 0.3
    state = fit_trees(features, good)
    model = GradientBoostingClassifier(
        n_estimators=60, max_depth=2, learning_rate=0.1, min_samples_leaf=20, random_state=0
    ).fit(features, good)
    fresh = np.concatenate([features, random.normal(scale=3, size=(400, 5))])
    added = model.decision_function(fresh) - np.log(good.mean() / (1 - good.mean()))
    np.testing.assert_allclose(sum_of_trees(fresh, state), added, atol=1e-9)


def test_unigram_is_the_mean_log_probability_of_the_tokens():
    validator = Validator.make("familiarity")
    training = Training([np.array([1, 1, 2]), np.array([2, 1])], np.array([0, 1]))
    found = outputs_of(np.zeros((4, 2)), [np.array(r, dtype=int) for r in ([1], [1, 2], [9], [])])
    scores = validator.score(found, validator.fit(Examples(found, np.zeros(4, dtype=bool), training)))
    # Counts 0, 3 and 2 of the ids, and none of any other; one is added to each.
    p = np.log(np.array([1, 4, 3, 1]) / 9)
    np.testing.assert_allclose(scores, [p[1], (p[1] + p[2]) / 2, p[3], p[3]])


@pytest.mark.parametrize("distance", ["mahalanobis", "knn"])
def test_what_is_unlike_the_training_rows_is_less_familiar(distance):
    validator = Validator.make({"validator": "familiarity", "distance": distance})
    state = validator.fit(examples(2))
    known, _ = topics(100, 5)
    random = np.random.default_rng(6)
    strange = [random.integers(200, VOCABULARY, 20) for _ in range(100)]
    mixed = [np.concatenate([random.integers(1, 100, 10), random.integers(101, 200, 10)]) for _ in range(100)]
    score = {
        name: validator.score(outputs_of(np.zeros((100, 2)), rows), state)
        for name, rows in (("known", known), ("strange", strange), ("mixed", mixed))
    }
    assert np.median(score["known"]) > np.quantile(score["mixed"], 0.9)
    assert np.median(score["known"]) > score["strange"].max()


def test_neighbours_are_those_of_scikit_learn():
    validator = Validator.make({"validator": "familiarity", "distance": "knn", "neighbours": 4})
    state = validator.fit(examples(2))
    rows, _ = topics(20, 9)
    index = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(state["references"])
    expected = index.kneighbors(embed(rows, state))[0][:, -1]
    np.testing.assert_allclose(-validator.score(outputs_of(np.zeros((20, 2)), rows), state), expected, atol=1e-9)


def test_mahalanobis_is_the_distance_of_the_shrunken_covariance():
    validator = Validator.make({"validator": "familiarity", "distance": "mahalanobis", "dimensions": 5})
    found = examples(2)
    state = validator.fit(found)
    train = embed(found.training.inputs, state)
    means = [train[found.training.labels == label].mean(0) for label in (0, 1)]
    centred = train - np.stack(means)[found.training.labels]
    covariance = centred.T @ centred / len(train)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 5 * np.eye(5)
    rows, _ = topics(10, 9)
    expected = [min(np.sqrt((e - m) @ np.linalg.solve(covariance, e - m)) for m in means) for e in embed(rows, state)]
    np.testing.assert_allclose(-validator.score(outputs_of(np.zeros((10, 2)), rows), state), expected, rtol=1e-6)


def test_known_tokens_counts_those_of_enough_training_rows():
    training = Training([np.array([5, 5, 7]), np.array([7, 9])], np.array([0, 1]))
    found = outputs_of(np.zeros((4, 2)), [np.array(r, dtype=int) for r in ([5, 7], [5, 6], [6, 99], [])])
    score = {}
    for rows in (1, 2):
        validator = Validator.make({"validator": "known_tokens", "min_rows": rows})
        state = validator.fit(Examples(found, np.zeros(4, dtype=bool), training))
        score[rows] = validator.score(found, state).tolist()
    assert score == {1: [1.0, 0.5, 0.0, 1.0], 2: [0.5, 0.0, 0.0, 1.0]}


def test_usual_lengths_score_highest():
    validator = Validator.make("length")
    training = Training([np.ones(n, dtype=int) for n in range(10, 31)], np.zeros(21, dtype=int))
    rows = [np.ones(n, dtype=int) for n in (20, 12, 40, 1)]
    found = outputs_of(np.zeros((4, 2)), rows)
    scores = validator.score(found, validator.fit(Examples(found, np.zeros(4, dtype=bool), training)))
    assert scores[0] == 0 and scores[3] == scores.min() and scores[1] > scores[2]


def test_combined_is_monotone_in_every_score_and_uses_what_helps():
    validator = Validator.make({"validator": "combined", "of": ["max_probability", "length"]})
    found = lesson(0)
    state = validator.fit(found)
    assert (state["weights"] >= 0).all() and state["weights"][1] > 0
    fresh = lesson(1)
    alone = separation(fresh.outputs.probabilities.max(1), fresh.losses)
    assert separation(validator.score(fresh.outputs, state), fresh.losses) > alone


@pytest.mark.parametrize(
    "of", [["margin"], ["margin", "no_such"], "margin", [{"validator": "energy", "heat": 1}, "margin"]]
)
def test_combined_of_nonsense_is_refused(of):
    with pytest.raises(ConfigError):
        Validator.make({"validator": "combined", "of": of})


def test_buckets_must_be_a_power_of_two():
    with pytest.raises(ConfigError, match="power of two"):
        Validator.make({"validator": "familiarity", "buckets": 1000})
