import json
import re
from pathlib import Path

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.compression.recipe import FULL
from lspm_ray.errors import ArtifactError
from lspm_ray.profiling.baselines import LINEAR, MAJORITY
from lspm_ray.report.build import DATA_FILE, PAGE_FILE, alternatives
from lspm_ray.report.findings import Findings
from lspm_ray.report.page import render
from tests.report.samples import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(ArtifactStore(str(tmp_path)), rows=500, alpha=0.03, variants=("int8", "bag"))


def test_the_artifact_holds_a_page_and_its_numbers_and_names_its_parents(case: tuple[Run, Artifact]) -> None:
    run, report = case
    assert set(report.manifest.files) == {PAGE_FILE, DATA_FILE}
    expected = {"data": run.data, "full": run.full, "profile": run.profile, "select": run.select}
    expected |= {"gears": run.gears} if run.gears else {}
    expected |= {f"outputs.{name}": artifact for name, artifact in run.outputs.items()}
    assert report.manifest.parents == {role: artifact.digest for role, artifact in expected.items()}


def test_the_page_follows_from_the_numbers_alone(case: tuple[Run, Artifact]) -> None:
    _, report = case
    findings = Findings.parse(report.read_json(DATA_FILE))
    assert render(findings).encode() == report.read_bytes(PAGE_FILE)


def test_equal_inputs_give_equal_numbers(case: tuple[Run, Artifact]) -> None:
    run, report = case
    assert run.findings().model_dump_json(indent=1).encode() == report.read_bytes(DATA_FILE)


def test_a_report_that_is_there_is_not_made_again(run: Run) -> None:
    first = run.report()
    assert run.report().manifest.created_utc == first.manifest.created_utc


def test_a_damaged_input_is_refused(run: Run) -> None:
    (Path(run.profile.uri) / "profile.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not match the manifest"):
        run.report()


def test_the_date_is_that_of_the_youngest_input(run: Run) -> None:
    found = run.findings()
    made = [run.data, run.full, run.profile, run.select, *run.outputs.values(), *([run.gears] if run.gears else [])]
    assert found.date == max(artifact.manifest.created_utc for artifact in made)


def test_temperatures_are_those_of_the_plan(run: Run) -> None:
    found = run.findings()
    assert {m.model: m.temperature for m in found.reliability} == {
        stage.model.name: stage.temperature for stage in found.plan.stages
    }


def test_a_full_model_outside_the_plan_gets_its_own_temperature(tmp_path: Path) -> None:
    found = Run(ArtifactStore(str(tmp_path)), rows=500, serve="alone", variants=("bag",)).findings()
    assert [m.model for m in found.reliability] == [FULL, "bag"]
    assert found.reliability[0].temperature != found.plan.stages[0].temperature


def test_confusion_matrices_are_kept_for_the_models_of_the_plan_alone(run: Run) -> None:
    found = run.findings()
    assert list(found.confusion) == [FULL, "bag"]
    assert sum(map(sum, found.confusion[FULL])) == run.rows
    assert all(v.test.confusion == () and v.selection.classes == () for v in found.variants)


def test_the_plan_stands_beside_full_alone_the_best_cheap_model_and_the_baselines(run: Run) -> None:
    found = run.findings()
    kinds = {a.kind: a.name for a in found.alternatives}
    assert kinds == {"plan": "bag → full", "full": FULL, "single": "bag", "linear": LINEAR, "majority": MAJORITY}
    plan = found.alternatives[0]
    assert plan.accuracy.value == pytest.approx(found.plan.expected["test_accuracy"])
    assert plan.accuracy.low < plan.accuracy.value < plan.accuracy.high
    assert [a.certified for a in found.alternatives] == [True, False, False, False, False]


def test_the_single_model_costs_no_more_than_the_plan(run: Run) -> None:
    dear = run.findings().plan.model_copy(update={"expected": {**run.findings().plan.expected, "cost": 0.5}})
    found = {a.kind: a.name for a in alternatives(run.table, dear, run.findings().certificate)}
    assert found["single"] == "int8"


def test_full_alone_has_no_certificate_and_no_curve(tmp_path: Path) -> None:
    found = Run(ArtifactStore(str(tmp_path)), rows=500, serve="full", variants=()).findings()
    assert (found.certificate, found.curve, found.certificate_id) == (None, None, None)
    assert [a.kind for a in found.alternatives] == ["plan", "linear", "majority"]


def test_the_lineage_names_every_artifact_once(run: Run) -> None:
    lineage = run.findings().lineage
    assert len({source.role for source in lineage}) == len(lineage)
    digests = {source.digest for source in lineage}
    assert {v.digest for v in run.table.variants if v.servable} <= digests
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)


def test_the_numbers_are_plain_json(case: tuple[Run, Artifact]) -> None:
    _, report = case

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(report.read_bytes(DATA_FILE), parse_constant=refuse)["plan"]
