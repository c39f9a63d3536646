import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.audit.drift import Drift
from lspm_ray.audit.hypotheses import hypotheses
from lspm_ray.audit.keeper import Place, status
from lspm_ray.audit.ledger import Ledger, Sample, Tally
from lspm_ray.cli import app
from lspm_ray.commands.audit import describe, sparkline
from lspm_ray.errors import UserError
from lspm_ray.report.figures.wealth import save_wealth, wealth
from lspm_ray.serving.bundle import load_bundle
from tests.toys import toy_plan

CONFIG = "output: OUT\ndata: {source: x.csv, text: t, label: l}\nmodel: {name: m}\n"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A served plan whose run is stood in for: what made it does not matter here."""
    found = toy_plan(ArtifactStore(str(tmp_path / "run")))
    monkeypatch.setattr("lspm_ray.commands.audit.selected", lambda *_: found)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("OUT", str(tmp_path / "run")), encoding="utf-8")
    return found


def ledger(plan: Artifact, regret: int) -> tuple[Place, Ledger]:
    certificate = load_bundle(plan.uri).certificate
    assert certificate is not None
    place = Place.of(certificate, plan)
    samples = tuple(
        Sample(
            block=0,
            router="r",
            number=number,
            text_sha256="ab" * 32,
            request_id=f"q{number}",
            index=0,
            variant="variant-toy",
            answer="no",
            full="yes",
            text="so lovely" if number == 0 else None,
            label="yes" if number < regret else None,
        )
        for number in range(30)
    )
    tally = Tally(version=1, blocks={0: (400, 30)}, answers=20_000, accepted=16_000, shadowed=320)
    made = place.load().model_copy(update={"routers": {"r": tally}, "samples": samples})
    return place, made.judged(hypotheses(certificate, 0.01), 1e9)


def run(tmp_path: Path, *options: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["audit", str(tmp_path / "config.yaml"), *options])
    if isinstance(found.exception, UserError):
        raise found.exception
    return found.exit_code, found.output


def test_a_certificate_that_holds(plan: Artifact, tmp_path: Path):
    place, made = ledger(plan, 1)
    place.save(made)
    code, text = run(tmp_path, "--samples", "30")
    assert code == 0
    assert "holds" in text
    assert "sampled 400 of 20,000 answers (2.00%)" in text
    assert "regret at most 1.00%: 1 losses" in text
    assert "true label yes (regret); request q0 text 0, sha256 abababababab: 'so lovely'" in text
    assert text.count("request q") == 30


def test_a_revoked_one_exits_with_1_and_draws(plan: Artifact, tmp_path: Path):
    place, made = ledger(plan, 30)
    place.save(made)
    for name, begins in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        code, text = run(tmp_path, "--plot", str(tmp_path / name))
        assert code == 1
        assert "revoked 2001-09-09 01:46:40 UTC: regret is above 1.00%: 30 in 400" in text
        assert (tmp_path / name).read_bytes().startswith(begins)
    code, text = run(tmp_path, "--json")
    assert (code, json.loads(text)["revoked"]["losses"]) == (1, 30)


def test_what_cannot_be_shown(plan: Artifact, tmp_path: Path):
    with pytest.raises(UserError, match="was audited yet"):
        run(tmp_path)
    with pytest.raises(UserError, match=r"valid: \.svg, \.png"):
        run(tmp_path, "--plot", "x.pdf")


def test_drift_is_a_warning_line(plan: Artifact):
    _, made = ledger(plan, 0)
    drifted = Drift(scores=500, psi=0.4, rows=0, mmd=None, warnings=("scores differ",))
    found = status(made, (), None).model_copy(update={"drift": drifted})
    assert "warning: scores differ" in describe(found, 0)


def test_bars_reach_from_no_evidence_to_enough():
    assert sparkline([-3.0, 0.0, 2.0, 4.0, 9.0], 4.0) == "▁▁▄██"
    assert len(sparkline([0.0] * 1000, 1.0)) <= 60


def test_the_figure_is_the_same_each_time_and_says_what_it_shows(plan: Artifact, tmp_path: Path):
    place, made = ledger(plan, 30)
    certificate = load_bundle(plan.uri).certificate
    assert certificate is not None
    found = status(made, hypotheses(certificate, 0.01), None)
    assert "regret: 30 in 400 sampled answers" in str(wealth(found, anchor="w"))
    save_wealth(found, tmp_path / "x.svg")
    first = (tmp_path / "x.svg").read_bytes()
    save_wealth(found, tmp_path / "x.svg")
    assert first == (tmp_path / "x.svg").read_bytes()
    assert place.uri.startswith(str(tmp_path))
