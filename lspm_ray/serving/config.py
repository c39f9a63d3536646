"""Settings of the endpoint."""

from typing import Self

from pydantic import Field, model_validator

from lspm_ray.audit.config import AuditConfig
from lspm_ray.config import Config
from lspm_ray.selection.plan import Certificate, Plan


class ReplicaConfig(Config):
    """Processes of one deployment.

    Attributes:
        min_replicas: kept running without load.
        max_replicas: autoscaling stops here; equal to `min_replicas` it is off.
        cpus: reserved per replica. A reservation only decides what fits on a node; `threads` decides what is used. The
            default lets a whole endpoint, and its replacement during an update, fit one CPU; on a cluster of larger
            nodes make it equal to `threads`.
        gpus: reserved per replica; above 0 a torch variant runs on the GPU, and only then is it measured there.
        threads: CPU threads that the replica computes with.
        max_surge_percent: replicas that may start in an update before the old ones stop, in percent. Needs room for
            both; 0 stops the old ones first, which interrupts a deployment of one replica.
        target_ongoing_requests: calls waiting or running per replica that autoscaling aims at.
    """

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.1, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    threads: int = Field(default=1, ge=1)
    max_surge_percent: int = Field(default=100, ge=0, le=100)
    target_ongoing_requests: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be at least min_replicas ({self.min_replicas})")
        return self


class IngressConfig(ReplicaConfig):
    """Replicas of the ingress: many short requests at a time."""

    target_ongoing_requests: float = Field(default=64.0, gt=0)


class VariantConfig(ReplicaConfig):
    """Replicas of a model: few calls at a time, each a batch."""

    max_replicas: int = Field(default=2, ge=1)
    cpus: float = Field(default=0.25, gt=0)


class Limits(Config):
    """What a request may ask for. Everything beyond is refused before it costs anything.

    Attributes:
        max_texts: texts per request.
        max_characters: characters per text.
        max_body_bytes: size of a request's body; checked while it arrives.
        receive_timeout_s: time a client has to send the body.
        request_timeout_s: time until a request is answered with an error instead.
        max_requests: requests in progress per ingress replica; the next ones get 429.
        retry_after_s: what 429 and 503 tell the client to wait.
    """

    max_texts: int = Field(default=256, ge=1)
    max_characters: int = Field(default=100_000, ge=1)
    max_body_bytes: int = Field(default=2_000_000, ge=100)
    receive_timeout_s: float = Field(default=15.0, gt=0)
    request_timeout_s: float = Field(default=30.0, gt=0)
    max_requests: int = Field(default=512, ge=1)
    retry_after_s: int = Field(default=1, ge=1)


class ServeConfig(Config):
    """The endpoint.

    Attributes:
        host: address to listen on. 127.0.0.1 keeps it on this machine: the endpoint itself asks for no password.
        port: of the endpoint.
        name: of the Ray Serve application.
        ingress: replicas that hold the router, the tokenizer and, when it is cheap, the first variant.
        variant: replicas of every other variant.
        limits: what a request may ask for.
        max_batch_size: texts that a replica computes together.
        batch_wait_ms: how long a variant's replica waits for more work before it computes.
        max_queued_texts: texts waiting for a variant, per ingress replica; beyond, requests get 429.
        first_timeout_ms: after this long without an answer of the first variant the last model is asked.
        inline_latency_ms: a first variant at least this fast is loaded inside the ingress: a hop to another process
            would cost more than its answer.
        hang_s: a model that computes one batch for longer than this has its replica replaced.
        graceful_shutdown_s: time a replica has to finish its requests when it is replaced.
        audit: how live traffic is watched.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=1, le=65535)
    name: str = Field(default="lspm", pattern=r"^[A-Za-z0-9_-]+$")
    ingress: IngressConfig = IngressConfig()
    variant: VariantConfig = VariantConfig()
    limits: Limits = Limits()
    max_batch_size: int = Field(default=64, ge=1)
    batch_wait_ms: float = Field(default=1.0, ge=0)
    max_queued_texts: int = Field(default=512, ge=1)
    first_timeout_ms: float = Field(default=2000.0, gt=0)
    inline_latency_ms: float = Field(default=2.0, ge=0)
    hang_s: float = Field(default=60.0, gt=0)
    graceful_shutdown_s: float = Field(default=10.0, gt=0)
    audit: AuditConfig = AuditConfig()


class OfflineConfig(Config):
    """How `lspm predict --offline` uses the cluster.

    Attributes:
        actors: processes that hold the models; None for one per CPU that can be had.
        threads: CPU threads that each computes with.
    """

    actors: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)


def is_inline(plan: Plan, config: ServeConfig) -> bool:
    """The first stage is loaded inside the ingress."""
    return plan.stages[0].batch_1_latency_ms <= config.inline_latency_ms


def serves_full(plan: Plan, certificate: Certificate) -> bool:
    """The plan's last stage is the model that answers are compared with."""
    return plan.stages[-1].model.digest == certificate.full.digest


def why_unaudited(plan: Plan, certificate: Certificate | None, config: ServeConfig) -> str | None:
    """Why live traffic is not audited; None when it is."""
    if certificate is None:
        return "the full model serves alone: there is no certificate to audit"
    if config.audit.share == 0:
        return "serve.audit.share is 0"
    if not serves_full(plan, certificate) and not config.audit.deploy_full:
        return "the plan does not serve the full model, and serve.audit.deploy_full is false"
    return None
