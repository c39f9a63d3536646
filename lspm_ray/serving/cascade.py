"""The cascade: the first variant answers, the validator scores the answer, what it cannot vouch for is escalated.

A middle model's answers are judged in the same way; the last model has the last word. Whatever a stage but the last
does wrong, failing, keeping silent, or giving what nobody can use, makes the next one answer.

Pure: it knows the plan and some functions (encode, one per stage), not where they run. The endpoint and offline
prediction run this same code, so an answer does not depend on the way it was asked for.

Where a later model has no capacity left, a request is answered under the next more lenient point of the certificate,
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
from lspm_ray.selection.plan import OperatingPoint, Plan
from lspm_ray.selection.scorer import Scorer, stage_name
from lspm_ray.tasks import Encoded, Task
from lspm_ray.validators import Check, State, Validator
from lspm_ray.validators.contract import part

Logits = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Awaitable[list[Encoded]]]
Stage = Callable[[Sequence[Encoded]], Awaitable[Logits]]
Reason = str
"""Why an answer is escalated: `low_score`, `invalid_output`, `error`, `timeout`, `requested` (the request asked for
full), `revoked` (the certificate no longer holds), or what a check says. Of the last stage that passed it on."""
Cause = Literal["queue", "budget", "deadline"]

_log = logging.getLogger(__name__)


_UNASKED: Reason = "unasked"
"""Of a text in a middle stage that was not asked about it."""
_STRAIGHT_TO_LAST = ("requested", "revoked")


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
    """What a stage said about some texts, and whether that may be said.

    Attributes:
        inputs: token ids of each text.
        probabilities: calibrated, [rows, labels]; NaN in rows without a usable output.
        scores: of the validator, [rows]; NaN where there is none.
        reasons: why a row is escalated; None where it is accepted.
        texts: as the models were given them; None where nobody reads them.
    """

    inputs: Sequence[Encoded]
    probabilities: NDArray[np.float64]
    scores: NDArray[np.float64]
    reasons: Sequence[Reason | None]
    texts: Sequence[str] | None = None

    def __getitem__(self, rows: slice) -> Self:
        texts = None if self.texts is None else self.texts[rows]
        return type(self)(self.inputs[rows], self.probabilities[rows], self.scores[rows], self.reasons[rows], texts)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class CascadeAnswer:
    """One answer with where it comes from.

    Attributes:
        alpha: of the certified point that it was given under; None where nothing had to be certified.
        degraded: it was accepted only because a later model had no capacity left, under a more lenient point than the
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
        thresholds: of each stage whose answers are judged: accept where score >= threshold; None accepts every answer.
    """

    alpha: float | None
    thresholds: tuple[float | None, ...]


class Admission(Protocol):
    """Decides whether a stage may be sent more now: see `lspm_ray.serving.budget.Gate`."""

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
        scorers: judge the answers of each stage but the last, of a single stage too.
    """

    plan: Plan
    task: Task
    scorers: Sequence[Scorer]

    @classmethod
    def of(cls, plan: Plan, state: State | None = None) -> Self:
        """The rules of a plan.

        Args:
            plan: what to serve.
            state: what validator and checks have learnt about every stage.
        """
        validator, checks = Validator.make(plan.validator), [Check.make(spec) for spec in plan.checks]
        judged = plan.stages[:-1] or plan.stages
        learnt = [part(state or {}, stage_name(number)) for number in range(len(judged))]
        scorers = [
            Scorer(plan.labels, validator, checks, stage.temperature, stage.calibrator, own)
            for stage, own in zip(judged, learnt, strict=True)
        ]
        return cls(plan, Task.make(plan.task), scorers)

    @property
    def alone(self) -> bool:
        """One model answers everything."""
        return len(self.plan.stages) == 1

    @property
    def last(self) -> int:
        """How many stages are judged, which is the number of the one that has the last word."""
        return len(self.scorers)

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """Every point that can be served, from strict to lenient."""
        if not self.plan.points:
            return (Rung(None, tuple(stage.threshold for stage in self.plan.stages[: self.last])),)
        points = (self._rung(point) for point in self.plan.points)
        return tuple(rung for rung in points if not self.alone or rung.thresholds == (None,))

    def _rung(self, point: OperatingPoint) -> Rung:
        # A point that accepts everything names the first stage's threshold only.
        thresholds = (*point.thresholds, *[None] * self.last)
        return Rung(point.alpha, thresholds[: self.last])

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
        own = self._rung(default)
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

    def decide(self, verdicts: Verdicts, threshold: float | None) -> list[Reason | None]:
        """The reasons under another threshold; what is escalated for another reason than its score stays so."""
        accepted = accept(verdicts.scores, threshold)
        return [
            reason if reason not in (None, "low_score") else None if passed else "low_score"
            for reason, passed in zip(verdicts.reasons, accepted, strict=True)
        ]

    def judge(
        self, inputs: Sequence[Encoded], logits: Logits, texts: Sequence[str] | None = None, stage: int = 0
    ) -> Verdicts:
        """Score and accept or escalate a stage's output for `inputs`, which were made of `texts`."""
        fine = np.flatnonzero(usable(logits, len(inputs), len(self.plan.labels)))
        found = np.full((len(inputs), len(self.plan.labels)), np.nan)
        scores = np.full(len(inputs), np.nan)
        reasons: list[Reason | None] = ["invalid_output"] * len(inputs)
        if len(fine):
            kept = fine.tolist()
            some = None if texts is None else [texts[row] for row in kept]
            judged = self.scorers[stage].judge([inputs[row] for row in kept], logits[fine], some)
            found[fine], scores[fine] = judged.probabilities, judged.scores
            accepted = accept(judged.scores, self.plan.stages[stage].threshold)
            for row, refused, passed in zip(kept, judged.refused, accepted, strict=True):
                reasons[row] = refused or (None if passed else "low_score")
        return Verdicts(inputs, found, scores, reasons, texts)

    def refuse(self, inputs: Sequence[Encoded], reason: Reason, texts: Sequence[str] | None = None) -> Verdicts:
        """Escalate everything: the stage gave no output."""
        rows, labels = len(inputs), len(self.plan.labels)
        return Verdicts(inputs, np.full((rows, labels), np.nan), np.full(rows, np.nan), [reason] * rows, texts)


