import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from lspm_ray.errors import CertificateError, ConfigError
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.selection.conformal import (
    EVERY_LABEL,
    ConformalConfig,
    LabelSets,
    coverage,
    fit_label_sets,
    names,
    nonconformity,
    stage_level,
)

KINDS = ["split", "mondrian", "aps", "raps"]


def world(rows, classes, seed, skill=1.0):
    """Probabilities of a model of any quality, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(rows, classes)) + np.linspace(0, 1.5, classes)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
    return softmax(skill * logits + random.normal(scale=1 - min(skill, 1.0), size=logits.shape)), labels


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 8), st.sampled_from([0.8, 0.9, 0.95]), st.floats(0.2, 3), st.integers(0, 2**16))
def test_coverage_holds_whatever_the_model_is_worth(kind, classes, level, skill, seed):
    """Mean coverage over calibration draws is at least the level; four standard errors are left for the simulation."""
    config, found = ConformalConfig(kind=kind), []
    for draw in range(40):
        p, labels = world(200, classes, [seed, draw], skill)
        sets = fit_label_sets(config, p[:100], labels[:100], level)
        found.append(coverage(sets.members(p[100:]), labels[100:])[0])
    assert np.mean(found) >= level - 4 * np.std(found) / np.sqrt(40) - 1e-9


def test_split_sets_cover_no_more_than_they_must():
    found = []
    for draw in range(300):
        p, labels = world(400, 6, draw)
        sets = fit_label_sets(ConformalConfig(), p[:199], labels[:199], 0.9)
        raw = nonconformity(sets.config, p[199:]) <= sets.limits
        found.append(coverage(raw, labels[199:])[0])
    assert np.mean(found) == pytest.approx(0.9, abs=0.006)


def test_mondrian_covers_the_class_that_the_average_forgets():
    common, rare = [], []
    for draw in range(200):
        random = np.random.default_rng(draw)
        labels = (random.random(1200) < 0.1).astype(np.int64)
        # The model gives the rare class a tenth whatever it sees.
        p = np.column_stack([np.full(1200, 0.9), np.full(1200, 0.1)]) + random.normal(scale=1e-3, size=(1200, 1))
        for kind, kept in (("split", common), ("mondrian", rare)):
            sets = fit_label_sets(ConformalConfig(kind=kind), p[:600], labels[:600], 0.85)
            fresh = labels[600:] == 1
            kept.append(coverage(sets.members(p[600:])[fresh], labels[600:][fresh])[0])
    assert np.mean(common) < 0.1 and np.mean(rare) > 0.84


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its probabilities."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_split_sets_are_those_of_mapie(level):
    p, labels = world(900, 5, 3)
    model = Given()
    model.classes_ = np.arange(5)
    oracle = SplitConformalClassifier(model, confidence_level=level, conformity_score="lac", prefit=True)
    expected = oracle.conformalize(p[:500], labels[:500]).predict_set(p[500:])[1][:, :, 0].astype(bool)
    sets = fit_label_sets(ConformalConfig(), p[:500], labels[:500], level)
    np.testing.assert_array_equal(nonconformity(sets.config, p[500:]) <= sets.limits, expected)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_adaptive_sets_are_as_large_as_those_of_mapie(level):
    """MAPIE draws at random how much of a label's own probability counts; here all of it does."""
    p, labels = world(4000, 5, 3)
    model = Given()
    model.classes_ = np.arange(5)
    oracle = SplitConformalClassifier(
        model, confidence_level=level, conformity_score="aps", prefit=True, random_state=0
    ).conformalize(p[:2000], labels[:2000])
    theirs = oracle.predict_set(p[2000:], conformity_score_params={"include_last_label": True})[1][:, :, 0]
    ours = fit_label_sets(ConformalConfig(kind="aps"), p[:2000], labels[:2000], level).members(p[2000:])
    (covered, size), (their_cover, their_size) = (coverage(m.astype(bool), labels[2000:]) for m in (ours, theirs))
    assert covered >= level - 0.02 and abs(covered - their_cover) < 0.03
    assert size == pytest.approx(their_size, rel=0.1)


@given(st.integers(2, 6), st.integers(0, 2**16))
def test_adaptive_sets_are_the_most_probable_labels_up_to_a_sum(classes, seed):
    p = softmax(np.random.default_rng(seed).normal(scale=2, size=(5, classes)))
    for kind, price in (("aps", 0.0), ("raps", 0.05)):
        config = ConformalConfig(kind=kind, price=0.05, free=2)
        found = LabelSets(config=config, level=0.9, limits=(0.85,) * classes, rows=9).members(p)
        for row, members in zip(p, found, strict=True):
            expected, total = {int(row.argmax())}, 0.0
            for rank, label in enumerate(np.argsort(-row), start=1):
                total += row[label]
                if total + price * max(rank - 2, 0) <= 0.85:
                    expected.add(int(label))
            assert set(np.flatnonzero(members)) == expected


def test_known_values():
    p = np.array([[0.5, 0.3, 0.2]])
    assert nonconformity(ConformalConfig(kind="split"), p).tolist() == [[0.5, 0.7, 0.8]]
    np.testing.assert_allclose(nonconformity(ConformalConfig(kind="aps"), p), [[0.5, 0.8, 1.0]])
    raps = ConformalConfig(kind="raps", price=0.1, free=1)
    np.testing.assert_allclose(nonconformity(raps, p), [[0.5, 0.9, 1.2]])
    sets = LabelSets(config=raps, level=0.9, limits=(0.95, 0.95, 0.95), rows=9)
    assert names(sets.members(p), p, ["a", "b", "c"]) == [("a", "b")]


def test_too_few_rows_leave_no_label_out():
    p, labels = world(18, 3, 0)
    assert fit_label_sets(ConformalConfig(), p, labels, 0.95).limits == (EVERY_LABEL,) * 3
    p, labels = world(19, 3, 0)
    assert fit_label_sets(ConformalConfig(), p, labels, 0.95).limits[0] < 1
    with pytest.raises(CertificateError, match="need calibration rows"):
        fit_label_sets(ConformalConfig(), p[:0], labels[:0], 0.95)


def test_the_answer_is_always_in_its_set():
    p = np.array([[0.4, 0.35, 0.25]])
    sets = LabelSets(config=ConformalConfig(), level=0.9, limits=(0.1, 0.1, 0.1), rows=9)
    assert sets.members(p).tolist() == [[True, False, False]]


def test_whichever_stage_answers_the_served_sets_cover():
    """Even where the stage is chosen to make them miss: the label is missed only if a stage misses it."""
    level, found = stage_level(0.9, 2), []
    assert level == pytest.approx(0.95)
    for draw in range(100):
        first, labels = world(600, 4, draw)
        random = np.random.default_rng(draw)
        last = softmax(np.log(first) + random.normal(size=first.shape))
        missed = [
            ~sets.members(p[300:])[np.arange(300), labels[300:]]
            for p in (first, last)
            for sets in [fit_label_sets(ConformalConfig(), p[:300], labels[:300], level)]
        ]
        found.append(1 - (missed[0] | missed[1]).mean())
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize(
    "raw", [{"coverage": 1.0}, {"coverage": 0}, {"kind": "magic"}, {"price": -1}, {"kind": "raps", "free": -1}]
)
def test_nonsense_is_refused(raw):
    with pytest.raises(ConfigError):
        ConformalConfig.parse(raw)


def test_only_mondrian_has_a_limit_per_label():
    with pytest.raises(ConfigError, match="only `mondrian`"):
        LabelSets.parse({"config": {}, "level": 0.9, "limits": [0.1, 0.2], "rows": 5})
