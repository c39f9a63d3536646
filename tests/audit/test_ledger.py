from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.audit.drift import Window
from lspm_ray.audit.eprocess import BLOCK_ROWS
from lspm_ray.audit.hypotheses import Hypothesis
from lspm_ray.audit.ledger import (
    MAX_POINTS,
    AuditError,
    Feedback,
    Ledger,
    Point,
    Revocation,
    Sample,
    Tally,
    compacted,
    merge,
)

EMPTY = Ledger(certificate_id="c", plan_digest="p")
TEST = Hypothesis(loss="disagreement", level=0.02, delta=0.01)
Step = tuple[int, int, int]
"""Blocks gone by, rows and losses."""


def history(steps: list[Step]) -> list[Tally]:
    """The versions of one router's counts."""

    def add(tally: Tally, step: Step) -> Tally:
        block = max(tally.blocks, default=0) + step[0]
        rows, losses = tally.blocks.get(block, (0, 0))
        return Tally(
            version=tally.version + 1,
            blocks=tally.blocks | {block: (rows + step[1], losses + min(step[1:]))},
            answers=tally.answers + 50 * step[1],
            windows={block // 8: Window(rows=step[1], features=(1.0,))},
        )

    return list(accumulate(steps, add, initial=Tally()))


STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 90), st.integers(0, 5)), max_size=8)
HISTORIES = st.lists(STEPS.map(history), min_size=3, max_size=3)


def a_sample(number: int, **values: object) -> Sample:
    given: dict[str, object] = {"block": number % 5, "router": f"r{number % 3}", "number": number, "index": 0}
    given |= {
        "text_sha256": f"h{number}",
        "request_id": f"q{number}",
        "variant": "small",
        "answer": "no",
        "full": "yes",
    }
    return Sample.parse(given | values)


@st.composite
def ledgers(draw: st.DrawFn, count: int) -> list[Ledger]:
    """Ledgers of one audit that know more or less of what the same routers did."""
    histories = draw(HISTORIES)
    found = []
    for _ in range(count):
        known = {f"r{i}": draw(st.sampled_from(h)) for i, h in enumerate(histories) if draw(st.booleans())}
        numbers = draw(st.sets(st.integers(0, 12)))
        labels = {number: draw(st.sampled_from([None, "no", "yes"])) for number in sorted(numbers)}
        revoked = draw(st.sampled_from([None, 3.0, 7.0]))
        times = draw(st.dictionaries(st.integers(0, 3 * MAX_POINTS), st.floats(0, 9), max_size=3))
        ledger = Ledger(
            certificate_id="c",
            plan_digest="p",
            routers=known,
            samples=tuple(a_sample(number, label=label) for number, label in labels.items()),
            revoked=revoked
            and Revocation(time=revoked, loss="regret", level=0.1, rows=9, losses=9, log_wealth=5 + revoked),
            points={block: Point(time=time, rows=1, log_wealth={}) for block, time in times.items()},
        )
        found.append(merge(EMPTY, ledger))
    return found


@given(ledgers(2))
def test_merging_is_commutative_and_idempotent(pair: list[Ledger]):
    one, other = pair
    both = merge(one, other)
    assert both == merge(other, one)
    assert merge(one, one) == one
    assert merge(both, other) == both


@given(ledgers(3))
def test_merging_is_associative(three: list[Ledger]):
    one, two, other = three
    assert merge(merge(one, two), other) == merge(one, merge(two, other))


@given(ledgers(2))
def test_a_revocation_stays(pair: list[Ledger]):
    one, other = pair
    both = merge(one, other)
    assert (both.revoked is not None) == (one.revoked is not None or other.revoked is not None)
    assert merge(both, EMPTY).judged([TEST], 99.0).revoked == both.revoked or both.revoked is None


