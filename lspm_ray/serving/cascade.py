"""The cascade: the first variant answers, the validator scores the answer, what it cannot vouch for is escalated.

Pure: it knows the plan and three functions (encode, first, last), not where they run. The endpoint and offline
prediction run this same code, so an answer does not depend on the way it was asked for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.clean import normalize
from lspm_ray.evaluation.calibration import probabilities
from lspm_ray.selection.conformal import names as label_set_names
from lspm_ray.selection.plan import Plan
from lspm_ray.selection.scorer import Scorer
from lspm_ray.tasks import Encoded, Task
from lspm_ray.validators import Check, State, Validator

Logits = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Awaitable[list[Encoded]]]
Stage = Callable[[Sequence[Encoded]], Awaitable[Logits]]
Reason = str
"""Why an answer is escalated: `low_score`, `invalid_output`, `error`, `timeout`, or what a check says."""

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
    label_set: tuple[str, ...] | None = None
    """Labels, the most probable first, that hold the true one with the coverage of the plan; None where it has none."""


@dataclass(frozen=True)
class Rules:
    """The plan's decisions, as plugins and numbers.

    Attributes:
        plan: what to serve.
        task: turns probabilities into answers.
        scorer: judges the first variant's answers.
    """

    plan: Plan
    task: Task
    scorer: Scorer

    @classmethod
    def of(cls, plan: Plan, state: State | None = None) -> Self:
        """The rules of a plan.

        Args:
            plan: what to serve.
            state: what validator and checks have learnt.
        """
        first = plan.stages[0]
        validator, checks = Validator.make(plan.validator), [Check.make(spec) for spec in plan.checks]
        scorer = Scorer(plan.labels, validator, checks, first.temperature, first.calibrator, state or {})
        return cls(plan, Task.make(plan.task), scorer)

    @property
    def alone(self) -> bool:
        """One model answers everything."""
        return len(self.plan.stages) == 1

    def judge(self, inputs: Sequence[Encoded], logits: Logits, texts: Sequence[str] | None = None) -> Verdicts:
        """Score and accept or escalate the first variant's output for `inputs`, which were made of `texts`."""
        fine = np.flatnonzero(usable(logits, len(inputs), len(self.plan.labels)))
        found = np.full((len(inputs), len(self.plan.labels)), np.nan)
        scores = np.full(len(inputs), np.nan)
        reasons: list[Reason | None] = ["invalid_output"] * len(inputs)
        if len(fine):
            kept = fine.tolist()
            some = None if texts is None else [texts[row] for row in kept]
            judged = self.scorer.judge([inputs[row] for row in kept], logits[fine], some)
            found[fine], scores[fine] = judged.probabilities, judged.scores
            accepted = accept(judged.scores, self.plan.stages[0].threshold)
            for row, refused, passed in zip(kept, judged.refused, accepted, strict=True):
                reasons[row] = refused or (None if passed else "low_score")
        return Verdicts(inputs, found, scores, reasons)

    def refuse(self, inputs: Sequence[Encoded], reason: Reason) -> Verdicts:
        """Escalate everything: the first variant gave no output."""
        rows, labels = len(inputs), len(self.plan.labels)
        return Verdicts(inputs, np.full((rows, labels), np.nan), np.full(rows, np.nan), [reason] * rows)


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
        if self.rules.alone:
            return self.rules.judge(inputs, await self._last(inputs), texts)
        try:
            async with asyncio.timeout(self.first_timeout_s):
                logits = await self.stages[0](inputs)
            return self.rules.judge(inputs, logits, texts)
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
        if self.rules.alone or not rest:
            return self._answers(verdicts)
        logits = await self._last([verdicts.inputs[row] for row in rest])
        last, found = self.rules.plan.stages[-1], verdicts.probabilities.copy()
        found[rest] = probabilities(logits, last.temperature, last.calibrator)
        return self._answers(Verdicts(verdicts.inputs, found, verdicts.scores, verdicts.reasons))

    async def _last(self, inputs: Sequence[Encoded]) -> Logits:
        logits = await self.stages[-1](inputs)
        if not usable(logits, len(inputs), len(self.rules.plan.labels)).all():
            raise StageDown(f"{self.rules.plan.stages[-1].model.name} returned an output that is not usable")
        return logits

    def _answers(self, verdicts: Verdicts) -> list[CascadeAnswer]:
        plan, alone = self.rules.plan, self.rules.alone
        first, last = plan.stages[0].model.name, plan.stages[-1].model.name
        found = self.rules.task.decode(verdicts.probabilities, plan.labels)
        sets = self._label_sets(verdicts)
        return [
            CascadeAnswer(
                label=answer.label,
                probability=answer.probability,
                variant=first if alone or reason is None else last,
                escalated=not alone and reason is not None,
                validator_score=None if np.isnan(score) else float(score),
                reason=None if alone else reason,
                label_set=label_set,
            )
            for answer, score, reason, label_set in zip(found, verdicts.scores, verdicts.reasons, sets, strict=True)
        ]

    def _label_sets(self, verdicts: Verdicts) -> list[tuple[str, ...] | None]:
        """By the stage that answered."""
        plan, found = self.rules.plan, verdicts.probabilities
        escalated = np.array([not self.rules.alone and reason is not None for reason in verdicts.reasons])
        sets: list[tuple[str, ...] | None] = [None] * len(verdicts)
        for stage, rows in ((plan.stages[0], ~escalated), (plan.stages[-1], escalated)):
            if stage.label_sets is not None and rows.any():
                some = label_set_names(stage.label_sets.members(found[rows]), found[rows], plan.labels)
                for row, named in zip(np.flatnonzero(rows).tolist(), some, strict=True):
                    sets[row] = named
        return sets
