"""What can be checked of a plan and its certificate from the two documents alone: cheap enough for every load."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from lspm_ray.config import Config
from lspm_ray.selection.plan import Certificate, ClassBound, MiddleStage, OperatingPoint, Plan
from lspm_ray.selection.risk import p_value, upper_bound

_RELATIVE = 1e-9
"""By how much recomputed numbers may differ: another build of scipy rounds otherwise."""


class Check(Config):
    """One thing that was looked at.

    Attributes:
        what: it is about.
        found: when computed now.
        stated: by the plan or its certificate.
        ok: whether the two agree.
        note: what follows, where that is not obvious.
    """

    what: str
    found: Any
    stated: Any
    ok: bool
    note: str = ""


def same(found: Any, stated: Any) -> bool:
    """Equality, but for rounding of floats."""
    if isinstance(found, float) and isinstance(stated, int | float) and not isinstance(stated, bool):
        return bool(np.isclose(found, stated, rtol=_RELATIVE, atol=1e-300))
    if isinstance(found, dict) and isinstance(stated, dict):
        return found.keys() == stated.keys() and all(same(found[key], stated[key]) for key in found)
    if isinstance(found, list) and isinstance(stated, list):
        return len(found) == len(stated) and all(same(a, b) for a, b in zip(found, stated, strict=True))
    return bool(found == stated)


def compare(what: str, found: Any, stated: Any, note: str = "") -> Check:
    """A check that two things are the same."""
    return Check(what=what, found=found, stated=stated, ok=same(found, stated), note=note)


def agreement(plan: Plan, certificate: Certificate) -> Iterator[Check]:
    """Whether the plan does what its certificate is about; `what` names the plan's field."""
    stages, default = plan.stages, certificate.default
    yield compare("certificate_id", certificate.id, plan.certificate_id)
    yield compare("validator", certificate.validator, plan.validator)
    yield compare("checks", certificate.checks, plan.checks)
    yield compare("temperature", certificate.temperature, stages[0].temperature)
    yield compare("calibrator", dump(certificate.calibrator), dump(stages[0].calibrator))
    yield compare("threshold", default.threshold, stages[0].threshold)
    for field in ("name", "digest", "uri"):
        yield compare(f"first.{field}", getattr(certificate.first, field), getattr(stages[0].model, field))
        last = stages[-1].model if len(stages) > 1 else None
        yield compare(f"last.{field}", getattr(certificate.last, field, None), getattr(last, field, None))
    certified = [] if certificate.last is None else [dump(stage) for stage in certificate.middle]
    served = [MiddleStage(model=s.model, temperature=s.temperature, calibrator=s.calibrator) for s in stages[1:-1]]
    yield compare("middle", certified, [dump(stage) for stage in served])
    yield compare("middle thresholds", default.middle_thresholds, [stage.threshold for stage in stages[1:-1]])
    for stage in stages:
        if stage.model.name == certificate.full.name:
            yield compare("full: model", certificate.full.digest, stage.model.digest)
    yield compare("points", [dump(point) for point in certificate.points], [dump(point) for point in plan.points])


def arithmetic(certificate: Certificate) -> Iterator[Check]:
    """Whether every bound follows from the counts that are stated with it, and keeps what is promised."""
    for point in certificate.points:
        of = f"point {point.alpha:g}"
        counted: list[tuple[str, float, int, OperatingPoint | ClassBound]] = [
            (of, point.alpha, certificate.calibration_rows, point)
        ]
        counted += [(f"{of}, class {bound.label}", bound.alpha, bound.rows, bound) for bound in point.classes]
        alone = certificate.multiplicity == "none"
        within = point.level == certificate.delta if alone else 0 < point.level < certificate.delta
        yield _holds(f"{of}: level", "delta" if alone else "within delta", point.level, within)
        for name, alpha, rows, stated in counted:
            if not 0 <= stated.losses <= rows:
                yield _holds(f"{name}: losses", f"0 to {rows}", stated.losses, False)
                continue
            p = p_value(stated.losses, rows, alpha)
            yield compare(f"{name}: p-value", p, stated.p_value)
            yield compare(f"{name}: upper bound", upper_bound(stated.losses, rows, point.level), stated.upper_bound)
            yield _holds(f"{name}: certified", f"p = {p:.4g}", f"level {point.level:.4g}", p <= point.level)
        passed_on = [1.0, point.escalation_rate, *point.middle_escalation_rates, 0.0]
        falling = all(a >= b for a, b in pairwise(passed_on))
        yield _holds(f"{of}: escalation", "shares of rows that fall from stage to stage", passed_on[1:-1], falling)
        if point.threshold is None:
            yield compare(f"{of}: without threshold nothing is escalated", 0.0, point.escalation_rate)
    bound = certificate.disagreement
    if bound is not None:
        level = upper_bound(bound.losses, bound.rows, bound.delta / bound.thresholds)
        yield compare("disagreement: level", level, bound.level)
        yield compare("disagreement: rows", certificate.calibration_rows, bound.rows)
    for a, b in pairwise(certificate.points):
        strict, lenient = _limits(a), _limits(b)
        falling = all(x >= y for x, y in zip(strict, lenient, strict=False))
        yield _holds(f"points {a.alpha:g} and {b.alpha:g}: thresholds", "descending", [strict, lenient], falling)


def document_checks(plan: Plan, certificate: Certificate) -> list[Check]:
    """All that the documents alone can show."""
    return [*agreement(plan, certificate), *arithmetic(certificate)]


def _limits(point: OperatingPoint) -> list[float]:
    return [-np.inf if threshold is None else threshold for threshold in point.thresholds]


def _holds(what: str, found: Any, stated: Any, ok: bool) -> Check:
    return Check(what=what, found=found, stated=stated, ok=bool(ok))


def dump(value: Config | None) -> dict[str, Any] | None:
    """A document as JSON has it."""
    return None if value is None else value.model_dump(mode="json")
