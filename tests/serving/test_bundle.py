import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from lspm_ray.artifact import Artifact, ArtifactStore, open_artifact
from lspm_ray.errors import ArtifactError, CertificateError, UserError
from lspm_ray.selection.plan import Certificate, DisagreementBound, Plan
from lspm_ray.selection.risk import p_value, upper_bound
from lspm_ray.serving.bundle import check_certificate, load_bundle
from lspm_ray.serving.cascade import Rules
from tests.toys import toy_plan, write_plan


def documents(artifact: Artifact) -> tuple[Plan, Certificate]:
    return Plan.parse(artifact.read_json("plan.json")), Certificate.parse(artifact.read_json("certificate.json"))


def edited(plan: Plan, path: str, value: Any) -> Plan:
    """The plan with `stages.0.threshold` and the like replaced."""
    raw = plan.model_dump(mode="json")
    *parents, last = path.split(".")
    node: Any = raw
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    return Plan.parse(raw)


def test_a_sound_plan_opens_and_its_models_run(toy_select: Artifact) -> None:
    bundle = load_bundle(toy_select.uri)
    assert bundle.certificate is not None
    assert bundle.certificate.id == bundle.plan.certificate_id
    ids = bundle.tokenizer()(["love it"])["input_ids"]
    for stage in range(2):
        assert bundle.predictor(stage, 1).predict([np.asarray(ids[0])]).shape == (1, 2)


def test_relative_paths_and_missing_artifacts(
    toy_select: Artifact, monkeypatch: pytest.MonkeyPatch, toy_store: ArtifactStore
) -> None:
    monkeypatch.chdir(toy_store.root)
    assert open_artifact(Path(toy_select.uri).name).uri == toy_select.uri
    with pytest.raises(ArtifactError, match="no such artifact"):
        open_artifact("select-000000000000")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("certificate_id", "0" * 16, "certificate_id"),
        ("certificate_id", None, "certificate_id"),
        ("stages.0.threshold", 0.5, "threshold"),
        ("stages.0.temperature", 2.0, "temperature"),
        ("validator", {"validator": "margin"}, "validator"),
        ("checks", [{"check": "length", "min_tokens": 3}], "checks"),
        ("stages.0.calibrator", {"kind": "vector", "x": [1, 1], "y": [0, 0]}, "calibrator"),
        ("stages.0.model.digest", "0" * 64, "first.digest"),
        ("stages.0.model.name", "other", "first.name"),
        ("stages.1.model.digest", "0" * 64, "last.digest"),
        ("stages.1.model.name", "other", "last.name"),
    ],
)
def test_a_plan_that_differs_from_its_certificate_is_refused(
    toy_select: Artifact, path: str, value: Any, field: str
) -> None:
    plan, certificate = documents(toy_select)
    with pytest.raises(CertificateError, match="differs from its certificate") as caught:
        check_certificate(edited(plan, path, value), certificate)
    assert caught.value.field == field


def test_a_certificate_edited_by_hand_is_refused(toy_select: Artifact) -> None:
    plan, certificate = documents(toy_select)
    better = Certificate.parse(certificate.model_dump(mode="json") | {"delta": 0.001})
    with pytest.raises(CertificateError) as caught:
        check_certificate(plan, better)
    assert caught.value.field == "certificate_id"


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("losses", 9, "point 0.01: p-value"),
        ("losses", -1, "point 0.01: losses"),
        ("p_value", 0.001, "point 0.01: p-value"),
        ("upper_bound", 0.001, "point 0.01: upper bound"),
        ("level", 0.06, "point 0.01: level"),
        ("escalation_rate", 1.2, "point 0.01: escalation"),
        ("alpha", 0.001, "point 0.001: p-value"),
    ],
)
def test_a_certificate_that_its_own_counts_contradict_is_refused(
    own_store: ArtifactStore, field: str, value: Any, what: str
) -> None:
    """Everything else was made to fit: points, certificate and plan agree."""
    plan, certificate = documents(toy_plan(own_store))
    points = [certificate.points[0].model_copy(update={field: value})]
    forged = certificate.model_copy(update={"points": points})
    plan = plan.model_copy(update={"points": points, "certificate_id": forged.id})
    with pytest.raises(CertificateError) as caught:
        load_bundle(write_plan(own_store, plan, forged).uri)
    assert caught.value.field == what


def test_bounds_that_follow_from_too_many_losses_are_refused(own_store: ArtifactStore) -> None:
    plan, certificate = documents(toy_plan(own_store))
    bad = {"losses": 9, "p_value": p_value(9, 1000, 0.01), "upper_bound": upper_bound(9, 1000, 0.05)}
    points = [certificate.points[0].model_copy(update=bad)]
    forged = certificate.model_copy(update={"points": points})
    plan = plan.model_copy(update={"points": points, "certificate_id": forged.id})
    with pytest.raises(CertificateError, match="certified: the certificate does not hold"):
        load_bundle(write_plan(own_store, plan, forged).uri)


def test_a_cascade_without_certificate_is_refused(toy_select: Artifact) -> None:
    plan, _ = documents(toy_select)
    with pytest.raises(CertificateError, match=r"there is no certificate\.json"):
        check_certificate(plan, None)
    with pytest.raises(CertificateError, match="several stages need a certificate"):
        check_certificate(edited(plan, "certificate_id", None), None)


