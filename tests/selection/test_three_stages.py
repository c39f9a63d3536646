"""From selection to a new certificate where three models pay."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.selection.options import limits_of
from lspm_ray.selection.points import answered_by
from lspm_ray.selection.recertify import history
from lspm_ray.selection.select import certified_scorers, read_plan
from lspm_ray.selection.verify import Evidence, resample_task, verify
from lspm_ray.serving.bundle import load_bundle
from lspm_ray.serving.cascade import Rules
from tests.selection.test_recertify import certify, fresh, labelled
from tests.selection.test_select import margins
from tests.selection.three_stages import ThreeStages
from tests.toys import toy_model_artifact


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ThreeStages:
    return ThreeStages(tmp_path_factory.mktemp("store"))


def test_three_models_serve_where_they_save_enough(world: ThreeStages) -> None:
    plan, certificate = read_plan(world.select(alpha=0.02))
    assert [stage.model.name for stage in plan.stages] == ["cheap", "middle", "full"]
    assert certificate is not None and plan.default is not None
    assert [stage.model.name for stage in certificate.middle] == ["middle"]
    assert [stage.threshold for stage in plan.stages] == [*plan.default.thresholds, None]
    assert certificate.multiplicity == "bonferroni" and certificate.default.level == pytest.approx(0.04)
    e1, e2 = plan.default.shares
    assert 0.1 < e2 < 0.2 < 0.35 < e1 < 0.5
    assert plan.expected["cost"] == pytest.approx(0.05 + 0.2 * e1 + e2, abs=0.01)
    assert plan.expected["test_risk"] < 0.03
    assert plan.reasons == {}


@pytest.mark.parametrize("config", [{"max_stages": 2}, {"min_gain_of_third": 0.5}])
def test_otherwise_two_do(world: ThreeStages, config: dict[str, float]) -> None:
    plan, certificate = read_plan(world.select(alpha=0.02, **config))
    assert [stage.model.name for stage in plan.stages] == ["middle", "full"]
    assert certificate is not None and (certificate.middle, certificate.tie) == ([], 1.0)
    assert "cheap" in plan.reasons


def test_the_first_of_three_can_be_forced(world: ThreeStages) -> None:
    plan, _ = read_plan(world.select(alpha=0.02, first="middle"))
    assert [stage.model.name for stage in plan.stages] == ["middle", "full"]


def test_the_numbers_are_those_of_the_calibration_rows(world: ThreeStages) -> None:
    _, certificate = read_plan(world.select(alpha=0.02))
    assert certificate is not None
    read = {name: read_outputs(world.outputs[name], "calibration") for name in ("cheap", "middle", "full")}
    labels, answers = read["full"][1], {name: logits.argmax(1) for name, (_, _, logits) in read.items()}
    temperatures = {"cheap": certificate.temperature, "middle": certificate.middle[0].temperature}
    accepted = {}
    for (name, temperature), limit in zip(temperatures.items(), certificate.default.thresholds, strict=True):
        accepted[name] = margins(read[name][2], temperature) >= limit
    given = np.where(accepted["cheap"], answers["cheap"], answers["middle"])
    given = np.where(accepted["cheap"] | accepted["middle"], given, answers["full"])
    assert certificate.losses == int(((given != labels) & (answers["full"] == labels)).sum())
    passed_on = ~accepted["cheap"]
    assert certificate.default.shares == [passed_on.mean(), (passed_on & ~accepted["middle"]).mean()]


def test_what_is_certified_is_what_is_served(world: ThreeStages) -> None:
    """Row by row, the endpoint's rules send the calibration rows where certification counted them."""
    artifact = world.select(alpha=0.02, validator="deferral", checks=[{"check": "length", "min_tokens": 6}])
    plan, certificate = read_plan(artifact)
    assert certificate is not None and len(plan.stages) == 3
    state = load(artifact.read_bytes("scorer.safetensors"))
    assert {name.split(".")[1] for name in state} == {"0", "1"}
    rows, bundle = Evidence(artifact).rows(certificate, "calibration"), load_bundle(artifact.uri)
    rules, scorers = Rules.of(bundle.plan, bundle.state), certified_scorers(artifact, plan, certificate)
    by = answered_by(rows.all_scores(scorers), limits_of(certificate.default, 2))
    reasons = [rules.judge(rows.inputs, rows.stages[stage], stage=stage).reasons for stage in (0, 1)]
    served = [0 if first is None else 1 if middle is None else 2 for first, middle in zip(*reasons, strict=True)]
    assert by.tolist() == served
    assert (by > 0).mean() == certificate.escalation_rate


def test_label_sets_are_fitted_for_each_of_three_stages(world: ThreeStages) -> None:
    artifact = world.select(alpha=0.02, conformal={"coverage": 0.94})
    plan, _ = read_plan(artifact)
    assert [s.label_sets.level for s in plan.stages if s.label_sets] == pytest.approx([0.98] * 3)
    assert plan.expected["test_label_set_coverage"] > 0.94 - 0.03
    assert verify(artifact).ok


def test_the_procedure_can_be_repeated(world: ThreeStages) -> None:
    found = resample_task(world.select(alpha=0.02), 10, lambda _: None)
    assert found.ok and found.issued == 1 and 0.3 < found.escalation_rate < 0.6


def test_a_first_model_that_does_alone_after_all_verifies_with_what_would_have_been_asked(tmp_path: Path) -> None:
    """On the selection rows three stages were needed; on the calibration rows the first never errs."""
    world = ThreeStages(tmp_path / "store", lucky_calibration=True)
    artifact = world.select(alpha=0.02, validator="deferral", constraints={"max_recall_drop": None})
    plan, certificate = read_plan(artifact)
    assert [stage.model.name for stage in plan.stages] == ["cheap"]
    assert certificate is not None and certificate.last is None
    assert [stage.model.name for stage in certificate.middle] == ["middle"]
    assert [check for check in verify(artifact).checks if not check.ok] == []
    assert load_bundle(artifact.uri).plan == plan


def test_fresh_rows_certify_three_stages_again(tmp_path: Path) -> None:
    world = ThreeStages(tmp_path / "store")
    for name, stage in (("cheap", "variant-c"), ("middle", "variant-d")):  # the full model under other names
        world.models[name] = toy_model_artifact(world.store, stage)
    world.profile = world._profile({"full": 1.0, "cheap": 0.04, "middle": 0.2})
    first = world.select(alpha=0.02, points=[], validator="deferral")
    second = certify(world, first, labelled(tmp_path / "a.csv", fresh(300)))
    (old, _), (plan, certificate) = read_plan(first), read_plan(second)
    assert certificate is not None and plan.default is not None
    assert [stage.model.name for stage in plan.stages] == ["cheap", "middle", "full"]
    assert set(certificate.fresh_outputs) == {"cheap", "middle", "full"}
    assert (certificate.calibration_rows, certificate.losses) == (300, 0)
    assert [stage.threshold for stage in plan.stages] == [*plan.default.thresholds, None]
    assert plan.default.thresholds < old.default.thresholds  # type: ignore[union-attr]
    assert [check for check in verify(second).checks if not check.ok] == []
    assert load_bundle(second.uri).certificate == certificate
    assert [version.rows for version in history(second)] == [1500, 300]