@given(HISTORIES)
def test_compaction_changes_no_evidence_and_no_sum(histories: list[list[Tally]]):
    ledger = EMPTY.model_copy(update={"routers": {str(i): h[-1] for i, h in enumerate(histories)}})
    small = compacted(ledger)
    assert (small.rows, small.losses("disagreement")) == (ledger.rows, ledger.losses("disagreement"))
    assert small.log_wealth(TEST) == pytest.approx(ledger.log_wealth(TEST), rel=1e-12)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_how_the_rows_are_spread_over_routers_does_not_matter(routers: int, seed: int):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, size=(40, 2))
    owners = rng.integers(0, routers, size=40)

    def ledger(owner: np.ndarray) -> Ledger:
        tallies = {
            str(r): Tally(
                version=1,
                blocks={b: (int(counts[b, 0] + counts[b, 1]), int(counts[b, 1])) for b in range(40) if owner[b] == r},
            )
            for r in range(routers)
        }
        return EMPTY.model_copy(update={"routers": tallies})

    assert ledger(owners).log_wealth(TEST) == pytest.approx(ledger(np.zeros(40)).log_wealth(TEST))


def test_state_stays_small():
    tally = Tally(version=1, blocks=dict.fromkeys(range(20000), (BLOCK_ROWS, 0)))
    small = compacted(EMPTY.model_copy(update={"routers": {"r": tally}}))
    assert len(small.routers["r"].blocks) < 150
    assert small.rows == 20_000 * BLOCK_ROWS


def test_too_many_disagreements_revoke_and_say_so():
    fine = EMPTY.model_copy(update={"routers": {"r": Tally(version=1, blocks={0: (300, 3)})}}).judged([TEST], 1.0)
    assert fine.revoked is None
    bad = EMPTY.model_copy(update={"routers": {"r": Tally(version=1, blocks={0: (300, 40)})}}).judged([TEST], 2.0)
    assert bad.revoked is not None
    assert bad.revoked.sentence().startswith("disagreement is above 2.00%: 40 in 300 sampled answers")
    assert bad.points[bad.block].log_wealth["disagreement"] >= 4.6


def test_labels_turn_disagreements_into_regret_and_nothing_else():
    samples = (a_sample(0), a_sample(1, full="no", answer="yes"), a_sample(2))
    ledger = EMPTY.model_copy(update={"samples": samples})
    given = [Feedback(label="yes", text_sha256="h0"), Feedback(label="yes", request_id="q1"), Feedback(label="yes")]
    labelled = ledger.labelled(given)
    assert [sample.regret for sample in labelled.samples] == [True, False, False]
    assert labelled.losses("regret") == 1
    both_wrong = ledger.labelled([Feedback(label="neither", text_sha256="h0")])
    assert both_wrong.losses("regret") == 0
    assert labelled.labelled(given) == labelled


def test_points_are_thinned_evenly():
    points = {block: Point(time=0, rows=0, log_wealth={}) for block in range(3000)}
    found = list(merge(EMPTY, EMPTY.model_copy(update={"points": points})).points)
    assert MAX_POINTS / 2 <= len(found) <= MAX_POINTS
    assert len(set(np.diff(found))) == 1


def test_ledgers_of_two_plans_are_kept_apart():
    with pytest.raises(AuditError, match="plan_digest"):
        merge(EMPTY, Ledger(certificate_id="c", plan_digest="other"))


@pytest.mark.parametrize("labels", [("yes", "no"), ("no", "yes")])
def test_of_labels_that_contradict_each_other_none_is_regret(labels: tuple[str, str]):
    sample = a_sample(0, answer="no", full="yes", label=None)
    ledger = Ledger(certificate_id="c", plan_digest="p", samples=(sample,))
    feedback = [Feedback(label=label, text_sha256=sample.text_sha256) for label in labels]
    assert ledger.labelled(feedback[:1]).samples[0].regret == (labels[0] == "yes")
    assert not ledger.labelled(feedback).samples[0].regret
