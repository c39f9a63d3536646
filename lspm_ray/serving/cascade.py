"""The cascade: the first variant answers, the validator scores the answer, what it cannot vouch for is escalated.

Pure: it knows the plan and three functions (encode, first, last), not where they run. The endpoint and offline
prediction run this same code, so an answer does not depend on the way it was asked for.

Where the last model has no capacity left, a request is answered under the next more lenient point of the certificate,
and refused when there is none (docs/load.md). No answer is ever accepted below the most lenient point.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lspm_ray.compression.recipe import FULL
from lspm_ray.corpus.clean import normalize
from lspm_ray.evaluation.calibration import Calibrator, probabilities
from lspm_ray.selection.conformal import names as label_set_names
from lspm_ray.selection.plan import Plan
from lspm_ray.selection.scorer import Scorer, stage_name
from lspm_ray.tasks import Encoded, Task
from lspm_ray.validators import Check, State, Validator
from lspm_ray.validators.contract import part

Logits = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Awaitable[list[Encoded]]]
Stage = Callable[[Sequence[Encoded]], Awaitable[Logits]]
Reason = str
"""Why an answer is escalated: `low_score`, `invalid_output`, `error`, `timeout`, `requested` (the request asked for
full), `revoked` (the certificate no longer holds), or what a check says."""
Cause = Literal["queue", "budget", "deadline"]

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
    """So much is waiting that another request would not be answered in time.

    Args:
        message: what is full.
        retry_after_s: when it may be tried again; None if nobody knows.
        cause: what stood in the way.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, cause: Cause = "queue") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.cause = cause


class NotServed(ValueError):  # noqa: N818
    """The plan cannot give what a request asks for.

    Args:
        field: of the request.
        message: what is asked for and not there.
        hint: what can be had.
    """

    def __init__(self, field: Literal["max_risk", "full"], message: str, hint: str) -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


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
    """One answer with where it comes from.

    Attributes:
        alpha: of the certified point that it was given under; None where nothing had to be certified.
        degraded: it was accepted only because the last model had no capacity left, under a more lenient point than the
            request's own.
    """

    label: str
    probability: float
    variant: str
    escalated: bool
    validator_score: float | None
    reason: Reason | None
    alpha: float | None = None
    degraded: bool = False
    label_set: tuple[str, ...] | None = None
    """Labels, the most probable first, that hold the true one with the coverage of the plan; None where it has none."""


@dataclass(frozen=True)
class Needs:
    """What a request asks of its answers.

    Attributes:
        max_risk: largest risk that it bears; None takes the plan's default point.
        full: the full model is to answer.
        deadline: on the clock of the event loop, in seconds; None if the answer may come late.
    """

    max_risk: float | None = None
    full: bool = False
    deadline: float | None = None


NO_NEEDS = Needs()


@dataclass(frozen=True)
class Rung:
    """A certified point, as far as the cascade has to know it.

    Attributes:
        alpha: of the certificate; None where nothing was certified.
        threshold: accept where score >= threshold; None accepts every answer.
    """

    alpha: float | None
    threshold: float | None


