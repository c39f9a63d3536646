"""The plan, its certificate and its models, verified before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspm_ray.artifact import Artifact, open_artifact, open_beside
from lspm_ray.errors import ArtifactError, CertificateError, ConfigError
from lspm_ray.selection.check import agreement, arithmetic
from lspm_ray.selection.plan import CERTIFICATE_FILE, PLAN_FILE, Certificate, ModelRef, Plan
from lspm_ray.selection.scorer import SCORER_FILE, load_state
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
        state: what validator and checks have learnt.
    """

    plan: Plan
    certificate: Certificate | None
    models: list[Artifact]
    state: State = default(default_factory=dict)

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
        from lspm_ray.inference.predictor import load_predictor

        predictor = load_predictor(self.directory(stage), threads, gpu)
        if predictor.labels != self.plan.labels:
            raise CertificateError(
                f"model {self.plan.stages[stage].model.name} has other labels than the plan",
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
    return Bundle(plan, certificate, [_open_model(stage.model, artifact) for stage in plan.stages], state)


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
            raise CertificateError("a plan with two stages needs a certificate", field="certificate_id", hint=_AGAIN)
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
