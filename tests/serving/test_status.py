"""The status page, from counts and documents alone."""

from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.audit.ledger import Point, Revocation
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.selection.select import read_plan
from lspm_ray.serving.cascade import CascadeAnswer
from lspm_ray.serving.metrics import Metrics
from lspm_ray.serving.status import status_page
from tests.report.pages import Node, parse
from tests.toys import toy_plan

HOSTILE = "<b>small</b>"


@pytest.fixture
def documents(tmp_path: Path) -> tuple[Plan, Certificate]:
    plan, certificate = read_plan(toy_plan(ArtifactStore(str(tmp_path))))
    assert certificate is not None
    first, last = plan.stages
    named = first.model_copy(update={"model": first.model.model_copy(update={"name": HOSTILE})})
    return plan.model_copy(update={"stages": [named, last]}), certificate


def audit(**values: Any) -> dict[str, Any]:
    evidence = {"loss": "regret", "level": 0.01, "losses": 2, "log_wealth": 1.5, "limit": 4.6}
    points = [Point(time=1.0, rows=100 * step, log_wealth={"regret": 0.1 * step}).model_dump() for step in range(5)]
    totals = {"answers": 2000, "accepted": 1500, "shadowed": 300, "failed": 0, "dropped": 7}
    drift = {"warnings": [HOSTILE]}
    return {
        "verdict": "holds", "revoked": None, "rows": 400, "evidence": [evidence], "totals": totals, "drift": drift,
        "points": points,
    } | values  # fmt: skip


def traffic() -> Metrics:
    metrics = Metrics()
    accepted = CascadeAnswer("yes", 0.9, HOSTILE, False, 0.9, None, 0.01)
    escalated = CascadeAnswer("yes", 0.9, "full", True, 0.1, "low_score", 0.01)
    metrics.answered([accepted] * 3 + [escalated])
    metrics.answered([CascadeAnswer("yes", 0.9, HOSTILE, False, 0.5, None, 0.02, degraded=True)])
    metrics.refused("budget")
    metrics.responded("/v1/predict", 200, 0.003)
    for seconds in (0.002, 0.002, 0.04):
        metrics.observe("lspm_variant_seconds", seconds, variant=HOSTILE)
    return metrics


def text(page: Node, section: str) -> str:
    return " ".join(page.by_id(section).text().split())


def test_it_tells_plan_promise_traffic_and_audit(documents: tuple[Plan, Certificate]) -> None:
    page = parse(status_page(*documents, traffic(), audit()))
    assert "Nothing that was seen speaks against it" in page.text()
    assert documents[1].id in text(page, "certificate") and "default" in text(page, "certificate")
    shown = text(page, "traffic")
    assert "5" in shown and "20.0%" in shown and "low_score" in shown and "5 ms" in shown
    first, *_ = [row for row in page.by_id("models").all("tr") if row.text().startswith(HOSTILE)]
    assert [cell.text() for cell in first.all("td")] == ["4", "3", "2.5 ms", "50 ms", "0.20 ms"]
    assert "400 of 2,000 answers" in text(page, "audit") and "2 (0.5%)" in text(page, "audit")
    assert not list(page.all("script")) and not list(page.all("b"))


def test_a_revoked_certificate_is_said_first(documents: tuple[Plan, Certificate]) -> None:
    revoked = Revocation(time=0.0, loss="regret", level=0.01, rows=400, losses=20, log_wealth=5.0).model_dump()
    page = parse(status_page(*documents, traffic(), audit(verdict="revoked", revoked=revoked)))
    assert "No: it was revoked, the full model answers everything" in page.text()
    assert "Revoked 1970-01-01 00:00:00 UTC, after 20 losses in 400 answers" in text(page, "audit")


def test_without_traffic_certificate_or_audit_it_says_so(documents: tuple[Plan, Certificate]) -> None:
    page = parse(status_page(documents[0], None, Metrics(), {"verdict": "off", "why": "no audit"}))
    assert "There is nothing to certify" in page.text()
    assert "No text was answered" in text(page, "traffic") and "off: no audit" in text(page, "audit")
    unknown = parse(status_page(*documents, Metrics(), {"verdict": "unknown", "why": "the keeper is away"}))
    assert "Nobody knows: the keeper is away" in unknown.text()


def test_quantiles_are_ends_of_buckets() -> None:
    metrics = Metrics()
    for value in [0.004] * 98 + [0.3, 70.0]:
        metrics.observe("lspm_request_seconds", value)
    found = metrics.histogram("lspm_request_seconds")
    assert [found.quantile(q) for q in (0.5, 0.99, 1.0)] == [0.005, 0.5, float("inf")]
    assert Metrics().histogram("lspm_variant_seconds", variant="x").quantile(0.5) is None