class Admission(Protocol):
    """Decides whether the last stage may be sent more now: see `lspm_ray.serving.budget.Gate`."""

    def enter(self, rows: int, deadline: float | None) -> None:
        """Let rows through.

        Raises:
            QueueFull: not now.
        """

    def give_back(self, rows: int) -> None:
        """Rows that were let through were not sent after all."""


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
        learnt = part(state or {}, stage_name(0))
        scorer = Scorer(plan.labels, validator, checks, first.temperature, first.calibrator, learnt)
        return cls(plan, Task.make(plan.task), scorer)

    @property
    def alone(self) -> bool:
        """One model answers everything."""
        return len(self.plan.stages) == 1

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """Every point that can be served, from strict to lenient."""
        if not self.plan.points:
            return (Rung(None, self.plan.stages[0].threshold),)
        points = (Rung(point.alpha, point.threshold) for point in self.plan.points)
        return tuple(rung for rung in points if not self.alone or rung.threshold is None)

    @cached_property
    def has_full(self) -> bool:
        """The last model is the one that answers are compared with."""
        return self.plan.certificate_id is None or self.plan.stages[-1].model.name == FULL

    def ladder(self, needs: Needs, max_alpha: float | None = None) -> tuple[Rung, ...]:
        """The points that a request may be answered under: its own, then those that overload may lead to.

        Args:
            needs: of the request. With `max_risk` its own is the most lenient point that keeps it, and the only one.
            max_alpha: overload leads to no point beyond this; None: to every certified one.

        Raises:
            NotServed: no certified point keeps `max_risk`.
        """
        if needs.max_risk is not None and self.plan.points:
            kept = [rung for rung in self.rungs if rung.alpha is not None and rung.alpha <= needs.max_risk]
            if not kept:
                raise self._uncertified(needs.max_risk)
            return (kept[-1],)
        default = self.plan.default
        if default is None:
            return self.rungs
        own = Rung(default.alpha, default.threshold)
        limit = np.inf if max_alpha is None else max_alpha
        return (own, *(r for r in self.rungs if r.alpha is not None and default.alpha < r.alpha <= limit))

    def check(self, needs: Needs) -> None:
        """Refuse what the plan cannot give, before any work.

        Raises:
            NotServed: says what is not there.
        """
        if needs.full and not self.has_full:
            raise NotServed(
                "full",
                f"this plan does not hold the full model: {self.plan.stages[-1].model.name} has the last word",
                "Leave `full` out",
            )
        if not needs.full:
            self.ladder(needs)

    def _uncertified(self, max_risk: float) -> NotServed:
        valid = ", ".join(f"{rung.alpha:g}" for rung in self.rungs)
        hint = f"Certified here: {valid}" + ("; or ask for the full model (`full`)" if self.has_full else "")
        return NotServed("max_risk", f"no answers are certified to a risk of {max_risk:g} or less", hint)

    def decide(self, verdicts: Verdicts, rung: Rung) -> Verdicts:
        """The same verdicts under another threshold; what is escalated for another reason than its score stays so."""
        accepted = accept(verdicts.scores, rung.threshold)
        reasons: list[Reason | None] = [
            reason if reason not in (None, "low_score") else None if passed else "low_score"
            for reason, passed in zip(verdicts.reasons, accepted, strict=True)
        ]
        return replace(verdicts, reasons=reasons)

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


@dataclass(frozen=True)
class Full:
    """The full model, which answers everything once the certificate is revoked.

    Attributes:
        name: of the model.
        temperature: divides its logits before the softmax.
        stage: computes its logits.
        calibrator: what follows the temperature; None for nothing.
    """

    name: str
    temperature: float
    stage: Stage
    calibrator: Calibrator | None = None


