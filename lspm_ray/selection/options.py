"""What could be served, what each would cost, and why the others were not chosen. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.evaluation.calibration import CalibratorKind
from lspm_ray.evaluation.forgetting import ClassChange, class_changes
from lspm_ray.profiling.pareto import Constraints, violations
from lspm_ray.profiling.table import Speed
from lspm_ray.selection.plan import OperatingPoint
from lspm_ray.selection.points import Ints, Walk, Wanted, answered_by, certify, tied_path, walk
from lspm_ray.selection.risk import (
    ACCEPT_ALL,
    Certified,
    RiskKind,
    cost_of_stages,
    fixed_sequence,
    losses,
)
from lspm_ray.selection.scorer import Scorer, fit_scorer
from lspm_ray.tasks import Encoded
from lspm_ray.validators import Check, Training, Validator

TIES = (0.5, 1.0, 2.0, 4.0)
"""Exponents that are tried where thresholds of two stages have to be tied: see `tied_path`."""
_EXTENDED = 3
"""Pairs that a third model is added to."""


@dataclass(frozen=True)
class Rows:
    """Outputs on one split, row by row.

    Attributes:
        labels: [rows].
        stages: logits of the models of a cascade in the order in which they are asked, [rows, labels] each.
        full: logits of the full model [rows, labels].
        inputs: token ids of each row, for validators that look at them.
        texts: of each row, for validators and checks that read them.
    """

    labels: NDArray[np.int64]
    stages: Sequence[NDArray[np.float32]]
    full: NDArray[np.float32]
    inputs: list[Encoded]
    texts: list[str] | None = None

    @property
    def first(self) -> NDArray[np.float32]:
        """Logits of the model that is asked first."""
        return self.stages[0]

    def fit_scorer(
        self,
        validator: Validator,
        checks: Sequence[Check],
        kind: CalibratorKind,
        risk: RiskKind,
        labels: Sequence[str],
        training: Callable[[], Training],
        stage: int = 0,
    ) -> Scorer:
        """Learn how far a stage can be trusted from these rows, all of them: see `fit_scorer`."""
        return fit_scorer(
            validator,
            checks,
            kind,
            labels,
            inputs=self.inputs,
            logits=self.stages[stage],
            truth=self.labels,
            losses=self._losses(risk, self._answers(stage)),
            texts=self.texts,
            training=training,
        )

    def take(self, index: NDArray[np.int64]) -> Rows:
        """Some of the rows, in this order; the same one may occur twice."""
        order = index.tolist()
        return Rows(
            self.labels[index],
            [logits[index] for logits in self.stages],
            self.full[index],
            [self.inputs[row] for row in order],
            None if self.texts is None else [self.texts[row] for row in order],
        )

    def scores(self, scorer: Scorer, stage: int = 0) -> NDArray[np.float64]:
        """The score of each answer of a stage [rows], `REFUSED` where it is escalated whatever happens."""
        return scorer.scores(self.inputs, self.stages[stage], self.texts)

    def all_scores(self, scorers: Sequence[Scorer]) -> list[NDArray[np.float64]]:
        """The scores of every stage but the last."""
        return [self.scores(scorer, stage) for stage, scorer in enumerate(scorers)]

    def certify(
        self, risk: RiskKind, scores: NDArray[np.float64], grid: NDArray[np.float64], alpha: float, delta: float
    ) -> Certified:
        """Walk the thresholds of `grid` on these rows: see `fixed_sequence`."""
        first, last = (self._losses(risk, self._answers(stage)) for stage in (0, -1))
        return fixed_sequence(scores, first, grid, alpha, delta, last)

    def walk(
        self,
        risk: RiskKind,
        scores: Sequence[NDArray[np.float64]],
        path: NDArray[np.float64],
        *,
        last_is_full: bool,
        checked: bool,
    ) -> Walk:
        """What becomes of these rows at each step of a path of thresholds: see `lspm_ray.selection.points.walk`."""
        lost = self.lost(risk, last_is_full=last_is_full)
        return walk(scores, lost, path, self.labels, self.full.shape[1], checked=checked)

    def lost(self, risk: RiskKind, *, last_is_full: bool) -> list[NDArray[np.bool_] | None]:
        """Whether the answer of each stage would be a loss, [rows] each; None for full, which cannot lose."""
        found: list[NDArray[np.bool_] | None] = [
            self._losses(risk, self._answers(stage)) for stage in range(len(self.stages))
        ]
        return [*found[:-1], None] if last_is_full else found

    def risk(self, risk: RiskKind, by: Ints) -> float:
        """Share of rows whose answer is a loss, when stage `by` answers each [rows]; see `answered_by`."""
        return float(self._losses(risk, self._given(by)).mean())

    def accuracy(self, by: Ints) -> float:
        """Accuracy when stage `by` answers each row."""
        return float((self._given(by) == self.labels).mean())

    def balanced_accuracy(self, by: Ints) -> float:
        """Mean recall of the classes that occur, when stage `by` answers each row."""
        return self._mean_recall(self._given(by) == self.labels)

    def changes(self, by: Ints, names: Sequence[str], bound: float | None) -> list[ClassChange]:
        """Of each class, against full, when stage `by` answers each row: see `class_changes`."""
        right, full_right = self._given(by) == self.labels, self.full.argmax(1) == self.labels
        return class_changes(right, full_right, self.labels, names, bound)

    @property
    def full_accuracy(self) -> float:
        """Accuracy of the full model alone."""
        return float((self.full.argmax(1) == self.labels).mean())

    @property
    def full_balanced_accuracy(self) -> float:
        """Balanced accuracy of the full model alone."""
        return self._mean_recall(self.full.argmax(1) == self.labels)

    def _mean_recall(self, right: NDArray[np.bool_]) -> float:
        return float(np.mean([right[self.labels == label].mean() for label in np.unique(self.labels)]))

    def _answers(self, stage: int) -> Ints:
        answers: Ints = self.stages[stage].argmax(1)
        return answers

    def _given(self, by: Ints) -> Ints:
        given: Ints = np.stack([logits.argmax(1) for logits in self.stages])[by, np.arange(len(by))]
        return given

    def _losses(self, risk: RiskKind, answers: Ints) -> NDArray[np.bool_]:
        return losses(risk, answers, self.full.argmax(1), self.labels)


class Option(Config):
    """One thing that could be served, as estimated on the selection split.

    Attributes:
        first: the variant that answers first.
        middle: what is asked before the last; at most one model.
        last: the model that answers what is escalated in the end; None when the first serves alone.
        temperature: of the first, fitted on the selection split.
        threshold: estimated there too; the certificate sets the real one. None when the first serves alone.
        escalation_rate: share of rows that the first passes on.
        middle_escalation_rates: share of all rows that each middle model passes on.
        tie: exponent of the path, where there is a middle model.
        accuracy_drop: against full, on the selection split.
        cost: per row, relative to full.
        rejected: why it cannot be chosen; empty if it can.
    """

    first: str
    middle: list[str] = Field(default_factory=list)
    last: str | None
    temperature: float = 1.0
    threshold: float | None = None
    escalation_rate: float = 0.0
    middle_escalation_rates: list[float] = Field(default_factory=list)
    tie: float = 1.0
    accuracy_drop: float = 0.0
    cost: float
    rejected: str = ""

    @property
    def names(self) -> list[str]:
        """Of its models, in the order in which they are asked."""
        return [self.first, *self.middle, *([] if self.last is None else [self.last])]

    def sentence(self) -> str:
        """What it would cost, in words."""
        shares, asked = (self.escalation_rate, *self.middle_escalation_rates), self.names[1:]
        passed = " and ".join(f"{share:.0%} to {name}" for share, name in zip(shares, asked, strict=False))
        return f"would cost {self.cost:.3f} of full ({f'escalating {passed}' if asked else 'alone'})"


class Priced(Protocol):
    """What has to be known of a model to estimate what serving it would cost; a `VariantProfile`, or as much of one."""

    @property
    def name(self) -> str:
        """Of the variant."""

    @property
    def cost(self) -> float:
        """Seconds per example relative to full."""

    @property
    def speed(self) -> Speed | None:
        """As measured."""


class Promise(Config):
    """What an option has to keep, and what the estimate needs to know beside the rows."""

    risk: RiskKind
    alpha: float
    delta: float
    per_class: dict[int, float] = Field(default_factory=dict)
    grid_size: int
    validator_cost: float
    constraints: Constraints
    labels: list[str]


def estimate(models: Sequence[Priced], rows: Rows, scorers: Sequence[Scorer], promise: Promise) -> Option:
    """What a cascade would give, walking the thresholds on selection rows as certification will on others.

    With a middle model the cheapest of the paths of `TIES`. A scorer that learns has learnt from these rows, so this is
    a little hopeful; certification is not.

    Args:
        models: in the order in which they are asked.
        rows: their outputs on the selection split.
        scorers: of every model but the last.
        promise: what is to be kept.
    """
    scores = rows.all_scores(scorers)
    ties = TIES if len(models) > 2 else (1.0,)
    return min((_estimate(models, rows, scores, scorers, promise, tie) for tie in ties), key=_order)


def _estimate(
    models: Sequence[Priced],
    rows: Rows,
    scores: Sequence[NDArray[np.float64]],
    scorers: Sequence[Scorer],
    promise: Promise,
    tie: float,
) -> Option:
    path, checked = tied_path(scores, promise.grid_size, tie), bool(scorers[0].checks)
    walked = rows.walk(promise.risk, scores, path, last_is_full=models[-1].name == FULL, checked=checked)
    point = certify(walked, Wanted(promise.alpha, (), promise.delta, promise.per_class), promise.labels).default
    used = models[:1] if point is not None and point.threshold is None else models
    shares, drop = [1.0] * (len(models) - 1) if point is None else point.shares, 0.0
    if point is None or point.escalation_rate >= 1:
        reason = f"no share of its answers keeps {promise.risk} below {promise.alpha:.2%} on the selection rows"
    else:
        by = answered_by(scores, limits_of(point, len(scores)))
        reason = "; ".join(broken_limits(used, rows, by, promise.constraints, promise.labels))
        drop = rows.full_accuracy - rows.accuracy(by)
    return Option(
        first=models[0].name,
        middle=[model.name for model in used[1:-1]],
        last=None if len(used) == 1 else models[-1].name,
        temperature=scorers[0].temperature,
        threshold=None if point is None else point.threshold,
        escalation_rate=shares[0] if shares else 0.0,
        middle_escalation_rates=shares[1:],
        tie=tie,
        accuracy_drop=drop,
        cost=cost_of_stages([model.cost for model in used], promise.validator_cost, shares),
        rejected=reason,
    )


def limits_of(point: OperatingPoint, judged: int) -> list[float]:
    """The lowest scores that the stages but the last may answer at.

    Args:
        point: a certified one.
        judged: how many stages these are.
    """
    if point.threshold is None:
        return [ACCEPT_ALL] * judged
    return [point.threshold, *point.middle_thresholds]


def triples(
    pairs: Sequence[Option], models: Mapping[str, Priced], validator_cost: float, gain: float
) -> Iterator[list[str]]:
    """Three models each, in the order in which they would be asked, that may be worth an estimate.

    Extended are the cheapest three pairs that are allowed, with every other model in the one place where costs rise
    from stage to stage. Left out is what cannot save `gain` of the cost of the best that needs fewer models: at a step
    that keeps the promise the first model's own losses do so too, so it passes on no less than before full. It costs at
    least this share of the middle model beside itself, whatever reaches the last.

    Args:
        pairs: every pair that was estimated, those whose first model turned out to do alone too.
        models: by name, full among them.
        validator_cost: of one answer, as a share of full's cost.
        gain: share of the best cost to be saved.
    """
    allowed = sorted((pair for pair in pairs if not pair.rejected), key=_order)
    passed_on = {pair.first: pair.escalation_rate for pair in pairs if pair.last in (FULL, None)}
    seen: set[tuple[str, ...]] = set()
    for pair in [pair for pair in allowed if pair.last is not None][:_EXTENDED]:
        for name in models:
            names = tuple(sorted({*pair.names, name}, key=lambda each: (each == FULL, models[each].cost, each)))
            costs = [models[each].cost for each in names]
            if len(names) < 3 or names in seen or costs != sorted(set(costs)) or names[0] not in passed_on:
                continue
            seen.add(names)
            least = cost_of_stages(costs, validator_cost, [passed_on[names[0]], 0.0])
            if least <= (1 - gain) * allowed[0].cost:
                yield list(names)


def worth_a_third(triple: Option, best: float, gain: float) -> Option:
    """The option, rejected where it saves too little to be worth another deployment.

    Args:
        triple: as estimated.
        best: cost of the best that needs fewer models.
        gain: share of it that has to be saved.
    """
    if triple.rejected or triple.cost <= (1 - gain) * best:
        return triple
    reason = f"{triple.sentence()}: saves less than {gain:.0%} of the {best:.3f} that need fewer models"
    return triple.model_copy(update={"rejected": reason})


def broken_limits(
    used: Sequence[Priced], rows: Rows, by: Ints, constraints: Constraints, labels: Sequence[str]
) -> list[str]:
    """What a plan of these models would break, in words: judged by the answers that would leave it.

    Args:
        used: the models of the plan.
        rows: their outputs.
        by: which stage answers each row, [rows].
        constraints: the limits.
        labels: names of the classes.
    """
    speeds = [v.speed for v in used if v.speed]
    return violations(
        constraints,
        accuracy_drop=rows.full_accuracy - rows.accuracy(by),
        # An escalated request waits for all of them.
        p99_ms=sum(speed.p99_ms for speed in speeds),
        memory_mb=sum(speed.peak_memory_mb for speed in speeds),
        # Full is what others are compared with, and may always serve.
        changed=max(
            (v.speed.company.proven for v in used if v.name != FULL and v.speed and v.speed.company), default=0.0
        ),
        changes=rows.changes(by, labels, constraints.max_recall_drop),
    )


def choose(options: Sequence[Option], min_saving: float) -> tuple[Option | None, dict[str, str]]:
    """The cheapest option that is allowed and saves enough, and why each other variant was left out.

    Args:
        options: everything that was estimated.
        min_saving: share of the full model's cost that must be saved.

    Returns:
        The option (None: the full model serves alone), and variant -> reason for every first variant not in it.
    """
    best = min(options, key=_order, default=None)
    chosen = best if best is not None and not best.rejected and best.cost <= 1 - min_saving else None
    used = set(chosen.names) if chosen else set()
    reasons = {}
    for name, own in best_of_each(options).items():
        if name in used:
            continue
        if own.rejected:
            reasons[name] = own.rejected
        elif chosen is None:
            reasons[name] = f"{own.sentence()}: saves less than {min_saving:.0%}"
        else:
            reasons[name] = f"{own.sentence()}, the plan {chosen.cost:.3f}"
    return chosen, reasons


def best_of_each(options: Sequence[Option]) -> dict[str, Option]:
    """For every variant the best option in which it answers first: one that is allowed if there is any."""
    return {option.first: option for option in sorted(options, key=_order, reverse=True)}


def _order(option: Option) -> tuple[bool, float, list[str], float]:
    return bool(option.rejected), option.cost, option.names, option.tie
