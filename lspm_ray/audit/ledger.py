"""What an audit knows: counts per router and block, disagreements, and whether the certificate was revoked.

Ledgers form a join-semilattice: `merge` is commutative, associative and idempotent, so it does not matter how often or
in which order what the routers know comes together. Each router only ever adds to its own counts, so of two versions
of them the later one holds; disagreements are a set; a revocation stays.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from lspm_ray.audit.drift import Window, pooled
from lspm_ray.audit.eprocess import BLOCK_ROWS, Integers, live_starts, log_wealth
from lspm_ray.audit.hypotheses import Hypothesis, Loss
from lspm_ray.config import Config
from lspm_ray.errors import UserError

MAX_SAMPLES = 1000
"""Disagreements that are kept, the latest ones. Regret beyond them is forgotten, which never makes a false alarm."""
MAX_POINTS = 512
WINDOW_BLOCKS = 8
"""Blocks per window of the drift statistics."""


class AuditError(UserError):
    """The state of an audit cannot be used."""


class Sample(Config):
    """An answer that was not the full model's.

    Attributes:
        block: the stamp that it was sampled under.
        router: that sampled it.
        number: counts this router's disagreements.
        text_sha256: of the text as it was sent.
        request_id: of the request.
        index: of the text in the request.
        variant: that answered.
        answer: its label.
        full: the full model's label.
        text: None unless `audit.keep_texts`.
        label: the true one, once a client has sent it; of several the first in alphabetical order.
    """

    block: int
    router: str
    number: int
    text_sha256: str
    request_id: str
    index: int
    variant: str
    answer: str
    full: str
    text: str | None = None
    label: str | None = None

    @property
    def key(self) -> tuple[int, str, int]:
        """Tells samples apart, and sorts them by age."""
        return self.block, self.router, self.number

    @property
    def regret(self) -> bool:
        """Known to be wrong where the full model was right."""
        return self.label is not None and self.label == self.full != self.answer


class Feedback(Config):
    """The true label of a text that was answered, which is named by its hash or by the request that it came in.

    Attributes:
        label: the true one.
        text_sha256: hex, of the text as it was sent, in UTF-8.
        request_id: of the request.
        index: of the text in the request.
    """

    label: str
    text_sha256: str | None = None
    request_id: str | None = None
    index: int = Field(default=0, ge=0)

    def means(self, text_sha256: str, request_id: str, index: int) -> bool:
        """Whether this is about that answer."""
        if self.text_sha256 is not None:
            return self.text_sha256 == text_sha256
        return (self.request_id, self.index) == (request_id, index)


class Tally(Config):
    """What one router has counted since it started.

    Attributes:
        version: grows with every change.
        blocks: stamp -> sampled answers that are settled, and those of them that differ from the full model's.
        answers: that left the router.
        accepted: of these, not given by the full model.
        shadowed: sampled answers that the full model was asked for.
        failed: shadowed answers for which the full model gave none; they count as no loss.
        dropped: answers that would have been sampled had the queue not been full.
        windows: number -> drift statistics.
    """

    version: int = 0
    blocks: dict[int, tuple[int, int]] = Field(default_factory=dict)
    answers: int = 0
    accepted: int = 0
    shadowed: int = 0
    failed: int = 0
    dropped: int = 0
    windows: dict[int, Window] = Field(default_factory=dict)

    def compacted(self, block: int) -> Tally:
        """The same for all starts that are alive in `block`: what lies between two of them is added up."""
        starts = live_starts(block)
        places = np.searchsorted(starts, list(self.blocks), side="right") - 1
        blocks: dict[int, tuple[int, int]] = {}
        for place, (stamp, (rows, losses)) in zip(places, self.blocks.items(), strict=True):
            start = stamp if stamp > block else int(starts[place])
            before = blocks.get(start, (0, 0))
            blocks[start] = (before[0] + rows, before[1] + losses)
        oldest = block // WINDOW_BLOCKS - 1
        windows = {number: window for number, window in sorted(self.windows.items()) if number >= oldest}
        return self.model_copy(update={"blocks": dict(sorted(blocks.items())), "windows": windows})


class Revocation(Config):
    """The certificate no longer holds.

    Attributes:
        time: seconds since 1970.
        loss: whose mean is too large.
        level: that it was to stay below.
        rows: answers sampled so far.
        losses: of these, over all the time.
        log_wealth: natural logarithm of the evidence.
    """

    time: float
    loss: Loss
    level: float
    rows: int
    losses: int
    log_wealth: float

    def sentence(self) -> str:
        """What was found, in words."""
        return (
            f"{self.loss} is above {self.level:.2%}: {self.losses} in {self.rows} sampled answers, "
            f"evidence {np.exp(min(self.log_wealth, 600)):.3g} to 1"
        )


class Point(Config):
    """The evidence at one time: what `lspm audit` plots."""

    time: float
    rows: int
    log_wealth: dict[Loss, float]


class Ledger(Config):
    """Everything about the audit of one certificate under one plan.

    Attributes:
        certificate_id: under audit.
        plan_digest: of the select artifact.
        routers: each one's counts.
        samples: disagreements, oldest first.
        revoked: None while the certificate stands.
        points: block -> the evidence when it began.
    """

    certificate_id: str
    plan_digest: str
    routers: dict[str, Tally] = Field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    revoked: Revocation | None = None
    points: dict[int, Point] = Field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Sampled answers that are settled."""
        return sum(rows for tally in self.routers.values() for rows, _ in tally.blocks.values())

    @property
    def block(self) -> int:
        """The stamp for answers that are sampled from now on: how many there were decides, not their losses."""
        return self.rows // BLOCK_ROWS

    def losses(self, loss: Loss) -> int:
        """How many there have been."""
        return int(self._counts(loss, np.zeros(1, dtype=np.int64))[0][0])

    def log_wealth(self, hypothesis: Hypothesis) -> float:
        """Natural logarithm of the evidence against a hypothesis; see `audit.eprocess`."""
        # A router may have given a stamp that the tallies at hand do not reach.
        block = max([self.block, *(stamp for tally in self.routers.values() for stamp in tally.blocks)])
        losses, rows = self._counts(hypothesis.loss, live_starts(block))
        return log_wealth(losses, rows, block, hypothesis.level)

    def total(self, field: str) -> int:
        """Sum of a `Tally`'s number over the routers."""
        return sum(getattr(tally, field) for tally in self.routers.values())

    def window(self, number: int) -> Window:
        """Drift statistics of one window, of all routers."""
        return pooled(tally.windows[number] for tally in self.routers.values() if number in tally.windows)

    def labelled(self, feedback: Iterable[Feedback]) -> Ledger:
        """With these labels."""
        samples = self.samples
        for given in feedback:
            samples = tuple(
                s.model_copy(update={"label": _label(s.full, given.label, s.label)})
                if given.means(s.text_sha256, s.request_id, s.index)
                else s
                for s in samples
            )
        return self.model_copy(update={"samples": samples})

    def judged(self, tests: Iterable[Hypothesis], time: float) -> Ledger:
        """With a point of the evidence for a new block, and revoked if it suffices."""
        wealth = {test: self.log_wealth(test) for test in tests}
        changes: dict[str, object] = {}
        if self.block not in self.points:
            point = Point(time=time, rows=self.rows, log_wealth={test.loss: value for test, value in wealth.items()})
            changes["points"] = _thinned(self.points | {self.block: point})
        for test, value in wealth.items():
            if self.revoked is None and value >= -np.log(test.delta):
                changes["revoked"] = Revocation(
                    time=time,
                    loss=test.loss,
                    level=test.level,
                    rows=self.rows,
                    losses=self.losses(test.loss),
                    log_wealth=value,
                )
                break
        return self.model_copy(update=changes)

    def _counts(self, loss: Loss, starts: Integers) -> tuple[Integers, Integers]:
        """Losses and rows with stamps not below each start, [starts] each."""
        counted = [(block, *pair) for tally in self.routers.values() for block, pair in tally.blocks.items()]
        table = np.array(counted, dtype=np.int64).reshape(-1, 3)
        since = table[:, 0] >= starts[:, None]
        rows, losses = since @ table[:, 1], since @ table[:, 2]
        if loss == "regret":
            blocks = np.array([sample.block for sample in self.samples if sample.regret], dtype=np.int64)
            losses = (blocks >= starts[:, None]).sum(axis=1)
        return losses, rows


