"""What the report says of the certified operating points and of what an answer costs under each."""

from __future__ import annotations

from collections.abc import Sequence

from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import words
from lspm_ray.report.findings import Findings
from lspm_ray.report.grid import cell, head, missing, row, table
from lspm_ray.selection.plan import ClassBound, OperatingPoint
from lspm_ray.selection.risk import cost_of_stages


def points(findings: Findings) -> list[Child]:
    """Table of the points, promises per class, what was left out, and the parts of the cost."""
    certificate = findings.certificate
    if certificate is None:
        return []
    left_out = [
        element("p", f"No point at alpha = {100 * float(alpha):g}{words.PERCENT}: {why}.", class_="note")
        for alpha, why in certificate.left_out.items()
    ]
    return [_table(findings), element("p", _cost(findings), class_="note"), *_classes(certificate.default), *left_out]


def _table(findings: Findings) -> Html:
    certificate = findings.certificate
    assert certificate is not None  # noqa: S101
    heads = [head("alpha", "%"), head("threshold"), head("losses"), head("p-value"), head("bound", "%")]
    heads += [head("confidence", "%"), head("escalated", "%"), head("cost", f"{words.TIMES} full")]
    rows = [_row(findings, point) for point in certificate.points]
    held = "all hold together" if len(certificate.points) > 1 else "it holds"
    caption = (
        f"Certified points, of which the marked one is served unless a request or a load says otherwise; {held} with "
        f"{words.level(1 - certificate.delta)} confidence. Losses in {words.count(certificate.calibration_rows)} rows."
    )
    return table("points", caption, heads, [element("tbody", rows)])


def _row(findings: Findings, point: OperatingPoint) -> Html:
    cells = [
        missing("every answer is accepted") if point.threshold is None else cell(_listed(point.thresholds)),
        cell(words.count(point.losses)),
        cell(words.significant(point.p_value, 2) if point.p_value >= 1e-4 else f"{point.p_value:.1e}"),
        cell(words.percent(point.upper_bound, 2)),
        cell(words.percent(1 - point.level)),
        cell(", ".join(words.percent(share) for share in point.shares) or "0"),
        cell(words.times(_total(findings, point))),
    ]
    return row(f"{100 * point.alpha:g}", cells, "served" if point.default else None)


def _listed(thresholds: Sequence[float | None]) -> str:
    return ", ".join(words.MISSING if threshold is None else f"{threshold:.6g}" for threshold in thresholds)


def _total(findings: Findings, point: OperatingPoint) -> float:
    costs = [stage.cost for stage in findings.plan.stages]
    return cost_of_stages(costs[: len(point.shares) + 1], _validator(findings), point.shares)


def _validator(findings: Findings) -> float:
    return findings.plan.expected.get("validator_cost", 0.0)


def _cost(findings: Findings) -> list[Child]:
    stages, default = findings.plan.stages, findings.plan.default
    first = stages[0]
    if len(stages) == 1 or default is None:
        return [f"An answer costs {words.times(first.cost)} of one of the full model."]
    parts: list[Child] = [f"An answer costs {words.times(first.cost)} (", name(first.model.name), ")"]
    judged = ["for all", *(f"for {words.percents(share)}" for share in default.shares)]
    for stage, share, before in zip(stages[1:], default.shares, judged, strict=False):
        parts.append(f" + {words.times(_validator(findings))} (validator, {before})")
        parts += [f" + {words.percents(share)} of {words.times(stage.cost)} (", name(stage.model.name), ")"]
    return [*parts, f" = {words.times(_total(findings, default))} of one of the full model."]


def _classes(point: OperatingPoint) -> list[Child]:
    if not point.classes:
        return []
    heads = [head("true class", text=True), head("alpha", "%"), head("losses"), head("rows"), head("bound", "%")]
    caption = "What is promised about the rows of each class, at the same thresholds and with the same confidence."
    return [table("class-bounds", caption, heads, [element("tbody", [_class(bound) for bound in point.classes])])]


def _class(bound: ClassBound) -> Html:
    cells = [
        cell(f"{100 * bound.alpha:g}"),
        cell(words.count(bound.losses)),
        cell(words.count(bound.rows)),
        cell(words.percent(bound.upper_bound, 2)),
    ]
    return row(name(bound.label), cells)
