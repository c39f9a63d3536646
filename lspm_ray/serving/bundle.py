"""The plan, its certificate and its models, verified before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspm_ray.artifact import Artifact, open_artifact, open_beside
from lspm_ray.audit.keeper import Place
from lspm_ray.audit.ledger import Revocation
from lspm_ray.compression.recipe import FULL
from lspm_ray.errors import ArtifactError, CertificateError, ConfigError
from lspm_ray.selection.check import agreement, arithmetic
from lspm_ray.selection.plan import CERTIFICATE_FILE, PLAN_FILE, Certificate, ModelRef, Plan
from lspm_ray.selection.scorer import SCORER_FILE, load_state
from lspm_ray.serving.config import ServeConfig, why_unaudited
from lspm_ray.validators import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lspm_ray.inference.predictor import Predictor


@dataclass(frozen=True)
class Bundle:
    """A plan that may be served.

    Attributes:
        plan: what to serve.
        certificate: what it promises; None when the full model serves alone.
        models: the artifact of each stage.
        artifact: the select artifact.
        state: what validator and checks have learnt.
    """

    plan: Plan
    certificate: Certificate | None
    models: list[Artifact]
    artifact: Artifact
    state: State = default(default_factory=dict)

    def full_model(self) -> Artifact:
        """The model that the certificate compares answers with; the plan need not serve it.

        Raises:
            ArtifactError: it is missing, or another one than the certificate's.
            CertificateError: there is no certificate.
        """
        if self.certificate is None:
            raise CertificateError("the full model serves alone: there is nothing to compare it with")
        return _open_model(self.certificate.full, self.artifact)

    def directory(self, stage: int) -> Path:
        """Verified local model directory of a stage.

        Raises:
            ArtifactError: a file is not what the certificate was issued for.
        """
        return self.models[stage].local()

    def verify(self) -> None:
        """Hash the models that lie on this machine; replicas do it for all models before they load them.

        Raises:
            ArtifactError: see `directory`.
        """
        for model in self.models:
            if "://" not in model.uri:
                model.verify()

    def predictor(self, stage: int, threads: int, gpu: bool = False) -> Predictor:
        """The loaded model of a stage; see `load_predictor`.

        Raises:
            ArtifactError: see `directory`.
            CertificateError: its labels are not the plan's.
        """
        return self._load(self.plan.stages[stage].model.name, self.directory(stage), threads, gpu)

    def full_predictor(self, threads: int, gpu: bool = False) -> Predictor:
        """The loaded full model.

        Raises:
            ArtifactError: see `full_model`.
            CertificateError: its labels are not the plan's.
        """
        return self._load("full", self.full_model().local(), threads, gpu)

    def _load(self, name: str, directory: Path, threads: int, gpu: bool) -> Predictor:
        from lspm_ray.inference.predictor import load_predictor

        predictor = load_predictor(directory, threads, gpu)
        if predictor.labels != self.plan.labels:
            raise CertificateError(
                f"model {name} has other labels than the plan",
                field="labels",
                value=predictor.labels,
                valid=self.plan.labels,
            )
        return predictor

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that all stages share: the full model's."""
        from lspm_ray.models.directory import load_tokenizer

        return load_tokenizer(self.directory(-1))


def load_bundle(plan_uri: str) -> Bundle:
    """Open what selection wrote and check that plan, certificate and models belong together.

    Cheap: the models' manifests are read, not their files. `Bundle.directory` hashes those, before they are loaded.

    Args:
        plan_uri: the select artifact, local path or URI.

    Raises:
        ArtifactError: the artifact or a model is missing or damaged.
        CertificateError: the certificate is not the plan's, or promises something else than the plan does.
    """
    artifact = open_artifact(plan_uri)
    plan = _parse(artifact, PLAN_FILE, Plan)
    certificate: Certificate | None = None
    if CERTIFICATE_FILE in artifact.manifest.files:
        certificate = _parse(artifact, CERTIFICATE_FILE, Certificate)
    check_certificate(plan, certificate)
    state: State = {}
    if certificate is not None:
        learnt = artifact.read_bytes(SCORER_FILE) if SCORER_FILE in artifact.manifest.files else None
        state = load_state(learnt, certificate.scorer_digest)
    return Bundle(plan, certificate, [_open_model(stage.model, artifact) for stage in plan.stages], artifact, state)


def revocation(bundle: Bundle) -> Revocation | None:
    """Why the audit has revoked the certificate; None where it has not.

    Raises:
        AuditError: the audit's ledger is damaged.
    """
    return None if bundle.certificate is None else Place.of(bundle.certificate, bundle.artifact).load().revoked


def check_not_revoked(bundle: Bundle, config: ServeConfig) -> None:
    """Refuse a plan whose certificate the audit has revoked, unless the audit runs: then the full model answers all.

    Raises:
        CertificateError: says what the audit found.
        AuditError: the audit's ledger is damaged.
    """
    why = why_unaudited(bundle.plan, bundle.certificate, config)
    if why is None or bundle.certificate is None:
        return
    revoked = revocation(bundle)
    if revoked is not None:
        raise CertificateError(
            f"the audit has revoked the certificate ({revoked.sentence()}), and now {why}",
            field="serve.audit",
            hint="With the audit on, the full model answers everything; or run `lspm select` again with fresh rows",
        )


def check_certificate(plan: Plan, certificate: Certificate | None) -> None:
    """Refuse a plan that does not do what its certificate is about, and a certificate that its own counts contradict.

    Whether the counts are those of the outputs takes the outputs: `lspm verify`.

    Raises:
        CertificateError: names the field that is wrong.
    """
    if certificate is None:
        if plan.certificate_id is not None:
            raise CertificateError(
                f"the plan names certificate {plan.certificate_id}, but there is no {CERTIFICATE_FILE}", hint=_AGAIN
            )
        if len(plan.stages) > 1 or plan.points:
            raise CertificateError("several stages need a certificate", field="certificate_id", hint=_AGAIN)
        if (name := plan.stages[0].model.name) != FULL:
            raise CertificateError(
                "only the full model may serve without a certificate",
                field="stages",
                value=name,
                valid=[FULL],
                hint=_AGAIN,
            )
        return
    for check in agreement(plan, certificate):
        if not check.ok:
            raise CertificateError(
                "the plan differs from its certificate",
                field=check.what,
                value=check.stated,
                valid=[check.found],
                hint=_AGAIN,
            )
    for check in arithmetic(certificate):
        if not check.ok:
            raise CertificateError(
                f"the certificate does not hold: found {check.found}", field=check.what, value=check.stated, hint=_AGAIN
            )


_AGAIN = "Run `lspm select` again; plans and certificates are not to be edited by hand"


def _parse(artifact: Artifact, name: str, cls: type[Any]) -> Any:
    try:
        return cls.parse(artifact.read_json(name))
    except (ValueError, ConfigError) as error:
        raise ArtifactError(f"not a valid {name}: {error}", field=artifact.path(name)) from None


def _open_model(reference: ModelRef, plan: Artifact) -> Artifact:
    artifact = open_beside(reference.uri, plan)
    if artifact.digest != reference.digest:
        raise ArtifactError(
            f"model {reference.name} is not the one the plan was made for: expected digest {reference.digest}, "
            f"found {artifact.digest}",
            field=reference.uri,
            hint=_AGAIN,
        )
    return artifact
