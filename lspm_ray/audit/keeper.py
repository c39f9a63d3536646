"""The one who keeps the ledger of a deployment: takes the routers' reports, judges, and writes the ledger to disk."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.fs as pafs

from lspm_ray.artifact import Artifact, filesystem, join, open_beside, write_atomic
from lspm_ray.audit.drift import Drift, Reference, compare, reference
from lspm_ray.audit.hypotheses import Hypothesis, Loss, hypotheses
from lspm_ray.audit.ledger import WINDOW_BLOCKS, AuditError, Feedback, Ledger, Point, Revocation, Sample, Tally, merge
from lspm_ray.config import Config
from lspm_ray.errors import UserError
from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.selection.plan import Certificate
from lspm_ray.selection.select import certified_scorers, inputs_of, read_plan, texts_of

LEDGER_FILE = "ledger.json"
REFERENCE_FILE = "reference.json"
_RECENT_FEEDBACK = 1000
"""Labels that may come before the full model's answer does."""

Verdict = Literal["holds", "revoked"]


class Report(Config):
    """What a router tells the keeper.

    Attributes:
        router: its name; a new one each time it starts.
        tally: all it has counted.
        samples: disagreements that the keeper has not confirmed yet.
        feedback: labels that came in.
        wants_reference: it does not have the drift reference yet.
    """

    router: str
    tally: Tally
    samples: tuple[Sample, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    wants_reference: bool = False


class Standing(Config):
    """What the keeper answers.

    Attributes:
        block: the stamp for answers sampled from now on.
        revoked: None while the certificate stands.
        log_wealth: natural logarithm of the evidence against each hypothesis.
        warnings: of drift.
        reference: if it was asked for and there is one.
    """

    block: int
    revoked: Revocation | None
    log_wealth: dict[Loss, float]
    warnings: tuple[str, ...] = ()
    reference: Reference | None = None


class Evidence(Config):
    """How one hypothesis stands.

    Attributes:
        loss: whose mean it is about.
        level: largest mean.
        losses: so far.
        log_wealth: natural logarithm of the evidence against it.
        limit: the logarithm that revokes.
    """

    loss: Loss
    level: float
    losses: int
    log_wealth: float
    limit: float


class Status(Config):
    """Everything about an audit that people want to see.

    Attributes:
        certificate_id: under audit.
        plan_digest: of the select artifact.
        verdict: whether the certificate stands.
        revoked: why it does not.
        rows: sampled answers that are settled.
        evidence: for each hypothesis.
        totals: counts over all routers: answers, accepted, shadowed, failed, dropped.
        labelled: disagreements whose true label is known.
        drift: of the last whole window; None without a reference.
        samples: disagreements, the latest first.
        points: the evidence over time.
    """

    certificate_id: str
    plan_digest: str
    verdict: Verdict
    revoked: Revocation | None
    rows: int
    evidence: tuple[Evidence, ...]
    totals: dict[str, int]
    labelled: int
    drift: Drift | None
    samples: tuple[Sample, ...]
    points: tuple[Point, ...]


def status(ledger: Ledger, tests: tuple[Hypothesis, ...], drift_reference: Reference | None) -> Status:
    """How an audit stands."""
    evidence = tuple(
        Evidence(
            loss=test.loss,
            level=test.level,
            losses=ledger.losses(test.loss),
            log_wealth=ledger.log_wealth(test),
            limit=-math.log(test.delta),
        )
        for test in tests
    )
    return Status(
        certificate_id=ledger.certificate_id,
        plan_digest=ledger.plan_digest,
        verdict="holds" if ledger.revoked is None else "revoked",
        revoked=ledger.revoked,
        rows=ledger.rows,
        evidence=evidence,
        totals={name: ledger.total(name) for name in ("answers", "accepted", "shadowed", "failed", "dropped")},
        labelled=sum(sample.label is not None for sample in ledger.samples),
        drift=_drift(ledger, drift_reference),
        samples=ledger.samples[::-1],
        points=tuple(ledger.points[block] for block in sorted(ledger.points)),
    )


@dataclass(frozen=True)
class Place:
    """Where the state of a deployment's audit lies: beside the artifacts of the run, by certificate and plan.

    Attributes:
        certificate_id: under audit.
        plan_digest: of the select artifact.
        uri: directory or URI.
    """

    certificate_id: str
    plan_digest: str
    uri: str

    @classmethod
    def of(cls, certificate: Certificate, plan: Artifact) -> Place:
        """That of a plan."""
        name = f"{certificate.id}-{plan.digest[:12]}"
        return cls(certificate.id, plan.digest, join(plan.root, f"audit/{name}"))

    def load(self) -> Ledger:
        """The ledger; an empty one if none was written.

        Raises:
            AuditError: the file is damaged, or of another certificate or plan.
        """
        empty = Ledger(certificate_id=self.certificate_id, plan_digest=self.plan_digest)
        data = self._read(LEDGER_FILE)
        if data is None:
            return empty
        try:
            found = Ledger.model_validate_json(data)
        except ValueError as error:
            raise AuditError(f"not a valid ledger: {error}", field=join(self.uri, LEDGER_FILE)) from None
        return merge(empty, found)

    def save(self, ledger: Ledger) -> None:
        """Write the ledger so that a crash leaves the old one or the new one; what others wrote meanwhile is kept."""
        self._write(LEDGER_FILE, merge(self.load(), ledger).model_dump_json())

    def load_reference(self) -> Reference | None:
        """The drift reference, if it was made."""
        data = self._read(REFERENCE_FILE)
        return None if data is None else Reference.model_validate_json(data)

    def save_reference(self, found: Reference) -> None:
        """Keep the drift reference."""
        self._write(REFERENCE_FILE, found.model_dump_json())

    def _read(self, name: str) -> bytes | None:
        fs, path = filesystem(join(self.uri, name))
        try:
            with fs.open_input_stream(path) as stream:
                data: bytes = stream.read()
        except FileNotFoundError:
            return None
        return data

    def _write(self, name: str, text: str) -> None:
        fs, base = filesystem(self.uri)
        fs.create_dir(base, recursive=True)
        if isinstance(fs, pafs.LocalFileSystem):
            write_atomic(Path(base) / name, text.encode())
            return
        with fs.open_output_stream(f"{base}/{name}") as stream:  # an object appears whole, when it is closed
            stream.write(text.encode())


def calibration_reference(certificate: Certificate, plan: Artifact) -> Reference:
    """The drift reference of a certificate's calibration rows, from the outputs that it names.

    Raises:
        ArtifactError: they are not there.
        ConfigError: their location cannot be opened.
    """
    counted, corpus = certificate.fresh_outputs or certificate.outputs, certificate.fresh or certificate.data
    data = open_beside(corpus.uri, plan)
    inputs = inputs_of(data, "calibration")
    _, _, logits = read_outputs(open_beside(counted[certificate.first.name].uri, plan), "calibration")
    scorer = certified_scorers(plan, read_plan(plan)[0], certificate)[0]
    fine = np.flatnonzero(np.isfinite(logits).all(axis=1)).tolist()
    texts = texts_of(data, "calibration") if scorer.reads_texts else None
    some = None if texts is None else [texts[row] for row in fine]
    judged = scorer.judge([inputs[row] for row in fine], logits[fine], some)
    return reference(judged.scores, inputs)


class Keeper:
    """Merges what the routers report, judges it, and keeps it on disk.

    Args:
        place: where the ledger lies; what lies there is gone on from.
        certificate: under audit.
        delta: chance of a false revocation.
        clock: seconds since 1970.
        drift_reference: of the calibration rows; None watches no drift.
    """

    def __init__(
        self,
        place: Place,
        certificate: Certificate,
        delta: float,
        clock: Callable[[], float],
        drift_reference: Reference | None = None,
    ) -> None:
        self._place = place
        self._tests = hypotheses(certificate, delta)
        self._clock = clock
        self._reference = drift_reference
        self._feedback: deque[Feedback] = deque(maxlen=_RECENT_FEEDBACK)
        self._writing = threading.Lock()
        self.ledger = place.load()
        self._saved = self.ledger

    @property
    def dirty(self) -> bool:
        """Something has not been written yet."""
        return self.ledger is not self._saved

    def report(self, given: Report) -> Standing:
        """Take a report in; the same one twice changes nothing."""
        known = self.ledger.routers.get(given.router)
        news = known is None or known.version < given.tally.version or given.samples or given.feedback
        if news:
            self._take(given)
        return Standing(
            block=self.ledger.block,
            revoked=self.ledger.revoked,
            log_wealth={test.loss: self.ledger.log_wealth(test) for test in self._tests},
            warnings=self._warnings(),
            reference=self._reference if given.wants_reference else None,
        )

    def status(self) -> Status:
        """How the audit stands."""
        return status(self.ledger, self._tests, self._reference)

    def flush(self) -> None:
        """Write the ledger if it has changed."""
        with self._writing:
            ledger = self.ledger
            if ledger is not self._saved:
                self._place.save(ledger)
                self._saved = ledger

    def _take(self, given: Report) -> None:
        self._feedback.extend(given.feedback)
        new = self.ledger.model_copy(update={"routers": {given.router: given.tally}, "samples": given.samples})
        merged = merge(self.ledger.labelled(given.feedback), new.labelled(self._feedback))
        self.ledger = merged.judged(self._tests, self._clock())

    def _warnings(self) -> tuple[str, ...]:
        found = _drift(self.ledger, self._reference)
        return () if found is None else found.warnings


def _drift(ledger: Ledger, against: Reference | None) -> Drift | None:
    if against is None:
        return None
    return compare(ledger.window(max(0, ledger.block // WINDOW_BLOCKS - 1)), against)


def made_reference(place: Place, certificate: Certificate, plan: Artifact) -> tuple[Reference | None, str]:
    """The drift reference, made now if need be, or why there is none."""
    try:
        found = place.load_reference()
        if found is None:
            found = calibration_reference(certificate, plan)
            place.save_reference(found)
    except (UserError, OSError) as error:
        return None, f"drift is not watched: {error}"
    return found, ""
