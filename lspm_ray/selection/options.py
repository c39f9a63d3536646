"""What could be served, what each would cost, and why the others were not chosen. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lspm_ray.config import Config
from lspm_ray.evaluation.calibration import fit_temperature, softmax
from lspm_ray.profiling.pareto import Constraints, violations
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.selection.risk import ACCEPT_ALL, RiskKind, cascade_cost, fixed_sequence, losses, threshold_grid
from lspm_ray.tasks import Encoded
from lspm_ray.validators import Validator


@dataclass(frozen=True)
class Rows:
    """Outputs on one split, row by row.

    Attributes:
        labels: [rows].
        cheap: logits of the candidate [rows, labels].
        full: logits of the full model [rows, labels].
        inputs: token ids of each row, for validators that look at them.
    """

    labels: NDArray[np.int64]
    cheap: NDArray[np.float32]
    full: NDArray[np.float32]
    inputs: list[Encoded]

    def scores(self, validator: Validator, temperature: float) -> NDArray[np.float64]:
        """The validator's score of each answer of the candidate [rows]."""
        return validator.score(self.inputs, softmax(self.cheap, temperature))

    def losses(self, risk: RiskKind) -> NDArray[np.bool_]:
        """Whether accepting the candidate's answer would be a loss [rows]."""
        return losses(risk, self.cheap.argmax(1), self.full.argmax(1), self.labels)

    def accuracy_drop(self, accepted: NDArray[np.bool_]) -> float:
        """Accuracy of full minus that of the cascade that accepts these rows."""
        answers = np.where(accepted, self.cheap.argmax(1), self.full.argmax(1))
        return float((self.full.argmax(1) == self.labels).mean() - (answers == self.labels).mean())


class Option(Config):
    """One thing that could be served, as estimated on the selection split.

    Attributes:
        first: the variant that answers first; `full` for the full model alone.
        temperature: fitted on the selection split.
        threshold: estimated there too; None accepts everything. The certificate sets the real one.
        escalation_rate: share of rows that the full model would answer as well.
        cost: per row, relative to full.
        rejected: why it cannot be chosen; empty if it can.
    """

    first: str
    temperature: float = 1.0
    threshold: float | None = None
    escalation_rate: float = 0.0
    cost: float
    rejected: str = ""


def estimate(
    candidate: VariantProfile,
    full: VariantProfile,
    rows: Rows,
    validator: Validator,
    *,
    risk: RiskKind,
    alpha: float,
    delta: float,
    grid_size: int,
    validator_cost: float,
    constraints: Constraints,
) -> Option:
    """What a candidate would give, walking the thresholds on the selection rows as certification will on others."""
    temperature = fit_temperature(rows.cheap, rows.labels)
    scores = rows.scores(validator, temperature)
    grid = threshold_grid(scores, grid_size)
    point = fixed_sequence(scores, rows.losses(risk), grid, alpha, delta).point
    if point is None or point.escalation_rate >= 1:
        return Option(
            first=candidate.name,
            temperature=temperature,
            escalation_rate=1.0,
            cost=cascade_cost(candidate.cost, validator_cost, 1.0),
            rejected=f"no share of its answers keeps {risk} below {alpha:.2%} on the selection rows",
        )
    alone = point.threshold == ACCEPT_ALL
    cost = candidate.cost if alone else cascade_cost(candidate.cost, validator_cost, point.escalation_rate)
    broken = _violations(candidate, full, rows, scores >= point.threshold, alone, constraints)
    return Option(
        first=candidate.name,
        temperature=temperature,
        threshold=None if alone else point.threshold,
        escalation_rate=point.escalation_rate,
        cost=cost,
        rejected="; ".join(broken),
    )


def _violations(
    candidate: VariantProfile,
    full: VariantProfile,
    rows: Rows,
    accepted: NDArray[np.bool_],
    alone: bool,
    constraints: Constraints,
) -> list[str]:
    speeds = [v.speed for v in ([candidate] if alone else [candidate, full]) if v.speed]
    return violations(
        constraints,
        accuracy_drop=rows.accuracy_drop(accepted),
        # An escalated request waits for both.
        p99_ms=sum(speed.p99_ms for speed in speeds),
        memory_mb=sum(speed.peak_memory_mb for speed in speeds),
    )


def choose(options: Mapping[str, Option], min_saving: float) -> tuple[str | None, dict[str, str]]:
    """The cheapest option that is allowed and saves enough, and why each other candidate was left out.

    Returns:
        Name of the variant to answer first (None: the full model serves alone), and variant -> reason.
    """
    allowed = sorted((o for o in options.values() if not o.rejected), key=lambda o: (o.cost, o.first))
    reasons = {name: option.rejected for name, option in options.items() if option.rejected}
    best = allowed[0] if allowed else None
    if best is not None and best.cost > 1 - min_saving:
        for option in allowed:
            reasons[option.first] = (
                f"would cost {option.cost:.2f} of full (escalating {option.escalation_rate:.0%}): "
                f"saves less than {min_saving:.0%}"
            )
        return None, reasons
    for option in allowed[1:]:
        reasons[option.first] = (
            f"would cost {option.cost:.3f} of full (escalating {option.escalation_rate:.0%}), "
            f"{best.first if best else ''} {best.cost if best else 0:.3f}"
        )
    return (best.first if best else None), reasons
