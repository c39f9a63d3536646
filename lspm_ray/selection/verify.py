"""Recompute a certificate and its plan from the stored outputs, and say what does not hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, hardware, open_beside
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.shards import labels as label_names
from lspm_ray.corpus.shards import max_characters, read_split
from lspm_ray.errors import ArtifactError, CertificateError
from lspm_ray.evaluation.calibration import fit_calibrator
from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.profiling.profile import read_profile
from lspm_ray.progress import Report
from lspm_ray.selection.check import Check, compare, document_checks, dump
from lspm_ray.selection.conformal import stage_level
from lspm_ray.selection.options import TIES, Rows, limits_of
from lspm_ray.selection.plan import CERTIFICATE_FILE, PLAN_FILE, Certificate, ModelRef, Plan, PlanStage
from lspm_ray.selection.points import Wanted, answered_by, certify, tied_path
from lspm_ray.selection.resample import Resampled, pool, resample
from lspm_ray.selection.risk import cost_of_stages
from lspm_ray.selection.scorer import Scorer
from lspm_ray.selection.select import (
    SelectConfig,
    came_true,
    certified_scorers,
    disagreement_bound,
    inputs_of,
    label_sets,
    label_sets_came_true,
    rows,
    texts_of,
    training_of,
)
from lspm_ray.tasks import Task
from lspm_ray.validators import Training

_LEARNT = 1e-6
"""By how much what is learnt again may differ, relative to its largest number."""


class Verdict(Config):
    """What verification found.

    Attributes:
        uri: the select artifact.
        certificate_id: None where the full model serves alone.
        checks: in the order in which they were made.
        same_hardware: whether latencies and costs of the plan were measured on a machine like this one.
    """

    uri: str
    certificate_id: str | None
    checks: list[Check]
    same_hardware: bool

    @property
    def ok(self) -> bool:
        """Whether everything holds. Other hardware is no failure: it voids latencies, not the bound."""
        return all(check.ok for check in self.checks)


class Evidence:
    """What a plan and its certificate rest on, opened beside them.

    Args:
        artifact: the select artifact.

    Raises:
        ArtifactError: a document or something that it names cannot be read.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            self.plan = Plan.parse(artifact.read_json(PLAN_FILE))
            has = CERTIFICATE_FILE in artifact.manifest.files
            self.certificate = Certificate.parse(artifact.read_json(CERTIFICATE_FILE)) if has else None
        except ValueError as error:
            raise ArtifactError(f"not a plan: {error}", field=artifact.uri) from None

    def open(self, ref: ModelRef) -> Artifact:
        """What a reference names."""
        return open_beside(ref.uri, self.artifact)

    def rows(self, certificate: Certificate, split: str) -> Rows:
        """Outputs of the models of the cascade and of the full one on a split."""
        outputs, data = certificate.outputs, certificate.data
        if split == "calibration" and certificate.fresh is not None:
            outputs, data = certificate.fresh_outputs, certificate.fresh
        named = [outputs[name] for name in (*tried(certificate), FULL)]
        corpus = self.open(data)
        texts = texts_of(corpus, split) if self.config.reads_texts else None
        return rows([self.open(ref) for ref in named], split, inputs_of(corpus, split), texts)

    @property
    def config(self) -> SelectConfig:
        """What was asked for."""
        return SelectConfig.parse(self.artifact.manifest.config["select"])

    def scorers(self, certificate: Certificate) -> list[Scorer]:
        """What the certificate is about, for every stage but the last, with what they have learnt.

        Raises:
            CertificateError: what they have learnt is missing, or not what the certificate was issued for.
        """
        return certified_scorers(self.artifact, self.plan, certificate)

    def fit_scorers(self, certificate: Certificate, selection: Rows) -> list[Scorer]:
        """What is learnt from these selection rows about every stage but the last."""
        config = self.config
        return [
            selection.fit_scorer(
                config.make_validator(),
                config.make_checks(),
                config.calibrator,
                certificate.risk,
                self.plan.labels,
                lambda: self._training,
                stage,
            )
            for stage in range(len(selection.stages) - 1)
        ]

    @cached_property
    def _training(self) -> Training:
        if self.certificate is None:
            raise ValueError("without a certificate there is nothing to learn")
        return training_of(self.open(self.certificate.data))

    def wanted(self, certificate: Certificate) -> Wanted:
        """What the certificate was asked for: the risk levels that it has or says why it has not."""
        asked = self.config.wanted(self.plan.labels)
        default = certificate.default.alpha
        others = {point.alpha for point in certificate.points} | {float(alpha) for alpha in certificate.left_out}
        return Wanted(default, tuple(sorted(others - {default})), certificate.delta, asked.per_class)


