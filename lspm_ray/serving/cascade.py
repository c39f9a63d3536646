"""The cascade: the first variant answers, the validator scores the answer, what it cannot vouch for is escalated.

Pure: it knows the plan and three functions (encode, first, last), not where they run. The endpoint and offline
prediction run this same code, so an answer does not depend on the way it was asked for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.clean import normalize
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.selection.plan import Plan
from lspm_ray.tasks import Encoded, Task
from lspm_ray.validators import Validator

Logits = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Awaitable[list[Encoded]]]
Stage = Callable[[Sequence[Encoded]], Awaitable[Logits]]
Reason = Literal["low_score", "invalid_output", "error", "timeout", "revoked"]

_log = logging.getLogger(__name__)


class EmptyText(ValueError):  # noqa: N818
    """Nothing is left of a text once invisible characters are gone.

    Args:
        index: which of the texts.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"text {index} is empty")
        self.index = index


class QueueFull(Exception):  # noqa: N818
    """So much is waiting that another request would not be answered in time."""


class StageDown(Exception):  # noqa: N818
    """The stage that has the last word gave no usable answer, so there is none."""


def clean(texts: Sequence[str], max_characters: int | None) -> list[str]:
    """The texts as the models were trained on them.

    Args:
        texts: of a request.
        max_characters: of the plan.

    Raises:
        EmptyText: a text has no visible character.
    """
    cleaned = [normalize(text, max_characters) for text in texts]
    for index, text in enumerate(cleaned):
        if not text:
            raise EmptyText(index)
    return cleaned


def accept(scores: NDArray[np.float64], threshold: float | None) -> NDArray[np.bool_]:
    """Which answers may leave without escalation: score >= threshold; NaN never passes.

    Args:
        scores: of the validator, [rows].
        threshold: of the certificate; None accepts every score that is a number.
    """
    return ~np.isnan(scores) if threshold is None else np.asarray(scores >= threshold)


def usable(logits: Logits, rows: int, labels: int) -> NDArray[np.bool_]:
    """Which rows of a stage's output can be looked at: all finite. None, when the shape is wrong."""
    if getattr(logits, "shape", None) != (rows, labels):
        return np.zeros(rows, dtype=bool)
    return np.asarray(np.isfinite(logits).all(axis=1))


@dataclass(frozen=True)
class Verdicts:
    """What the first variant said about some texts, and whether that may be said.

    Attributes:
        inputs: token ids of each text.
        probabilities: calibrated, [rows, labels]; NaN in rows without a usable output.
        scores: of the validator, [rows]; NaN where there is none.
        reasons: why a row is escalated; None where it is accepted.
    """

    inputs: Sequence[Encoded]
    probabilities: NDArray[np.float64]
    scores: NDArray[np.float64]
    reasons: Sequence[Reason | None]

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.inputs[rows], self.probabilities[rows], self.scores[rows], self.reasons[rows])

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class CascadeAnswer:
    """One answer with where it comes from."""

    label: str
    probability: float
    variant: str
    escalated: bool
    validator_score: float | None
    reason: Reason | None


@dataclass(frozen=True)
class Rules:
    """The plan's decisions, as plugins and numbers.

    Attributes:
        plan: what to serve.
        task: turns probabilities into answers.
        validator: scores the first variant's answers.
    """

    plan: Plan
    task: Task
    validator: Validator

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The rules of a plan."""
        return cls(plan, Task.make(plan.task), Validator.make(plan.validator))

    @property
    def alone(self) -> bool:
        """One model answers everything."""
        return len(self.plan.stages) == 1

    def judge(self, inputs: Sequence[Encoded], logits: Logits) -> Verdicts:
        """Score and accept or escalate the first variant's output for `inputs`."""
        stage = self.plan.stages[0]
        fine = usable(logits, len(inputs), len(self.plan.labels))
        probabilities = np.full((len(inputs), len(self.plan.labels)), np.nan)
        scores = np.full(len(inputs), np.nan)
        if fine.any():
            probabilities[fine] = softmax(logits[fine], stage.temperature)
            seen = [row for row, ok in zip(inputs, fine, strict=True) if ok]
            scores[fine] = self.validator.score(seen, probabilities[fine])
        accepted = accept(scores, stage.threshold)
        reasons: list[Reason | None] = [
            None if passed else "low_score" if ok else "invalid_output"
            for passed, ok in zip(accepted, fine, strict=True)
        ]
        return Verdicts(inputs, probabilities, scores, reasons)

    def refuse(self, inputs: Sequence[Encoded], reason: Reason) -> Verdicts:
        """Escalate everything: the first variant gave no output."""
        rows, labels = len(inputs), len(self.plan.labels)
        return Verdicts(inputs, np.full((rows, labels), np.nan), np.full(rows, np.nan), [reason] * rows)