class Cascade:
    """Runs the rules over the functions that compute.

    Args:
        rules: of the plan.
        encode: texts to token ids.
        stages: one function per stage of the plan, token ids to logits [rows, labels].
        first_timeout_s: how long the first of two stages may take.
        gate: says when the last of two stages can take no more; None: it always can.
        max_alpha: overload leads to no more lenient point than this; None: to every certified one.
    """

    def __init__(
        self,
        rules: Rules,
        encode: Encode,
        stages: Sequence[Stage],
        first_timeout_s: float | None = None,
        gate: Admission | None = None,
        max_alpha: float | None = None,
    ) -> None:
        if len(stages) != len(rules.plan.stages):
            raise ValueError(f"the plan has {len(rules.plan.stages)} stages, got functions for {len(stages)}")
        self.rules = rules
        self.encode = encode
        self.stages = list(stages)
        self.first_timeout_s = first_timeout_s
        self.gate = gate
        self.max_alpha = max_alpha
        self._full: Full | None = None

    def revoke(self, full: Full) -> None:
        """The certificate no longer holds: from now on the full model answers everything."""
        self._full = full

    def check(self, needs: Needs) -> None:
        """Refuse what cannot be given, before any work; the full model, which answers all once revoked, gives anything.

        Raises:
            NotServed: says what is not there.
        """
        if self._full is None:
            self.rules.check(needs)

    async def answer(self, texts: Sequence[str], needs: Needs = NO_NEEDS) -> list[CascadeAnswer]:
        """An answer for each text, in order.

        Args:
            texts: as `clean` leaves them.
            needs: of the request.

        Raises:
            NotServed: the plan cannot give what is needed.
            QueueFull: there is no capacity, not even for the most lenient point.
            StageDown: the stage with the last word gave no usable output for some text.
        """
        self.check(needs)
        verdicts = await (self.skip(texts) if needs.full else self.judge(texts))
        return await self.finish(verdicts, needs)

    async def skip(self, texts: Sequence[str]) -> Verdicts:
        """Leave the texts to the last stage without asking the first.

        Raises:
            StageDown: the only stage failed.
        """
        if self.rules.alone:
            return await self.judge(texts)
        return self.rules.refuse(await self.encode(texts), "requested")

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
            return self.rules.judge(inputs, await self._ask(self._final, inputs), texts)
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

    async def finish(self, verdicts: Verdicts, needs: Needs = NO_NEEDS) -> list[CascadeAnswer]:
        """Escalate what was not accepted, all in one call, and put the answers together.

        When the last stage cannot take them, the request's texts are looked at under the next more lenient point.

        Raises:
            QueueFull: what even the most lenient point escalates cannot be taken.
            StageDown: the last stage gave no usable output.
        """
        revoked = [reason == "revoked" for reason in verdicts.reasons]
        ladder = self.rules.ladder(Needs() if needs.full or all(revoked) else needs, self.max_alpha)
        refused, rows = QueueFull("no point was tried"), len(verdicts) + 1
        for rung in ladder:
            decided = verdicts if self.rules.alone else self.rules.decide(verdicts, rung)
            escalated = [self._escalates(reason) for reason in decided.reasons]
            rest = np.flatnonzero(escalated).tolist()
            if len(rest) == rows:
                continue  # a point that helps none of these texts
            rows, final = len(rest), self._final
            try:
                return self._answers(verdicts, await self._escalated(decided, rest, needs, final), ladder, final)
            except QueueFull as error:
                refused = error
        raise refused

    def _escalates(self, reason: Reason | None) -> bool:
        """Whether the model with the last word answers: of a single model's own answers only those after its end."""
        return reason is not None and (not self.rules.alone or reason == "revoked")

    async def _escalated(self, verdicts: Verdicts, rest: Sequence[int], needs: Needs, final: Full) -> Verdicts:
        """With the last model's probabilities in the rows of `rest`."""
        if not rest:
            return verdicts
        # The gate knows the queue of the plan's own last model.
        gate = self.gate if final.name == self.rules.plan.stages[-1].model.name else None
        if gate is not None:
            gate.enter(len(rest), needs.deadline)
        try:
            logits = await self._ask(final, [verdicts.inputs[row] for row in rest])
        except QueueFull:
            if gate is not None:
                gate.give_back(len(rest))
            raise
        found = verdicts.probabilities.copy()
        found[rest] = probabilities(logits, final.temperature, final.calibrator)
        return replace(verdicts, probabilities=found)

    @property
    def _final(self) -> Full:
        """The model with the last word."""
        last = self.rules.plan.stages[-1]
        return self._full or Full(last.model.name, last.temperature, self.stages[-1], last.calibrator)

    async def _ask(self, model: Full, inputs: Sequence[Encoded]) -> Logits:
        logits = await model.stage(inputs)
        if not usable(logits, len(inputs), len(self.rules.plan.labels)).all():
            raise StageDown(f"{model.name} returned an output that is not usable")
        return logits

    def _answers(self, judged: Verdicts, decided: Verdicts, ladder: Sequence[Rung], final: Full) -> list[CascadeAnswer]:
        plan, first = self.rules.plan, self.rules.plan.stages[0].model.name
        found = self.rules.task.decode(decided.probabilities, plan.labels)
        sets = self._label_sets(decided, final)
        # The strictest point of the ladder under which each score is accepted.
        needed = np.argmax([accept(judged.scores, rung.threshold) for rung in ladder], axis=0)
        answers = []
        for row, (answer, score, reason, rung) in enumerate(
            zip(found, decided.scores, decided.reasons, needed, strict=True)
        ):
            accepted = not self._escalates(reason)
            answers.append(
                CascadeAnswer(
                    label=answer.label,
                    probability=answer.probability,
                    variant=first if accepted else final.name,
                    escalated=not accepted,
                    validator_score=None if np.isnan(score) else float(score),
                    reason=None if accepted else reason,
                    alpha=None if reason in ("requested", "revoked") else ladder[rung if accepted else 0].alpha,
                    degraded=accepted and rung > 0,
                    label_set=sets[row],
                )
            )
        return answers

    def _label_sets(self, verdicts: Verdicts, final: Full) -> list[tuple[str, ...] | None]:
        """By the stage that answered; a full model that is no stage of the plan has none."""
        plan, found = self.rules.plan, verdicts.probabilities
        escalated = np.array([self._escalates(reason) for reason in verdicts.reasons])
        sets: list[tuple[str, ...] | None] = [None] * len(verdicts)
        for stage, name, rows in (
            (plan.stages[0], plan.stages[0].model.name, ~escalated),
            (plan.stages[-1], final.name, escalated),
        ):
            if stage.label_sets is not None and stage.model.name == name and rows.any():
                some = label_set_names(stage.label_sets.members(found[rows]), found[rows], plan.labels)
                for row, named in zip(np.flatnonzero(rows).tolist(), some, strict=True):
                    sets[row] = named
        return sets