def test_a_cheap_model_without_certificate_is_refused(own_store: ArtifactStore) -> None:
    plan, _ = documents(toy_plan(own_store))
    stage = plan.stages[0].model_copy(update={"threshold": None})
    alone = plan.model_copy(update={"stages": [stage], "points": [], "certificate_id": None})
    with pytest.raises(CertificateError, match=r"only the full model may serve without a certificate.*valid: full"):
        load_bundle(write_plan(own_store, alone, None).uri)


def test_an_invented_bound_of_disagreement_is_refused(own_store: ArtifactStore) -> None:
    plan, certificate = documents(toy_plan(own_store))
    bound = DisagreementBound(losses=5, rows=1000, thresholds=50, delta=0.005, level=0.9)
    forged = certificate.model_copy(update={"disagreement": bound})
    plan = plan.model_copy(update={"certificate_id": forged.id})
    with pytest.raises(CertificateError, match="disagreement: level"):
        load_bundle(write_plan(own_store, plan, forged).uri)


def test_the_full_model_alone_needs_no_certificate(own_store: ArtifactStore) -> None:
    plan, _ = documents(toy_plan(own_store))
    alone = plan.model_copy(update={"stages": plan.stages[1:], "points": [], "certificate_id": None})
    assert load_bundle(write_plan(own_store, alone, None).uri).certificate is None


def test_a_certified_variant_alone_is_served(own_store: ArtifactStore) -> None:
    bundle = load_bundle(toy_plan(own_store, threshold=None).uri)
    assert [model.manifest.stage for model in bundle.models] == ["variant-toy"]


def with_learnt(store: ArtifactStore, state: dict[str, Any], digest: str | None) -> Artifact:
    """A select artifact with these arrays and a certificate that names this digest."""
    plan, certificate = documents(toy_plan(store, validator="deferral"))
    certificate = certificate.model_copy(update={"scorer_digest": digest})
    plan = plan.model_copy(update={"certificate_id": certificate.id})

    def build(draft: Any) -> None:
        (draft.path / "plan.json").write_text(plan.model_dump_json())
        (draft.path / "certificate.json").write_text(certificate.model_dump_json())
        if state:
            (draft.path / "scorer.safetensors").write_bytes(save(state))

    return store.make("select", {"learnt": len(state)}, {"digest": str(digest)}, build)


def test_what_the_validator_has_learnt_is_loaded_if_it_is_what_was_certified(own_store: ArtifactStore) -> None:
    state = {
        "stages.0.validator.seen": np.ones(9, np.uint8),
        "stages.0.validator.weights": np.eye(8)[0],
        "stages.0.validator.bias": np.zeros(1),
    }  # fmt: skip
    bundle = load_bundle(with_learnt(own_store, state, hashlib.sha256(save(state)).hexdigest()).uri)
    verdicts = Rules.of(bundle.plan, bundle.state).judge([np.array([3])], np.array([[2.0, 0.0]], dtype=np.float32))
    assert verdicts.scores[0] == pytest.approx(2.0)
    for found, digest in ((state, "0" * 64), (state, None), ({}, "0" * 64)):
        with pytest.raises(CertificateError, match="not what the certificate was issued for"):
            load_bundle(with_learnt(own_store, found, digest).uri)


def test_a_flipped_byte_in_the_weights_is_refused_before_loading(own_store: ArtifactStore) -> None:
    bundle = load_bundle(toy_plan(own_store).uri)
    weights = Path(bundle.models[0].uri) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: content does not match the manifest"):
        bundle.predictor(0, 1)


def test_an_added_file_is_refused(own_store: ArtifactStore) -> None:
    bundle = load_bundle(toy_plan(own_store).uri)
    (Path(bundle.models[1].uri) / "extra.py").write_text("import os\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"extra\.py: file is not in the manifest"):
        bundle.predictor(1, 1)


def test_a_model_made_again_with_other_content_is_refused(own_store: ArtifactStore) -> None:
    select = toy_plan(own_store)
    uri = Path(load_bundle(select.uri).models[0].uri)
    manifest = uri / "manifest.json"
    raw = json.loads(manifest.read_text(encoding="utf-8")) | {"digest": "0" * 64}
    manifest.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ArtifactError, match="not the one the plan was made for"):
        load_bundle(select.uri)


def test_a_damaged_plan_is_refused(own_store: ArtifactStore) -> None:
    select = toy_plan(own_store)
    file = Path(select.uri) / "plan.json"
    file.write_text(file.read_text(encoding="utf-8").replace("0.75", "0.05"), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"plan\.json: content does not match the manifest"):
        load_bundle(select.uri)


def test_a_missing_model_is_named(own_store: ArtifactStore) -> None:
    select = toy_plan(own_store)
    (Path(load_bundle(select.uri).models[1].uri) / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no such artifact"):
        load_bundle(select.uri)


def test_models_are_found_beside_a_plan_that_was_moved(own_store: ArtifactStore, tmp_path: Path) -> None:
    select = toy_plan(own_store)
    moved = tmp_path / "elsewhere"
    Path(own_store.root).rename(moved)
    bundle = load_bundle(str(moved / Path(select.uri).name))
    assert all(model.uri.startswith(str(moved)) for model in bundle.models)


def test_other_labels_than_the_plan_s_are_refused(own_store: ArtifactStore) -> None:
    plan, certificate = documents(toy_plan(own_store))
    swapped = plan.model_copy(update={"labels": ["yes", "no"]})
    bundle = load_bundle(write_plan(own_store, swapped, certificate).uri)
    with pytest.raises(UserError, match="other labels than the plan"):
        bundle.predictor(0, 1)
