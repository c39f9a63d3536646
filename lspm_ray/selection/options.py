"""What could be served, what each would cost, and why the others were not chosen. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from lspm_ray.selection.points import Walk, Wanted, certify, tied_path, walk
from lspm_ray.selection.risk import (
    ACCEPT_ALL,
    Certified,
    RiskKind,
    cascade_cost,
    fixed_sequence,
    losses,
)
from lspm_ray.selection.scorer import Scorer, fit_scorer
from lspm_ray.tasks import Encoded
from lspm_ray.validators import Check, Training, Validator


@dataclass(frozen=True)
class Rows:
    """Outputs on one split, row by row.

    Attributes:
        labels: [rows].
        first: logits of the variant that answers first [rows, labels].
        last: logits of the model that answers what is escalated [rows, labels].
        full: logits of the full model [rows, labels].
        inputs: token ids of each row, for validators that look at them.
        texts: of each row, for validators and checks that read them.
    """

    labels: NDArray[np.int64]
    first: NDArray[np.float32]
    last: NDArray[np.float32]
    full: NDArray[np.float32]
    inputs: list[Encoded]
    texts: list[str] | None = None

    def fit_scorer(
        self,
        validator: Validator,
        checks: Sequence[Check],
        kind: CalibratorKind,
        risk: RiskKind,
        labels: Sequence[str],
        training: Callable[[], Training],
    ) -> Scorer:
        """Learn how far the first variant can be trusted from these rows: see `fit_scorer`."""
        return fit_scorer(
            validator,
            checks,
            kind,
            labels,
            inputs=self.inputs,
            logits=self.first,
            truth=self.labels,
            losses=self._losses(risk, self.first),
            texts=self.texts,
            training=training,
        )

    def take(self, index: NDArray[np.int64]) -> Rows:
        """Some of the rows, in this order; the same one may occur twice."""
        order = index.tolist()
        return Rows(
            self.labels[index],
            self.first[index],
            self.last[index],
            self.full[index],
            [self.inputs[row] for row in order],
            None if self.texts is None else [self.texts[row] for row in order],
        )

    def scores(self, scorer: Scorer) -> NDArray[np.float64]:
        """The score of each answer of the first variant [rows], `REFUSED` where it is escalated whatever happens."""
        return scorer.scores(self.inputs, self.first, self.texts)

    def certify(
        self, risk: RiskKind, scores: NDArray[np.float64], grid: NDArray[np.float64], alpha: float, delta: float
    ) -> Certified:
        """Walk the thresholds of `grid` on these rows: see `fixed_sequence`."""
        return fixed_sequence(scores, self._losses(risk, self.first), grid, alpha, delta, self._losses(risk, self.last))

    def walk(
        self,
        risk: RiskKind,
        scores: NDArray[np.float64],
        path: NDArray[np.float64],
        *,
        last_is_full: bool,
        checked: bool,
    ) -> Walk:
        """What becomes of these rows at each step of a path of thresholds: see `lspm_ray.selection.points.walk`."""
        last = None if last_is_full else self._losses(risk, self.last)
        lost = [self._losses(risk, self.first), last]
        return walk([scores], lost, path, self.labels, self.full.shape[1], checked=checked)

    def risk(self, risk: RiskKind, accepted: NDArray[np.bool_]) -> float:
        """Share of rows whose answer is a loss, when these are accepted."""
        lost = np.where(accepted, self._losses(risk, self.first), self._losses(risk, self.last))
        return float(lost.mean())

    def accuracy(self, accepted: NDArray[np.bool_]) -> float:
        """Accuracy when these rows are accepted and the others escalated."""
        return float((np.where(accepted, self.first.argmax(1), self.last.argmax(1)) == self.labels).mean())

    def balanced_accuracy(self, accepted: NDArray[np.bool_]) -> float:
        """Mean recall of the classes that occur, when these rows are accepted and the others escalated."""
        return self._mean_recall(np.where(accepted, self.first.argmax(1), self.last.argmax(1)) == self.labels)

    def changes(self, accepted: NDArray[np.bool_], names: Sequence[str], bound: float | None) -> list[ClassChange]:
        """Of each class, against full, when these rows are accepted and the others escalated: see `class_changes`."""
        right = np.where(accepted, self.first.argmax(1), self.last.argmax(1)) == self.labels
        return class_changes(right, self.full.argmax(1) == self.labels, self.labels, names, bound)

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

    def _losses(self, risk: RiskKind, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return losses(risk, logits.argmax(1), self.full.argmax(1), self.labels)


class Option(Config):
    """One thing that could be served, as estimated on the selection split.

    Attributes:
        first: the variant that answers first.
        last: the model that answers what is escalated; None when the first serves alone.
        temperature: of the first, fitted on the selection split.
        threshold: estimated there too; the certificate sets the real one. None when the first serves alone.
        escalation_rate: share of rows that the last model would answer as well.
        cost: per row, relative to full.
        rejected: why it cannot be chosen; empty if it can.
    """

    first: str
    last: str | None
    temperature: float = 1.0
    threshold: float | None = None
    escalation_rate: float = 0.0
    cost: float
    rejected: str = ""

    def sentence(self) -> str:
        """What it would cost, in words."""
        how = f"escalating {self.escalation_rate:.0%} to {self.last}" if self.last else "alone"
        return f"would cost {self.cost:.3f} of full ({how})"


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


def estimate(first: Priced, last: Priced, rows: Rows, scorer: Scorer, promise: Promise) -> Option:
    """What a pair of models would give, walking the thresholds on selection rows as certification will on others.

    A scorer that learns has learnt from these rows, so this is a little hopeful; certification is not.
    """
    scores = rows.scores(scorer)
    path = tied_path([scores], promise.grid_size)
    walked = rows.walk(promise.risk, scores, path, last_is_full=last.name == FULL, checked=bool(scorer.checks))
    wanted = Wanted(promise.alpha, (), promise.delta, promise.per_class)
    point = certify(walked, wanted, promise.labels).default
    alone = point is not None and point.threshold is None
    e = 1.0 if point is None else point.escalation_rate
    option = Option(
        first=first.name,
        last=None if alone else last.name,
        temperature=scorer.temperature,
        threshold=None if point is None else point.threshold,
        escalation_rate=e,
        cost=first.cost if alone else cascade_cost(first.cost, promise.validator_cost, e, last.cost),
    )
    if point is None or e >= 1:
        reason = f"no share of its answers keeps {promise.risk} below {promise.alpha:.2%} on the selection rows"
    else:
        used = [first] if alone else [first, last]
        accepted = scores >= (ACCEPT_ALL if point.threshold is None else point.threshold)
        reason = "; ".join(broken_limits(used, rows, accepted, promise.constraints, promise.labels))
    return option.model_copy(update={"rejected": reason})


def broken_limits(
    used: Sequence[Priced],
    rows: Rows,
    accepted: NDArray[np.bool_],
    constraints: Constraints,
    labels: Sequence[str],
) -> list[str]:
    """What a plan of these models would break, in words: judged by the answers that would leave it.

    Args:
        used: the models of the plan.
        rows: their outputs.
        accepted: rows that the first one answers, bool [rows].
        constraints: the limits.
        labels: names of the classes.
    """
    speeds = [v.speed for v in used if v.speed]
    return violations(
        constraints,
        accuracy_drop=rows.full_accuracy - rows.accuracy(accepted),
        # An escalated request waits for both.
        p99_ms=sum(speed.p99_ms for speed in speeds),
        memory_mb=sum(speed.peak_memory_mb for speed in speeds),
        # Full is what others are compared with, and may always serve.
        changed=max(
            (v.speed.company.proven for v in used if v.name != FULL and v.speed and v.speed.company), default=0.0
        ),
        changes=rows.changes(accepted, labels, constraints.max_recall_drop),
    )


def choose(options: Sequence[Option], min_saving: float) -> tuple[Option | None, dict[str, str]]:
    """The cheapest option that is allowed and saves enough, and why each other variant was left out.

    Args:
        options: every pair that was estimated.
        min_saving: share of the full model's cost that must be saved.

    Returns:
        The option (None: the full model serves alone), and variant -> reason for every first variant not in it.
    """
    best = min(options, key=_order, default=None)
    chosen = best if best is not None and not best.rejected and best.cost <= 1 - min_saving else None
    used = {chosen.first, chosen.last} if chosen else set()
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


def _order(option: Option) -> tuple[bool, float, str, str]:
    return bool(option.rejected), option.cost, option.first, option.last or ""
