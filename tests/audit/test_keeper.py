from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from lspm_ray.audit.drift import Window, reference
from lspm_ray.audit.hypotheses import hypotheses
from lspm_ray.audit.keeper import Keeper, Place, Report
from lspm_ray.audit.ledger import AuditError, Feedback, Ledger, Sample, Tally
from lspm_ray.selection.options import Rows
from lspm_ray.selection.plan import Certificate, ModelRef
from lspm_ray.selection.select import disagreement_bound
from tests.toys import toy_point

REF = ModelRef(name="small", uri="/m", digest="d")


def certificate(**values: Any) -> Certificate:
    given = {
        "points": [toy_point(0.5, 0.02)],
        "delta": 0.05,
        "risk": "disagreement",
        "first": REF,
        "last": REF,
        "full": REF,
        "validator": {"validator": "margin"},
        "temperature": 1.0,
        "calibration_rows": 100,
        "outputs": {},
        "data": REF,
        "hardware": {},
    }
    return Certificate.parse(given | values)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("c", "p", str(tmp_path / "a b" / "audit"))


def keeper(place: Place, **values: Any) -> Keeper:
    return Keeper(place, certificate(**values), 0.01, lambda: 5.0)


def report(rows: int, losses: int, version: int = 1, router: str = "one", **more: Any) -> Report:
    return Report(router=router, tally=Tally(version=version, blocks={0: (rows, losses)}), **more)


def sample(number: int) -> Sample:
    return Sample(
        block=0,
        router="one",
        number=number,
        text_sha256=f"h{number}",
        request_id="q",
        index=number,
        variant="small",
        answer="no",
        full="yes",
    )


def test_what_is_tested():
    assert [(t.loss, t.level, t.delta) for t in hypotheses(certificate(), 0.01)] == [("disagreement", 0.02, 0.01)]
    bound = {"losses": 3, "rows": 100, "thresholds": 200, "delta": 0.005, "level": 0.08}
    both = hypotheses(certificate(risk="regret", disagreement=bound), 0.01)
    assert [(t.loss, t.level, t.delta) for t in both] == [("disagreement", 0.08, 0.005), ("regret", 0.02, 0.005)]
    assert [t.loss for t in hypotheses(certificate(risk="regret"), 0.01)] == ["regret"]


def test_reports_are_merged_judged_and_survive_a_restart(place: Place):
    first = keeper(place)
    assert first.report(report(100, 2)).revoked is None
    first.report(report(100, 2))
    assert (first.ledger.rows, first.dirty) == (100, True)
    first.flush()
    assert not first.dirty
    second = keeper(place)
    assert second.ledger == first.ledger
    found = second.report(report(200, 40, router="two"))
    assert found.revoked is not None
    assert found.revoked.rows == 300
    second.flush()
    # A keeper that was started before that does not take it back.
    first.report(report(150, 2, version=2))
    first.flush()
    assert keeper(place).ledger.revoked == found.revoked
    assert keeper(place).ledger.rows == 350


def test_a_label_may_come_before_the_disagreement_is_known(place: Place):
    made = keeper(place, risk="regret")
    made.report(report(10, 0, feedback=(Feedback(label="yes", request_id="q", index=1),)))
    made.report(report(20, 2, version=2, samples=(sample(1), sample(2))))
    assert [found.label for found in made.ledger.samples] == ["yes", None]
    assert made.status().labelled == 1


def test_drift_is_told_to_routers_that_ask(place: Place):
    rng = np.random.default_rng(0)
    ref = reference(rng.random(300), [rng.integers(0, 50, size=9) for _ in range(300)])
    made = Keeper(place, certificate(), 0.01, lambda: 5.0, ref)
    assert made.report(report(1, 0, wants_reference=True)).reference == ref
    scores = (0,) * (len(ref.shares) - 1) + (500,)
    tally = Tally(version=9, blocks={0: (300, 0)}, windows={0: Window(scores=scores)})
    found = made.report(Report(router="one", tally=tally))
    assert found.reference is None
    assert found.revoked is None
    assert "scores differ" in found.warnings[0]


def test_a_damaged_or_foreign_ledger_is_refused(place: Place):
    path = Path(place.uri)
    path.mkdir(parents=True)
    (path / "ledger.json").write_text("{", encoding="utf-8")
    with pytest.raises(AuditError, match="not a valid ledger"):
        place.load()
    other = Ledger(certificate_id="other", plan_digest="p")
    (path / "ledger.json").write_text(other.model_dump_json(), encoding="utf-8")
    with pytest.raises(AuditError, match="certificate_id"):
        place.load()


@given(seed=st.integers(0, 10**6), n=st.integers(50, 400), thresholds=st.integers(1, 200))
def test_the_bound_of_disagreement_is_that_of_the_threshold(seed: int, n: int, thresholds: int):
    rng = np.random.default_rng(seed)
    first, full = rng.random((n, 2)).astype(np.float32), rng.random((n, 2)).astype(np.float32)
    accepted = rng.random(n) < 0.5
    rows = Rows(full.argmax(1), [first, full], full, [])
    bound = disagreement_bound(rows, np.where(accepted, 0, 1), thresholds)
    assert bound.losses == int((accepted & (first.argmax(1) != full.argmax(1))).sum())
    assert binom.cdf(bound.losses, n, bound.level) == pytest.approx(bound.delta / thresholds, rel=1e-6)
