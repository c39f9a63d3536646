"""The status page: what is served, under which promise, and how it goes. Pure: documents and counts to HTML.

Everything is in the page: no script, nothing loaded. It reloads itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lspm_ray import __version__
from lspm_ray.page.frame import Section, page, tiles, verdict
from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.page.theme import LIGHT
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.serving.metrics import Histogram, Metrics

RELOAD_S = 10
_WIDTH, _HEIGHT, _MARGIN = 640, 160, 8
_NONE = "\N{EN DASH}"


def status_page(plan: Plan, certificate: Certificate | None, metrics: Metrics, audit: Mapping[str, Any]) -> str:
    """The whole document.

    Args:
        plan: what is served.
        certificate: its promise; None when the full model serves alone.
        metrics: of this router.
        audit: see `Core.audit`.
    """
    revoked = audit.get("verdict") == "revoked"
    sections = [
        Section("certificate", "Certificate", _certificate(certificate, revoked)),
        Section("traffic", "Traffic", _traffic(plan, metrics)),
        Section("models", "Models", _models(plan, metrics)),
        Section("audit", "Audit", _audit(audit)),
    ]
    footer = f"lspm_ray {__version__}. Traffic and latencies are those of one router; the audit is that of all."
    return page(f"Status: {_path(plan)}", _header(certificate, audit), sections, footer, reload_s=RELOAD_S)


def _path(plan: Plan) -> str:
    return " before ".join(stage.model.name for stage in plan.stages)


def _header(certificate: Certificate | None, audit: Mapping[str, Any]) -> Child:
    if certificate is None:
        return verdict("Is it certified?", "There is nothing to certify: the full model answers everything.", good=True)
    question, state = "Does the certificate hold?", audit.get("verdict")
    if state == "revoked":
        return verdict(question, "No: it was revoked, the full model answers everything.", good=False)
    if state == "holds":
        return verdict(question, "Nothing that was seen speaks against it.", good=True)
    return verdict(question, f"Nobody knows: {audit.get('why', 'no audit')}.", good=False)


def _certificate(certificate: Certificate | None, revoked: bool) -> Child:
    if certificate is None:
        return element("p", "None.")
    promise = f"With confidence {1 - certificate.delta:.0%}, at most this share of the answers is " + (
        "wrong where full's is right." if certificate.risk == "regret" else "not full's."
    )
    rows = [
        [
            f"{point.alpha:.3g}" + (" (default)" if point.default else ""),
            _NONE if point.threshold is None else f"{point.threshold:.4g}",
            f"{point.losses} in {certificate.calibration_rows:,}",
            f"{point.upper_bound:.3%}",
            f"{point.escalation_rate:.1%}",
        ]
        for point in certificate.points
    ]
    head = ["alpha", "threshold", "losses in calibration rows", "upper bound", "escalated"]
    return [
        element("p", element("code", certificate.id), " was revoked. " if revoked else " ", promise),
        _table(head, rows),
    ]


def _traffic(plan: Plan, metrics: Metrics) -> Child:
    answers = metrics.total("lspm_answers_total")
    if not answers:
        return element("p", "No text was answered by this router yet.")
    recent, escalated = metrics.recent()
    refused = metrics.total("lspm_refusals_total")
    seconds = metrics.histogram("lspm_request_seconds")
    parts: list[Child] = [
        tiles(
            [
                ("texts", f"{answers:,}", "since this router started"),
                ("escalated", _share(metrics.total("lspm_answers_total", escalated="true"), answers), _expected(plan)),
                ("escalated lately", _share(escalated, recent), f"of the last {recent:,} texts"),
                ("degraded", f"{metrics.total('lspm_degraded_total'):,}", "answered under a more lenient point"),
                ("refused", f"{refused:,}", "requests, for lack of capacity"),
                ("p50, p99", f"{_ms(seconds, 0.5)}, {_ms(seconds, 0.99)}", "time of a request, at most"),
            ]
        )
    ]
    reasons = list(metrics.counted("lspm_escalations_total"))
    if reasons:
        parts.append(_table(["escalated because", "texts"], [[labels["reason"], f"{n:,}"] for labels, n in reasons]))
    return parts


def _expected(plan: Plan) -> str:
    expected = plan.expected.get("escalation_rate")
    return "" if expected is None else f"{expected:.1%} of the calibration rows were"


def _models(plan: Plan, metrics: Metrics) -> Child:
    rows = []
    for stage in plan.stages:
        model = stage.model.name
        seconds = metrics.histogram("lspm_variant_seconds", variant=model)
        rows.append(
            [
                name(model),
                f"{metrics.total('lspm_answers_total', variant=model):,}",
                f"{seconds.count:,}",
                _ms(seconds, 0.5),
                _ms(seconds, 0.99),
                f"{stage.batch_1_latency_ms:.2f} ms",
            ]
        )
    head = ["model", "answers", "calls", "p50 of a call", "p99", "of one text, in the profile"]
    note = "A call computes all texts that wait. Times are upper ends of the buckets of /metrics."
    return [_table(head, rows), element("p", note, class_="note")]


def _audit(audit: Mapping[str, Any]) -> Child:
    if "rows" not in audit:
        return element("p", f"{audit.get('verdict', 'off')}: {audit.get('why', '')}")
    totals = audit["totals"]
    settled, dropped = f"{audit['rows']:,} of {totals['answers']:,}", f"{totals['dropped']:,}"
    lines: list[Child] = [element("p", f"{settled} answers were sampled and settled, {dropped} samples dropped.")]
    if (revoked := audit.get("revoked")) is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(revoked["time"]))
        lines.append(element("p", f"Revoked {when}, after {revoked['losses']} losses in {revoked['rows']} answers."))
    rows = [
        [
            evidence["loss"],
            f"{evidence['level']:.2%}",
            f"{evidence['losses']} ({_share(evidence['losses'], audit['rows'])})",
            _odds(evidence["log_wealth"]),
            _odds(evidence["limit"]),
        ]
        for evidence in audit["evidence"]
    ]
    lines.append(_table(["loss", "level", "seen", "evidence against", "revokes at"], rows))
    lines += [wealth(audit["points"], evidence, audit["rows"]) for evidence in audit["evidence"]]
    drift = audit.get("drift")
    if drift is not None:
        lines.append(element("p", *(drift["warnings"] or ["No drift of scores or inputs."]), class_="note"))
    return lines


def wealth(points: Sequence[Mapping[str, Any]], evidence: Mapping[str, Any], rows: int) -> Html:
    """The evidence against one hypothesis over the sampled answers, as a line below the limit that revokes."""
    loss, limit = evidence["loss"], evidence["limit"]
    seen = [(point["rows"], point["log_wealth"].get(loss, 0.0)) for point in points] + [(rows, evidence["log_wealth"])]
    top, bottom = max(limit, *(value for _, value in seen)), min(0.0, *(value for _, value in seen))
    width = max(rows, 1)

    def place(at: float, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * at / width
        return x, _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (value - bottom) / ((top - bottom) or 1)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(at, value) for at, value in seen))
    level = place(0, limit)[1]
    what = f"Evidence against {loss}: {_odds(evidence['log_wealth'])}; revokes at {_odds(limit)}"
    drawn = [
        element("title", what),
        element("line", x1="0", x2=str(_WIDTH), y1=f"{level:.1f}", y2=f"{level:.1f}", stroke=LIGHT["alert"]),
        element("polyline", points=line, fill="none", stroke=LIGHT["series-1"], stroke_width="2"),
    ]
    svg = element("svg", drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", width="100%", role="img", aria_label=what)
    return element("figure", svg, element("figcaption", what, ", over the sampled answers"))


def _table(head: Sequence[str], rows: Sequence[Sequence[Child]]) -> Html:
    return element(
        "table",
        element("thead", element("tr", (element("th", title, scope="col") for title in head))),
        element("tbody", (element("tr", element("th", own, scope="row"), _cells(row)) for own, *row in rows)),
    )


def _cells(row: Sequence[Child]) -> list[Html]:
    return [element("td", cell) for cell in row]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else _NONE


def _ms(seconds: Histogram, q: float) -> str:
    found = seconds.quantile(q)
    return _NONE if found is None else f"{1e3 * found:,.4g} ms" if math.isfinite(found) else "more"


def _odds(log_wealth: float) -> str:
    return f"{math.exp(min(log_wealth, 600)):.3g} to 1"
