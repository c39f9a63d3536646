"""Which variants are worth their cost, and which break a limit."""

from collections.abc import Sequence

from pydantic import NonNegativeFloat, PositiveFloat

from lspm_ray.config import Config
from lspm_ray.evaluation.forgetting import ClassChange

_NAMED = 3
"""Forgotten classes that a reason names at most."""


class Point(Config):
    """One variant: `quality` (more is better) against `cost` (less is better), in any unit shared by all points."""

    name: str
    quality: float
    cost: float


class Constraints(Config):
    """Limits a deployed variant must keep; None means no limit."""

    max_accuracy_drop: NonNegativeFloat | None = None
    """Largest accuracy lost against the full model, as a fraction: 0.01 is one percentage point."""
    max_recall_drop: NonNegativeFloat | None = 0.05
    """Largest recall that any class may lose against the full model, as a fraction, however good the average is.
    Exceeded only where the rows prove it: see docs/decisions/forgetting-gate.md."""
    max_changed: NonNegativeFloat | None = 0.01
    """Largest share of answers that may depend on their batch; see docs/decisions/one-row-per-run.md."""
    max_p99_ms: PositiveFloat | None = None
    max_memory_mb: PositiveFloat | None = None


def dominated_by(points: Sequence[Point]) -> dict[str, str]:
    """For each dominated point the name of one on the front that is no worse in quality and no more expensive.

    Of points equal in both, the alphabetically first stands, so the order of `points` never matters. Of several
    dominating points the best in quality is named.

    Raises:
        ValueError: two points share a name.
    """
    if len({point.name for point in points}) < len(points):
        raise ValueError(f"names must be unique: {sorted(point.name for point in points)}")
    dominated: dict[str, str] = {}
    best: Point | None = None
    for point in sorted(points, key=lambda point: (point.cost, -point.quality, point.name)):
        if best is not None and point.quality <= best.quality:
            dominated[point.name] = best.name
        else:
            best = point
    return dominated


def front(points: Sequence[Point]) -> set[str]:
    """Names of the points that no other dominates."""
    return {point.name for point in points} - dominated_by(points).keys()


def violations(
    constraints: Constraints,
    *,
    accuracy_drop: float,
    p99_ms: float,
    memory_mb: float,
    changed: float = 0.0,
    changes: Sequence[ClassChange] = (),
) -> list[str]:
    """Plain-English reasons why a variant may not be deployed; empty when it keeps every limit.

    Args:
        constraints: the limits.
        accuracy_drop: accuracy of the full model minus that of the variant, as a fraction.
        p99_ms: 99th percentile of its latency, in milliseconds.
        memory_mb: its peak memory, in megabytes.
        changed: share of rows that it answers otherwise in other company.
        changes: of its classes, judged against `max_recall_drop`.
    """
    reasons = []
    drop, p99, memory = constraints.max_accuracy_drop, constraints.max_p99_ms, constraints.max_memory_mb
    if drop is not None and accuracy_drop > drop:
        reasons.append(
            f"accuracy is {100 * accuracy_drop:.4g} points below the full model's, {100 * drop:g} are allowed"
        )
    if p99 is not None and p99_ms > p99:
        reasons.append(f"p99 latency is {p99_ms:.4g} ms, {p99:g} ms are allowed")
    if memory is not None and memory_mb > memory:
        reasons.append(f"peak memory is {memory_mb:.4g} MB, {memory:g} MB are allowed")
    company = constraints.max_changed
    if company is not None and changed > company:
        reasons.append(
            f"{100 * changed:.3g} % of its answers change with the rows they are computed with, {100 * company:g} % may"
        )
    return reasons + _forgotten(changes, constraints.max_recall_drop)


def _forgotten(changes: Sequence[ClassChange], allowed: float | None) -> list[str]:
    worst = sorted((c for c in changes if c.verdict == "forgotten"), key=lambda c: (-c.drop, c.label))
    if allowed is None or not worst:
        return []
    reasons = [
        f"forgets class `{c.label}`: {c.lost} of its {c.rows} rows lost and {c.gained} gained, a drop in recall of "
        f"{100 * c.drop:.3g} points, {100 * allowed:g} are allowed"
        for c in worst[:_NAMED]
    ]
    more = len(worst) - _NAMED
    return reasons if more <= 0 else [*reasons, f"forgets {more} more {'class' if more == 1 else 'classes'}"]
