"""How far a stage's answers are trusted: calibrator, validator and checks, with all they have learnt.

Every stage but the last has one. Certification, the endpoint and offline prediction score with this one object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from lspm_ray.errors import CertificateError
from lspm_ray.evaluation.calibration import Calibrator, CalibratorKind, Floats, fit_calibrator, probabilities
from lspm_ray.selection.risk import REFUSED
from lspm_ray.tasks import Encoded
from lspm_ray.validators import Check, Examples, Outputs, State, Training, Validator
from lspm_ray.validators.contract import named, part

T = TypeVar("T")

SCORER_FILE = "scorer.safetensors"
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Judged:
    """What is thought of some answers.

    Attributes:
        probabilities: calibrated, [rows, labels].
        scores: of the validator, [rows]; NaN where it was never fitted.
        refused: why a row must be escalated whatever its score, or None, [rows].
    """

    probabilities: Floats
    scores: Floats
    refused: list[str | None]


@dataclass(frozen=True)
class Scorer:
    """See the module.

    Attributes:
        labels: names of the classes.
        validator: scores the answers.
        checks: refuse some.
        temperature: divides the logits.
        calibrator: what follows it; None for nothing.
        state: what validator and checks have learnt.
    """

    labels: Sequence[str]
    validator: Validator
    checks: Sequence[Check] = ()
    temperature: float = 1.0
    calibrator: Calibrator | None = None
    state: State = field(default_factory=dict)

    @property
    def reads_texts(self) -> bool:
        """Whether it needs the texts themselves."""
        return any(judge.reads_texts for judge in (self.validator, *self.checks))

    def judge(self, inputs: Sequence[Encoded], logits: NDArray[Any], texts: Sequence[str] | None = None) -> Judged:
        """Judge answers, each by itself.

        Args:
            inputs: token ids of each row.
            logits: of the stage, finite, [rows, labels].
            texts: of each row; only where it `reads_texts`.
        """
        found = self._outputs(inputs, logits, texts)
        sums = np.abs(found.probabilities.sum(axis=1) - 1) <= _SUM_TOLERANCE
        refused: list[str | None] = [None if fine else "invalid_output" for fine in sums]
        for number, check in enumerate(self.checks):
            verdicts = check.verdict(found, part(self.state, f"checks.{number}"))
            refused = [old or new for old, new in zip(refused, verdicts, strict=True)]
        if self.validator.learns and not self.state:
            return Judged(found.probabilities, np.full(len(found), np.nan), refused)
        return Judged(found.probabilities, self.validator.score(found, part(self.state, "validator")), refused)

    def scores(self, inputs: Sequence[Encoded], logits: NDArray[Any], texts: Sequence[str] | None = None) -> Floats:
        """Scores as certification needs them, [rows]: `REFUSED` for answers that the cascade would escalate anyway.

        Args:
            inputs: token ids of each row.
            logits: of the stage, [rows, labels].
            texts: of each row; only where it `reads_texts`.
        """
        fine = np.flatnonzero(np.isfinite(logits).all(axis=1))
        found = np.full(len(logits), REFUSED)
        if len(fine):
            judged = self.judge(_some(inputs, fine), logits[fine], None if texts is None else _some(texts, fine))
            found[fine] = np.where([reason is None for reason in judged.refused], judged.scores, REFUSED)
        return found

    def probabilities(self, logits: NDArray[Any]) -> Floats:
        """Calibrated, [rows, labels]."""
        return probabilities(logits, self.temperature, self.calibrator)

    def _outputs(self, inputs: Sequence[Encoded], logits: NDArray[Any], texts: Sequence[str] | None) -> Outputs:
        if self.reads_texts and texts is None:
            raise ValueError("this scorer needs texts")
        return Outputs(inputs, np.asarray(logits, dtype=np.float64), self.probabilities(logits), self.labels, texts)


def fit_scorer(
    validator: Validator,
    checks: Sequence[Check],
    kind: CalibratorKind,
    labels: Sequence[str],
    *,
    inputs: Sequence[Encoded],
    logits: NDArray[Any],
    truth: NDArray[np.int64],
    losses: NDArray[np.bool_],
    texts: Sequence[str] | None = None,
    training: Callable[[], Training] | None = None,
) -> Scorer:
    """Learn from selection rows, those of them whose logits are finite.

    Args:
        validator: scores.
        checks: refuse.
        kind: of the calibrator.
        labels: names of the classes.
        inputs: token ids of each row.
        logits: of the stage, [rows, labels].
        truth: class index [rows].
        losses: whether accepting each answer would be a loss, [rows].
        texts: of each row; only where validator or checks read them.
        training: gives the training rows; called only where validator or checks read them.

    Raises:
        ConfigError: a check does not fit the task.
        DataError: no row has finite logits.
    """
    fine = np.flatnonzero(np.isfinite(logits).all(axis=1))
    temperature, calibrator = fit_calibrator(kind, logits[fine], truth[fine])
    plain = Scorer(labels, validator, checks, temperature, calibrator)
    wanted = any(judge.reads_training for judge in (validator, *checks))
    examples = Examples(
        plain._outputs(_some(inputs, fine), logits[fine], None if texts is None else _some(texts, fine)),
        losses[fine],
        training() if wanted and training is not None else None,
    )
    state = named("validator", validator.fit(examples))
    for number, check in enumerate(checks):
        state |= named(f"checks.{number}", check.fit(examples))
    return Scorer(labels, validator, checks, temperature, calibrator, state)


def _some(rows: Sequence[T], index: NDArray[np.intp]) -> list[T]:
    return [rows[row] for row in index.tolist()]


def dump_states(scorers: Sequence[Scorer]) -> bytes | None:
    """What was learnt about each stage, as a safetensors file; None where that is nothing.

    Names begin with `stage_name`; `validators.contract.part` takes one stage out again.
    """
    states: dict[str, NDArray[Any]] = {}
    for stage, scorer in enumerate(scorers):
        states |= named(stage_name(stage), scorer.state)
    if not states:
        return None
    return save_arrays({name: np.ascontiguousarray(states[name]) for name in sorted(states)})


def stage_name(stage: int) -> str:
    """What the arrays of a stage are called in `SCORER_FILE`."""
    return f"stages.{stage}"


def digest_of_state(data: bytes | None) -> str | None:
    """Hex sha256 of what `dump_states` gives; None for None."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def load_state(data: bytes | None, digest: str | None) -> Mapping[str, NDArray[Any]]:
    """The inverse of `dump_states`.

    Args:
        data: of the file; None where there is none.
        digest: what the certificate says.

    Raises:
        CertificateError: the file is missing, or not the one the certificate was issued for.
    """
    if digest_of_state(data) != digest:
        raise CertificateError(
            "what the validator has learnt is not what the certificate was issued for",
            field=SCORER_FILE,
            value=digest_of_state(data),
            valid=[str(digest)],
        )
    return {} if data is None else load_arrays(data)
