import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.errors import CertificateError
from lspm_ray.evaluation.calibration import CALIBRATORS, probabilities
from lspm_ray.selection.plan import ModelRef, Plan, PlanStage
from lspm_ray.selection.risk import ACCEPT_ALL
from lspm_ray.selection.scorer import REFUSED, Scorer, digest_of_state, dump_states, fit_scorer, load_state
from lspm_ray.serving.cascade import Rules
from lspm_ray.validators import Check, Training, Validator

LABELS = ["a", "b", "c"]


def rows(count, seed):
    random = np.random.default_rng(seed)
    # Seeds from 2 on know tokens that occur in no training row.
    inputs = [random.integers(0, 50 if seed < 2 else 55, n) for n in random.integers(1, 20, count)]
    logits = random.normal(scale=2, size=(count, 3)).astype(np.float32)
    truth = np.where(random.random(count) < 0.8, logits.argmax(1), random.integers(0, 3, count))
    return inputs, logits, truth


def fitted(validator, checks=(), kind="temperature"):
    inputs, logits, truth = rows(300, 0)
    logits[::60] = np.inf
    training = Training(rows(200, 1)[0], rows(200, 1)[2])
    return fit_scorer(
        Validator.make(validator), [Check.make(check) for check in checks], kind, LABELS,
        inputs=inputs, logits=logits, truth=truth, losses=logits.argmax(1) != truth, training=lambda: training,
    )  # fmt: skip


def plan_of(scorer, threshold):
    def stage(name, limit, **numbers):
        ref = ModelRef(name=name, uri=name, digest=name)
        return PlanStage(model=ref, threshold=limit, batch_1_latency_ms=1, cost=1, **numbers)

    return Plan(
        labels=LABELS,
        task={"task": "text_classification"},
        validator=scorer.validator.spec(),
        checks=[check.spec() for check in scorer.checks],
        stages=[
            stage("small", threshold, temperature=scorer.temperature, calibrator=scorer.calibrator),
            stage("full", None, temperature=1.0),
        ],
        certificate_id="c",
        expected={},
        reasons={},
    )


CHECKS = ({"check": "length", "min_tokens": 4}, {"check": "known_tokens", "max_unseen": 0.1})


@pytest.mark.parametrize("validator", Validator.names())
@pytest.mark.parametrize("kind", CALIBRATORS)
def test_what_is_accepted_live_is_what_was_counted_as_accepted(validator, kind):
    """Written, loaded and run by the cascade in batches of other sizes, the scorer decides alike row by row."""
    scorer = fitted(validator, CHECKS, kind)
    inputs, logits, _ = rows(200, 2)
    logits[::20] = np.nan
    scores = scorer.scores(inputs, logits)
    assert np.isfinite(scores).all() and (scores[::20] == REFUSED).all()
    for threshold in (ACCEPT_ALL, float(np.median(scores[scores > REFUSED]))):
        plan = Plan.parse(plan_of(scorer, threshold).model_dump(mode="json"))
        rules = Rules.of(plan, load_state(dump_states([scorer]), digest_of_state(dump_states([scorer]))))
        found = [rules.judge(inputs[i : i + size], logits[i : i + size]) for i, size in ((0, 7), (7, 93), (100, 100))]
        reasons = [reason for part in found for reason in part.reasons]
        assert [reason is None for reason in reasons] == (scores >= threshold).tolist()
        assert {"invalid_output", "too_short", "unseen_tokens"} <= set(reasons)
        shown = np.concatenate([part.probabilities for part in found])
        fine = np.isfinite(logits).all(axis=1)
        np.testing.assert_array_equal(shown[fine], probabilities(logits[fine], scorer.temperature, scorer.calibrator))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16))
def test_refused_rows_are_below_every_threshold(seed):
    scorer = fitted("max_probability", CHECKS)
    inputs, logits, _ = rows(30, seed)
    scores = scorer.scores(inputs, logits)
    short = np.array([len(row) < 4 for row in inputs])
    assert (scores[short] < ACCEPT_ALL).all()
    assert ((scores > ACCEPT_ALL) | (scores == REFUSED)).all()


def test_a_validator_that_never_learnt_gives_no_score():
    scorer = Scorer(LABELS, Validator.make("deferral"))
    inputs, logits, _ = rows(5, 0)
    assert np.isnan(scorer.judge(inputs, logits).scores).all()


def test_what_was_learnt_must_be_what_was_certified():
    data = dump_states([fitted("deferral")])
    with pytest.raises(CertificateError, match="not what the certificate was issued for"):
        load_state(data, digest_of_state(data[:-1]))
    with pytest.raises(CertificateError):
        load_state(None, digest_of_state(data))
    assert load_state(None, None) == {} and dump_states([fitted("margin")]) is None


def test_nothing_is_learnt_from_training_rows_that_nobody_reads():
    inputs, logits, truth = rows(50, 0)

    def never():
        raise AssertionError

    scorer = fit_scorer(
        Validator.make("entropy"), [], "temperature", LABELS,
        inputs=inputs, logits=logits, truth=truth, losses=logits.argmax(1) != truth, training=never,
    )  # fmt: skip
    assert not scorer.state