def tried(certificate: Certificate) -> list[str]:
    """The models that rows went through when the certificate was issued, in the order in which they were asked.

    Where the first turned out to do alone, `last` names none, but its outputs were counted.
    """
    names = [certificate.first.name, *(stage.model.name for stage in certificate.middle)]
    if certificate.last is not None:
        return [*names, certificate.last.name]
    counted = certificate.fresh_outputs or certificate.outputs
    return [*names, next((name for name in counted if name not in (*names, FULL)), FULL)]


def path_of(certificate: Certificate, selection_scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The path that was walked: all of it when the plan was made, later only what needs no other models."""
    path = tied_path(selection_scores, certificate.grid_size, certificate.tie)
    if certificate.fresh is None or certificate.checks:
        return path
    return path[-1:] if certificate.last is None else path[:-1]


def verify(artifact: Artifact) -> Verdict:
    """Check everything that a select artifact says.

    Raises:
        ArtifactError: something it names cannot be opened, or its own documents cannot be read.
    """
    evidence = Evidence(artifact)
    checks = list(_digests(evidence))
    certificate = evidence.certificate
    config = artifact.manifest.config.get("select", {})
    if certificate is None:
        checks.append(compare("certificate", None, evidence.plan.certificate_id))
        checks.append(compare("models of a plan without certificate", [FULL], _models(evidence.plan)))
        checks += _is_full(evidence)
    elif all(check.ok for check in checks):
        checks += document_checks(evidence.plan, certificate)
        checks += _asked(certificate, SelectConfig.parse(config))
        checks += _splits(evidence, certificate)
        state = _state(evidence, certificate)
        checks.append(state)
        if state.ok:
            checks += _recomputed(evidence, certificate)
            checks += _plan(evidence, certificate)
    return Verdict(
        uri=artifact.uri,
        certificate_id=None if certificate is None else certificate.id,
        checks=checks,
        same_hardware=certificate is None or certificate.hardware == hardware(),
    )


def _digests(evidence: Evidence) -> Iterator[Check]:
    """Whether every artifact is complete, unchanged, and the one that is named."""
    yield _intact("select", evidence.artifact, evidence.artifact.digest)
    refs = [stage.model for stage in evidence.plan.stages]
    certificate = evidence.certificate
    if certificate is not None:
        refs += [certificate.data, certificate.full, *certificate.outputs.values()]
        refs += [stage.model for stage in certificate.middle]
        refs += [certificate.profile] if certificate.profile else []
        refs += [certificate.fresh, *certificate.fresh_outputs.values()] if certificate.fresh else []
    for ref in {(ref.uri, ref.digest): ref for ref in refs}.values():
        found = evidence.open(ref)
        yield _intact(f"{found.manifest.stage} {ref.name}", found, ref.digest)
    if certificate is None:
        return
    needed = {*tried(certificate), FULL}
    missing = sorted(needed - set(certificate.outputs))
    yield compare("models without outputs", missing, [])
    used = sorted(needed) if certificate.fresh else []
    yield compare("models with outputs on fresh rows", used, sorted(certificate.fresh_outputs))
    for name, ref in certificate.fresh_outputs.items():
        of = evidence.open(ref).manifest.parents
        wanted = [name, certificate.fresh.digest if certificate.fresh else None]
        yield compare(f"fresh outputs {name}: made of", [ref.name, of.get("data")], wanted)
    names = [certificate.full.name, certificate.data.name, *(ref.name for ref in certificate.outputs.values())]
    yield compare("names", [FULL, "data", *certificate.outputs], names)
    yield compare("hardware", evidence.artifact.manifest.hardware, certificate.hardware)
    parents = evidence.artifact.manifest.parents
    for name, ref in certificate.outputs.items():
        yield compare(f"outputs {name}: made of", parents.get(f"outputs.{name}"), ref.digest)
    yield compare("corpus: made of", parents.get("data"), certificate.data.digest)
    made_of = {"profile": parents.get("profile")} if certificate.profile else {}
    stated = {certificate.profile.name: certificate.profile.digest} if certificate.profile else {}
    yield compare("profile: made of", made_of, stated)
    of_labels = {"labels": parents.get("labels")} if "labels" in parents else {}
    named = {certificate.fresh.name: certificate.fresh.digest} if certificate.fresh else {}
    yield compare("fresh rows: made of", of_labels, named)
    served = [stage.model for stage in evidence.plan.stages] + [stage.model for stage in certificate.middle]
    models = {ref.name: ref.digest for ref in [*served, certificate.full]}
    for name, ref in certificate.outputs.items():
        of = evidence.open(ref).manifest.parents
        if name in models and of:
            yield compare(f"outputs {name}: model", of.get("model"), models[name])
            yield compare(f"outputs {name}: corpus", of.get("data"), certificate.data.digest)


def _intact(what: str, artifact: Artifact, stated: str) -> Check:
    try:
        artifact.verify()
    except ArtifactError as error:
        return Check(what=f"{what}: files", found=str(error), stated=stated, ok=False)
    return compare(f"{what}: files", artifact.digest, stated)


def _asked(certificate: Certificate, config: SelectConfig) -> Iterator[Check]:
    """Whether the promise is the one that was asked for."""
    yield compare("alpha", config.alpha, certificate.alpha)
    yield compare("delta", config.delta, certificate.delta)
    yield compare("risk", config.risk, certificate.risk)
    yield compare("validator", config.validator, certificate.validator)
    yield compare("checks", config.checks, certificate.checks)
    yield compare("calibrator", config.calibrator, "temperature" if (c := certificate.calibrator) is None else c.kind)
    yield compare("grid size", config.grid_size, certificate.grid_size)
    ties = TIES if certificate.middle else (1.0,)
    yield Check(what="tie", found=list(ties), stated=certificate.tie, ok=certificate.tie in ties)
    plain = {name: Certificate.model_fields[name].default for name in ("assumption", "how_to_check")}
    yield compare("wording", plain, {name: getattr(certificate, name) for name in plain})
    asked = {config.alpha, *config.points}
    stated = {point.alpha for point in certificate.points} | {float(alpha) for alpha in certificate.left_out}
    yield compare("risk levels", sorted(asked), sorted(stated))


def _splits(evidence: Evidence, certificate: Certificate) -> Iterator[Check]:
    """Whether no text is in two splits, and outputs are about the rows of the corpus."""
    data = evidence.open(certificate.data)
    texts = {}
    for split in SPLITS:
        column = read_split(data, split, ["text"])["text"]
        texts[split] = {hashlib.sha256(text.as_py().encode()).digest() for chunk in column.chunks for text in chunk}
    if certificate.fresh is not None:
        fresh = read_split(evidence.open(certificate.fresh), "calibration", ["text"])["text"].to_pylist()
        own = {hashlib.sha256(text.encode()).digest() for text in fresh}
        yield compare("fresh rows that are different", len(fresh), len(own))
        for split in ("train", "validation", "selection", "calibration"):
            shared = len(own & texts[split])
            yield Check(what=f"fresh texts in {split}", found=shared, stated=0, ok=shared == 0)
    for a, b in combinations(SPLITS, 2):
        shared = len(texts[a] & texts[b])
        yield Check(what=f"texts in both {a} and {b}", found=shared, stated=0, ok=shared == 0)
    for name, ref in certificate.outputs.items():
        for split in ("selection", "calibration", "test"):
            ids, labels, _ = read_outputs(evidence.open(ref), split)
            table = read_split(data, split, ["id", "label"])
            same = ids == table["id"].to_pylist() and np.array_equal(labels, table["label"].to_numpy())
            what = f"outputs {name}: rows of {split}"
            yield Check(what=what, found="those of the corpus" if same else "others", stated="of the corpus", ok=same)


def _state(evidence: Evidence, certificate: Certificate) -> Check:
    """Whether validator and checks have what the certificate was issued for."""
    what, stated = "what validator and checks have learnt", certificate.scorer_digest
    try:
        evidence.scorers(certificate)
    except CertificateError as error:
        return Check(what=what, found=str(error), stated=stated, ok=False)
    return Check(what=what, found=stated, stated=stated, ok=True)


def _recomputed(evidence: Evidence, certificate: Certificate) -> Iterator[Check]:
    """The certificate, issued again from the outputs."""
    selection, calibration = evidence.rows(certificate, "selection"), evidence.rows(certificate, "calibration")
    scorers = evidence.scorers(certificate)
    refit = evidence.fit_scorers(certificate, selection)
    for name, scorer, again in zip(tried(certificate)[:-1], scorers, refit, strict=True):
        yield compare(f"{name}: temperature, fitted again", again.temperature, scorer.temperature)
        yield compare(f"{name}: calibrator, fitted again", dump(again.calibrator), dump(scorer.calibrator))
        yield from _learnt(name, again, scorer)
    path, scores = path_of(certificate, selection.all_scores(scorers)), calibration.all_scores(scorers)
    last_is_full, checked = tried(certificate)[-1] == FULL, bool(scorers[0].checks)
    walked = calibration.walk(certificate.risk, scores, path, last_is_full=last_is_full, checked=checked)
    yield compare("calibration rows", walked.rows, certificate.calibration_rows)
    try:
        found = certify(walked, evidence.wanted(certificate), evidence.plan.labels)
    except CertificateError as error:
        yield Check(what="certified again", found=str(error), stated="certified", ok=False)
        return
    if found.default is not None:
        again_bound = None
        if certificate.risk == "regret":
            by = answered_by(scores, limits_of(found.default, len(scores)))
            again_bound = disagreement_bound(calibration, by, len(path))
        yield compare("disagreement", dump(again_bound), dump(certificate.disagreement))
    yield compare("multiplicity", found.multiplicity, certificate.multiplicity)
    yield compare("risk levels left out", found.left_out, certificate.left_out)
    by_alpha = {point.alpha: point.model_dump(mode="json") for point in found.points}
    for point in certificate.points:
        issued = by_alpha.get(point.alpha, {})
        for name, stated in point.model_dump(mode="json").items():
            yield compare(f"point {point.alpha:g}: {name}", issued.get(name), stated)


def _learnt(model: str, again: Scorer, scorer: Scorer) -> Iterator[Check]:
    """Whether validator and checks learn the same again, but for rounding: another build sums in another order."""
    shapes, stated = ({name: list(values.shape) for name, values in of.state.items()} for of in (again, scorer))
    yield compare(f"{model}: what was learnt, its shapes", shapes, stated)
    if shapes != stated:
        return
    for name, values in scorer.state.items():
        found = again.state[name].astype(np.float64)
        ok = np.allclose(found, values.astype(np.float64), rtol=_LEARNT, atol=_LEARNT * float(np.abs(values).max()))
        what = f"{model}: what was learnt: {name}"
        yield Check(what=what, found="the same" if ok else "other", stated="the same", ok=bool(ok))


def _plan(evidence: Evidence, certificate: Certificate) -> Iterator[Check]:
    """The plan's numbers, from profile and test outputs."""
    plan, data = evidence.plan, evidence.open(certificate.data)
    manifest = evidence.artifact.manifest
    yield compare("labels", label_names(data), plan.labels)
    yield compare("max_characters", max_characters(data), plan.max_characters)
    yield compare("task", Task.make(manifest.config["task"]).spec(), plan.task)
    yield compare("reasons", manifest.summary.get("reasons"), plan.reasons)
    if certificate.profile is None:
        return
    table = read_profile(evidence.open(certificate.profile))
    measured = {variant.name: variant for variant in table.variants}
    for stage in plan.stages:
        name = stage.model.name
        if name not in measured:
            yield Check(what="model in the profile", found=sorted(measured), stated=name, ok=False)
            continue
        speed = measured[name].speed
        yield compare(f"{name}: model measured", measured[name].digest, stage.model.digest)
        yield compare(f"{name}: cost", measured[name].cost, stage.cost)
        yield compare(f"{name}: latency", speed.p50_ms if speed else 0.0, stage.batch_1_latency_ms)
        yield compare(f"{name}: throughput", speed.best_rows_per_s if speed else None, stage.rows_per_s)
    if certificate.last is not None:
        _, truth, logits = read_outputs(evidence.open(certificate.outputs[certificate.last.name]), "selection")
        fine, last = np.isfinite(logits).all(axis=1), plan.stages[-1]
        temperature, calibrator = fit_calibrator(evidence.config.calibrator, logits[fine], truth[fine])
        yield compare("temperature of the last stage", temperature, last.temperature)
        yield compare("calibrator of the last stage", dump(calibrator), dump(last.calibrator))
    yield from _label_sets(evidence, certificate)
    for name, found in expected_numbers(evidence, certificate, plan.stages).items():
        yield compare(f"expected {name}", found, plan.expected.get(name))
    summary = manifest.summary.get("expected", {})
    yield compare("expected, as summed up", summary, plan.expected)


def expected_numbers(evidence: Evidence, certificate: Certificate, stages: Sequence[PlanStage]) -> dict[str, float]:
    """What a plan of these stages is expected to do, from test outputs."""
    test, scorers, point = evidence.rows(certificate, "test"), evidence.scorers(certificate), certificate.default
    by = answered_by(test.all_scores(scorers), limits_of(point, len(scorers)))
    sets = label_sets_came_true(stages, test, scorers) if evidence.config.conformal is not None else {}
    # A timing, which nobody can compute: what rests on it can.
    validator_cost = evidence.plan.expected.get("validator_cost", 0.0)
    return {
        "escalation_rate": point.escalation_rate,
        "cost": cost_of_stages([stage.cost for stage in stages], validator_cost, point.shares),
        **came_true(test, by, certificate.risk),
        **sets,
    }


def _label_sets(evidence: Evidence, certificate: Certificate) -> Iterator[Check]:
    """The limits of the label sets, fitted again."""
    stages = evidence.plan.stages
    for stage, found in zip(stages, refitted(evidence, certificate, stages), strict=True):
        sets, again = stage.label_sets, found.label_sets
        yield compare(f"{stage.model.name}: label sets, fitted again", dump(again), dump(sets))


def refitted(evidence: Evidence, certificate: Certificate, stages: Sequence[PlanStage]) -> list[PlanStage]:
    """The stages with label sets of the calibration rows that the certificate is about; without any as they are."""
    config = evidence.config.conformal
    if config is None:
        return [stage.model_copy(update={"label_sets": None}) for stage in stages]
    calibration = evidence.rows(certificate, "calibration")
    level, found = stage_level(config.coverage, len(stages)), []
    for stage, logits in zip(stages, calibration.stages, strict=False):
        sets = label_sets(stage, logits, calibration.labels, config, level)
        found.append(stage.model_copy(update={"label_sets": sets}))
    return found


def _is_full(evidence: Evidence) -> Iterator[Check]:
    """Whether what serves without a certificate is the model that was measured as full."""
    wanted = evidence.artifact.manifest.parents.get("profile")
    root = ArtifactStore(evidence.artifact.root)
    for profile in (found for found in root.artifacts() if found.digest == wanted):
        measured = {variant.name: variant.digest for variant in read_profile(profile).variants}
        yield compare("full: model measured", measured.get(FULL), evidence.plan.stages[0].model.digest)


def _models(plan: Plan) -> list[Any]:
    return [stage.model.name for stage in plan.stages]


def resample_task(artifact: Artifact, runs: int, report: Report) -> Resampled:
    """The violation rate of the procedure on the task of a select artifact: see `lspm_ray.selection.resample`.

    Raises:
        CertificateError: the full model serves alone.
    """
    evidence = Evidence(artifact)
    certificate = evidence.certificate
    if certificate is None:
        raise CertificateError("nothing was certified, so there is no procedure to repeat", field="--resample")
    splits = [evidence.rows(certificate, split) for split in ("selection", "calibration", "test")]
    return resample(
        pool(splits),
        (len(splits[0].labels), len(splits[1].labels)),
        partial(evidence.fit_scorers, certificate),
        evidence.wanted(certificate),
        certificate.risk,
        last_is_full=tried(certificate)[-1] == FULL,
        grid_size=certificate.grid_size,
        tie=certificate.tie,
        runs=runs,
        report=report,
    )