def merge(one: Ledger, other: Ledger) -> Ledger:
    """What both know.

    Raises:
        AuditError: they are about different certificates or plans.
    """
    for field in ("certificate_id", "plan_digest"):
        if getattr(one, field) != getattr(other, field):
            raise AuditError(
                "ledgers of different audits", field=field, value=getattr(other, field), valid=[getattr(one, field)]
            )
    routers = dict(one.routers)
    for name, tally in other.routers.items():
        if name not in routers or tally.version > routers[name].version:
            routers[name] = tally
    samples: dict[tuple[int, str, int], Sample] = {}
    for sample in (*one.samples, *other.samples):
        samples[sample.key] = _joined(samples.get(sample.key, sample), sample)
    points = {
        block: min((p.points[block] for p in (one, other) if block in p.points), key=_point_order)
        for block in one.points.keys() | other.points.keys()
    }
    found = one.model_copy(
        update={
            "routers": dict(sorted(routers.items())),
            "samples": tuple(samples[key] for key in sorted(samples)[-MAX_SAMPLES:]),
            "revoked": min((r for r in (one.revoked, other.revoked) if r), key=_revocation_order, default=None),
            "points": _thinned(points),
        }
    )
    return compacted(found)


def compacted(ledger: Ledger) -> Ledger:
    """The same ledger without what no test will ask for again."""
    routers = {name: tally.compacted(ledger.block) for name, tally in ledger.routers.items()}
    return ledger.model_copy(update={"routers": routers})


def _joined(one: Sample, other: Sample) -> Sample:
    label = _label(one.full, one.label, other.label)
    return one.model_copy(update={"label": label})


def _thinned(points: dict[int, Point]) -> dict[int, Point]:
    """At most `MAX_POINTS`, evenly spaced."""
    step = 1
    while points and max(points) // step >= MAX_POINTS:
        step *= 2
    return {block: points[block] for block in sorted(points) if block % step == 0}


def _point_order(point: Point) -> str:
    return f"{point.time:020.6f}{point.model_dump_json()}"


def _revocation_order(revocation: Revocation) -> str:
    return f"{revocation.time:020.6f}{revocation.model_dump_json()}"


def _label(full: str, *labels: str | None) -> str | None:
    """Of labels that contradict each other one that is no regret, whatever their order; None where there are none."""
    return min((label for label in labels if label is not None), key=lambda label: (label == full, label), default=None)