@dataclass(frozen=True)
class Full:
    """The full model, which answers everything once the certificate is revoked.

    Attributes:
        name: of the model.
        temperature: divides its logits before the softmax.
        stage: computes its logits.
    """

    name: str
    temperature: float
    stage: Stage


class Cascade:
    """Runs the rules over the functions that compute.

    Args:
        rules: of the plan.
        encode: texts to token ids.
        stages: one function per stage of the plan, token ids to logits [rows, labels].
        first_timeout_s: how long the first of two stages may take.
    """

    def __init__(
        self, rules: Rules, encode: Encode, stages: Sequence[Stage], first_timeout_s: float | None = None
    ) -> None:
        if len(stages) != len(rules.plan.stages):
            raise ValueError(f"the plan has {len(rules.plan.stages)} stages, got functions for {len(stages)}")
        self.rules = rules
        self.encode = encode
        self.stages = list(stages)
        self.first_timeout_s = first_timeout_s
        self._full: Full | None = None

    def revoke(self, full: Full) -> None:
        """The certificate no longer holds: from now on the full model answers everything."""
        self._full = full

    async def answer(self, texts: Sequence[str]) -> list[CascadeAnswer]:
        """An answer for each text, in order.

        Args:
            texts: as `clean` leaves them.

        Raises:
            StageDown: the stage with the last word gave no usable output for some text.
        """
        return await self.finish(await self.judge(texts))

    async def judge(self, texts: Sequence[str]) -> Verdicts:
        """Ask the first stage. With a single stage its failure is final; with two it escalates.

        Raises:
            QueueFull: too much is waiting for the first stage.
            StageDown: the only stage failed.
        """
        inputs = await self.encode(texts)
        if self._full is not None:
            return self.rules.refuse(inputs, "revoked")
        if self.rules.alone:
            return self.rules.judge(inputs, await self._ask(self._final, inputs))
        try:
            async with asyncio.timeout(self.first_timeout_s):
                logits = await self.stages[0](inputs)
            return self.rules.judge(inputs, logits)
        except TimeoutError:
            _log.warning("first variant: no answer within %s s, escalating %d texts", self.first_timeout_s, len(inputs))
            return self.rules.refuse(inputs, "timeout")
        except QueueFull:
            raise  # sending the surplus to the full model would take that down too
        except Exception as error:
            _log.error("first variant failed, escalating %d texts: %r", len(inputs), error)
            return self.rules.refuse(inputs, "error")

    async def finish(self, verdicts: Verdicts) -> list[CascadeAnswer]:
        """Escalate what was not accepted, all in one call, and put the answers together.

        Raises:
            StageDown: the last stage gave no usable output.
        """
        rest = [row for row, reason in enumerate(verdicts.reasons) if reason is not None]
        revoked = "revoked" in verdicts.reasons
        if (self.rules.alone and not revoked) or not rest:
            return self._answers(verdicts, self.rules.alone, self.rules.plan.stages[-1].model.name)
        last = self._final
        logits = await self._ask(last, [verdicts.inputs[row] for row in rest])
        probabilities = verdicts.probabilities.copy()
        probabilities[rest] = softmax(logits, last.temperature)
        found = Verdicts(verdicts.inputs, probabilities, verdicts.scores, verdicts.reasons)
        return self._answers(found, False, last.name)

    @property
    def _final(self) -> Full:
        """The model with the last word."""
        last = self.rules.plan.stages[-1]
        return self._full or Full(last.model.name, last.temperature, self.stages[-1])

    async def _ask(self, model: Full, inputs: Sequence[Encoded]) -> Logits:
        logits = await model.stage(inputs)
        if not usable(logits, len(inputs), len(self.rules.plan.labels)).all():
            raise StageDown(f"{model.name} returned an output that is not usable")
        return logits

    def _answers(self, verdicts: Verdicts, alone: bool, last: str) -> list[CascadeAnswer]:
        plan, first = self.rules.plan, self.rules.plan.stages[0].model.name
        found = self.rules.task.decode(verdicts.probabilities, plan.labels)
        return [
            CascadeAnswer(
                label=answer.label,
                probability=answer.probability,
                variant=first if alone or reason is None else last,
                escalated=not alone and reason is not None,
                validator_score=None if np.isnan(score) else float(score),
                reason=None if alone else reason,
            )
            for answer, score, reason in zip(found, verdicts.scores, verdicts.reasons, strict=True)
        ]
