"""The application builder that Ray Serve imports: `import_path: lspm_ray.serving.app:build`."""

from typing import Any

from pydantic import Field
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from lspm_ray.config import Config
from lspm_ray.serving.bundle import check_not_revoked, load_bundle
from lspm_ray.serving.config import ReplicaConfig, ServeConfig, is_inline, serves_full, why_unaudited
from lspm_ray.serving.deployments import AUDIT, FULL, AuditReplica, Ingress, VariantReplica

_SPARE_REQUESTS = 64
"""Beyond the router's own limit, so that its JSON answer and not Ray's text says that too much is waiting."""


class BuildArgs(Config):
    """The `args` of the application in a Serve config.

    Attributes:
        plan: the select artifact, local path or URI.
        serve: settings of the endpoint.
    """

    plan: str = Field(min_length=1)
    serve: ServeConfig = ServeConfig()


def build(args: dict[str, Any]) -> Any:
    """The Ray Serve application for a plan.

    Raises:
        ConfigError: `args` are not valid `BuildArgs`.
        ArtifactError: see `load_bundle`.
        CertificateError: see `load_bundle`.
    """
    settings = BuildArgs.parse(args)
    bundle = load_bundle(settings.plan)
    check_not_revoked(bundle, settings.serve)
    plan, certificate = bundle.plan, bundle.certificate
    config = settings.serve.model_dump(mode="json")
    variant = serve.deployment(VariantReplica)
    handles: dict[str, DeploymentHandle] = {}
    for index, stage in enumerate(plan.stages):
        if index > 0 or not is_inline(plan, settings.serve):
            options = variant_options(stage.model.name, settings.serve)
            handles[str(index)] = variant.options(**options).bind(settings.plan, index, config)
    if certificate is not None and why_unaudited(plan, certificate, settings.serve) is None:
        if not serves_full(plan, certificate):
            options = variant_options(certificate.full.name, settings.serve)
            handles[FULL] = variant.options(**options).bind(settings.plan, None, config)
        handles[AUDIT] = (
            serve.deployment(AuditReplica).options(**audit_options(settings.serve)).bind(settings.plan, config)
        )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(**ingress_options(settings.serve))
    return ingress.bind(settings.plan, config, handles)


def variant_options(name: str, config: ServeConfig) -> dict[str, Any]:
    """Deployment options of a model with replicas of its own."""
    calls = 2 * config.variant.max_replicas
    return {
        "name": name,
        "max_ongoing_requests": 4 * calls,
        "max_queued_requests": 4 * calls,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=config.limits.retry_after_s),
        **_common(config.variant, config),
    }


def audit_options(config: ServeConfig) -> dict[str, Any]:
    """Deployment options of the one who keeps the audit's ledger: there is never a second one."""
    return {
        "name": "audit",
        "num_replicas": 1,
        "max_ongoing_requests": 64,
        "ray_actor_options": {"num_cpus": 0},
        "graceful_shutdown_timeout_s": config.graceful_shutdown_s,
        "max_constructor_retry_count": 2,
        "max_surge_percent": 0,
        "logging_config": LoggingConfig(enable_access_log=False),
    }


def ingress_options(config: ServeConfig) -> dict[str, Any]:
    """Deployment options of the ingress."""
    return {
        "name": "ingress",
        "max_ongoing_requests": config.limits.max_requests + _SPARE_REQUESTS,
        "max_queued_requests": _SPARE_REQUESTS,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=config.limits.retry_after_s),
        **_common(config.ingress, config),
    }


def _common(replica: ReplicaConfig, config: ServeConfig) -> dict[str, Any]:
    resources: dict[str, Any] = {"num_cpus": replica.cpus}
    if replica.gpus:
        resources["num_gpus"] = replica.gpus
    options: dict[str, Any] = {
        "ray_actor_options": resources,
        "graceful_shutdown_timeout_s": config.graceful_shutdown_s,
        "max_constructor_retry_count": 2,
        "max_surge_percent": replica.max_surge_percent,
        "logging_config": LoggingConfig(enable_access_log=False),
    }
    if replica.max_replicas == replica.min_replicas:
        options["num_replicas"] = replica.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": replica.min_replicas,
            "max_replicas": replica.max_replicas,
            "target_ongoing_requests": replica.target_ongoing_requests,
        }
    return options