class Course:
    """The way of some texts through the stages, as far as it is known.

    Args:
        rules: of the plan.
        first: what the first stage said.
    """

    def __init__(self, rules: Rules, first: Verdicts) -> None:
        self._rules = rules
        self.said = [first, *(rules.refuse(first.inputs, _UNASKED) for _ in range(1, rules.last))]

    def under(self, rung: Rung) -> tuple[NDArray[np.int64], list[Reason | None]]:
        """Which stage has each text under a point, for good or until it is asked, and why the one before passed it on.

        The number of the stage with the last word is `Rules.last`, also where that is not the plan's own.
        """
        by = np.zeros(len(self.said[0]), dtype=np.int64)
        why: list[Reason | None] = [None] * len(by)
        for stage, (verdicts, threshold) in enumerate(zip(self.said, rung.thresholds, strict=True)):
            reasons = self._rules.decide(verdicts, threshold)
            for row in np.flatnonzero(by == stage).tolist():
                reason = reasons[row]
                if self._passes_on(reason):
                    by[row] = self._rules.last if reason in _STRAIGHT_TO_LAST else stage + 1
                    why[row] = reason
        return by, why

    def _passes_on(self, reason: Reason | None) -> bool:
        """A variant that serves alone passes on only what is the full model's."""
        return reason not in (None, _UNASKED) and (not self._rules.alone or reason in _STRAIGHT_TO_LAST)

    def next(self, by: NDArray[np.int64]) -> tuple[int, list[int]]:
        """The earliest stage that has to be asked, and about which texts; the last may have none.

        Args:
            by: see `under`.
        """
        for stage in range(1, self._rules.last):
            rows = [row for row in np.flatnonzero(by == stage).tolist() if self.said[stage].reasons[row] == _UNASKED]
            if rows:
                return stage, rows
        return self._rules.last, np.flatnonzero(by == self._rules.last).tolist()

    def some(self, rows: Sequence[int]) -> tuple[list[Encoded], list[str] | None]:
        """Token ids of some of the texts, and these themselves."""
        first = self.said[0]
        texts = None if first.texts is None else [first.texts[row] for row in rows]
        return [first.inputs[row] for row in rows], texts

    def add(self, stage: int, rows: Sequence[int], verdicts: Verdicts) -> None:
        """What a middle stage said about these rows."""
        old = self.said[stage]
        found, scores, reasons = old.probabilities.copy(), old.scores.copy(), list(old.reasons)
        found[rows], scores[rows] = verdicts.probabilities, verdicts.scores
        for row, reason in zip(rows, verdicts.reasons, strict=True):
            reasons[row] = reason
        self.said[stage] = replace(old, probabilities=found, scores=scores, reasons=reasons)


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
        first_timeout_s: how long the first of several stages may take.
        gate: says when the last of several stages can take no more; None: it always can.
        middle_gates: the same of the stages between; none: they always can.
        max_alpha: overload leads to no more lenient point than this; None: to every certified one.
        full: the full model, where it is there beside the plan's own stages.
        full_gate: says when that one can take no more; None: it always can.
    """

    def __init__(
        self,
        rules: Rules,
        encode: Encode,
        stages: Sequence[Stage],
        first_timeout_s: float | None = None,
        gate: Admission | None = None,
        max_alpha: float | None = None,
        full: Full | None = None,
        full_gate: Admission | None = None,
        middle_gates: Sequence[Admission] = (),
    ) -> None:
        if len(stages) != len(rules.plan.stages):
            raise ValueError(f"the plan has {len(rules.plan.stages)} stages, got functions for {len(stages)}")
        self.rules = rules
        self.encode = encode
        self.stages = list(stages)
        self.first_timeout_s = first_timeout_s
        self.gate = gate
        self.middle_gates = middle_gates
        self.max_alpha = max_alpha
        self.full = full
        self.full_gate = full_gate
        self._takes_over: Full | None = None

    def revoke(self, full: Full) -> None:
        """The certificate no longer holds: from now on the full model answers everything."""
        self._takes_over = full

    def check(self, needs: Needs) -> None:
        """Refuse what cannot be given, before any work; the full model, which answers all once revoked, gives anything.

        Raises:
            NotServed: says what is not there.
        """
        if self._takes_over is None and not (needs.full and self.full is not None):
            self.rules.check(needs)

    def alpha(self, needs: Needs) -> float | None:
        """Of the point that a request is to be answered under; None for the full model, and where there is no point."""
        if needs.full:
            return None
        try:
            return self.rules.ladder(needs)[0].alpha
        except NotServed:
            return None

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
        """Leave the texts to the full model without asking any other.

        Raises:
            StageDown: the only stage failed.
        """
        if self.rules.alone and self.full is None:
            return await self.judge(texts)
        return self.rules.refuse(await self.encode(texts), "requested")

    async def judge(self, texts: Sequence[str]) -> Verdicts:
        """Ask the first stage. With a single stage its failure is final; otherwise it escalates.

        Raises:
            QueueFull: too much is waiting for the first stage.
            StageDown: the only stage failed.
        """
        inputs = await self.encode(texts)
        if self._takes_over is not None:
            return self.rules.refuse(inputs, "revoked")
        if self.rules.alone:
            return self.rules.judge(inputs, await self._ask(self._final(NO_NEEDS), inputs), texts)
        return await self._said(0, inputs, texts)

    async def _said(self, stage: int, inputs: Sequence[Encoded], texts: Sequence[str] | None) -> Verdicts:
        """What a stage but the last says; where it says nothing, all is escalated.

        Raises:
            QueueFull: too much is waiting for it.
        """
        name, reason = self.rules.plan.stages[stage].model.name, "error"
        try:
            async with asyncio.timeout(None if stage else self.first_timeout_s):
                logits = await self.stages[stage](inputs)
            return self.rules.judge(inputs, logits, texts, stage)
        except QueueFull:
            raise  # sending the surplus to the last model would take that down too
        except TimeoutError:
            _log.warning("%s: no answer in time, escalating %d texts", name, len(inputs))
            reason = "timeout"
        except Exception as error:
            _log.error("%s failed, escalating %d texts: %r", name, len(inputs), error)
        return self.rules.refuse(inputs, reason, texts)

    async def finish(self, verdicts: Verdicts, needs: Needs = NO_NEEDS) -> list[CascadeAnswer]:
        """Escalate what was not accepted, in one call of each stage, and put the answers together.

        When a later stage cannot take them, the request's texts are looked at under the next more lenient point. What a
        middle stage has said by then is not asked again.

        Raises:
            QueueFull: what even the most lenient point escalates cannot be taken.
            StageDown: the last stage gave no usable output.
        """
        revoked = [reason == "revoked" for reason in verdicts.reasons]
        ladder = self.rules.ladder(Needs() if needs.full or all(revoked) else needs, self.max_alpha)
        course, refused, stuck = Course(self.rules, verdicts), QueueFull("no point was tried"), (-1, -1)
        for rung in ladder:
            by, why = course.under(rung)
            stage, rest = course.next(by)
            try:
                while stage < self.rules.last and (stage, len(rest)) != stuck:
                    await self._ask_middle(course, stage, rest, needs)
                    by, why = course.under(rung)
                    stage, rest = course.next(by)
                if (stage, len(rest)) != stuck:  # else a point that helps none of these texts
                    final = self._final(needs)
                    found = self._given(course, by, await self._last_word(course, rest, needs, final))
                    return self._answers(found, by, why, course, ladder, final)
            except QueueFull as error:
                refused, stuck = error, (stage, len(rest))
        raise refused

    async def _ask_middle(self, course: Course, stage: int, rest: Sequence[int], needs: Needs) -> None:
        if self.middle_gates:
            self.middle_gates[stage - 1].enter(len(rest), needs.deadline)
        course.add(stage, rest, await self._said(stage, *course.some(rest)))

    async def _last_word(
        self, course: Course, rest: Sequence[int], needs: Needs, final: Full
    ) -> NDArray[np.float64] | None:
        """The last model's probabilities of the rows of `rest`; None where there are none."""
        if not rest:
            return None
        own = final.name == self.rules.plan.stages[-1].model.name
        gate = self.gate if own else self.full_gate
        if gate is not None:
            gate.enter(len(rest), needs.deadline)
        try:
            logits = await self._ask(final, course.some(rest)[0])
        except QueueFull:
            if gate is not None:
                gate.give_back(len(rest))
            raise
        return probabilities(logits, final.temperature, final.calibrator)

    def _final(self, needs: Needs) -> Full:
        """The model with the last word."""
        if self._takes_over is not None:
            return self._takes_over
        if needs.full and self.full is not None:
            return self.full
        last = self.rules.plan.stages[-1]
        return Full(last.model.name, last.temperature, self.stages[-1], last.calibrator)

    async def _ask(self, model: Full, inputs: Sequence[Encoded]) -> Logits:
        logits = await model.stage(inputs)
        if not usable(logits, len(inputs), len(self.rules.plan.labels)).all():
            raise StageDown(f"{model.name} returned an output that is not usable")
        return logits

    def _answers(
        self,
        found: NDArray[np.float64],
        by: NDArray[np.int64],
        why: Sequence[Reason | None],
        course: Course,
        ladder: Sequence[Rung],
        final: Full,
    ) -> list[CascadeAnswer]:
        plan, scores = self.rules.plan, course.said[0].scores
        names = [*(stage.model.name for stage in plan.stages[: self.rules.last]), final.name]
        sets, needed = self._label_sets(found, by, final), self._needed(course, by, ladder)
        return [
            CascadeAnswer(
                label=answer.label,
                probability=answer.probability,
                variant=names[stage],
                escalated=stage > 0,
                validator_score=None if np.isnan(score) else float(score),
                reason=reason,
                alpha=None if reason in _STRAIGHT_TO_LAST else ladder[rung].alpha,
                degraded=rung > 0,
                label_set=label_set,
            )
            for answer, stage, score, reason, rung, label_set in zip(
                self.rules.task.decode(found, plan.labels), by.tolist(), scores, why, needed, sets, strict=True
            )
        ]

    def _needed(self, course: Course, by: NDArray[np.int64], ladder: Sequence[Rung]) -> list[int]:
        """The strictest point of the ladder under which the stage that answers each row would have done so too.

        A point that lets it accept lets no earlier stage do so: thresholds fall from strict to lenient, and the more
        lenient point that is in use did not either. The last would have answered under the strictest.
        """
        needed = np.zeros(len(by), dtype=np.int64)
        for stage, verdicts in enumerate(course.said):
            accepted = np.argmax([accept(verdicts.scores, rung.thresholds[stage]) for rung in ladder], axis=0)
            needed = np.where(by == stage, accepted, needed)
        rungs: list[int] = needed.tolist()
        return rungs

    def _given(
        self, course: Course, by: NDArray[np.int64], last_word: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """The probabilities of the answers that are given [rows, labels]."""
        found = np.full_like(course.said[0].probabilities, np.nan)
        for stage, verdicts in enumerate(course.said):
            found[by == stage] = verdicts.probabilities[by == stage]
        if last_word is not None:
            found[by == self.rules.last] = last_word
        return found

    def _label_sets(
        self, found: NDArray[np.float64], by: NDArray[np.int64], final: Full
    ) -> list[tuple[str, ...] | None]:
        """By the stage that answered; a full model that is no stage of the plan has none."""
        plan = self.rules.plan
        sets: list[tuple[str, ...] | None] = [None] * len(by)
        last = plan.stages[-1] if plan.stages[-1].model.name == final.name else None
        for number, stage in enumerate([*plan.stages[: self.rules.last], last]):
            rows = by == number
            if stage is not None and stage.label_sets is not None and rows.any():
                some = label_set_names(stage.label_sets.members(found[rows]), found[rows], plan.labels)
                for row, named in zip(np.flatnonzero(rows).tolist(), some, strict=True):
                    sets[row] = named
        return sets


def within(stage: Stage, seconds: float | None) -> Stage:
    """A stage that is given up after some time; None never gives it up."""

    async def limited(inputs: Sequence[Encoded]) -> Logits:
        async with asyncio.timeout(seconds):
            return await stage(inputs)

    return limited
