"""Settings of the endpoint."""

import math
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


class EscalationConfig(Config):
    """What the last of several models may be sent, so that a surge of hard texts does not bury it (docs/load.md).

    Attributes:
        rate: texts per second, of all ingress replicas together; None: what one replica was measured to do, times
            `variant.max_replicas`.
        burst: texts that each ingress replica may send at once after a quiet time; None: one second of its rate, and at
            least `limits.max_texts`.
        max_alpha: when more would have to be escalated, answers are given under more lenient certified points, up to
            this alpha; None for all of them, 0 to refuse requests instead.
    """

    rate: float | None = Field(default=None, gt=0)
    burst: int | None = Field(default=None, ge=1)
    max_alpha: float | None = Field(default=None, ge=0, lt=1)


class ServeConfig(Config):
    """The endpoint.

    Attributes:
        host: address to listen on. 127.0.0.1 keeps it on this machine: the endpoint itself asks for no password.
        port: of the endpoint.
        name: of the Ray Serve application.
        ingress: replicas that hold the router, the tokenizer and, when it is cheap, the first variant.
        variant: replicas of every other variant.
        limits: what a request may ask for.
        escalation: what the last of several models may be sent.
        max_batch_size: texts that a replica computes together.
        batch_wait_ms: how long a variant's replica waits for more work before it computes.
        max_queued_texts: texts waiting for a variant, per ingress replica; beyond, requests are answered under a more
            lenient point or get 429.
        first_timeout_ms: after this long without an answer of a variant that is not the last the next one is asked.
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
    escalation: EscalationConfig = EscalationConfig()
    max_batch_size: int = Field(default=64, ge=1)
    batch_wait_ms: float = Field(default=1.0, ge=0)
    max_queued_texts: int = Field(default=512, ge=1)
    first_timeout_ms: float = Field(default=2000.0, gt=0)
    inline_latency_ms: float = Field(default=2.0, ge=0)
    hang_s: float = Field(default=60.0, gt=0)
    graceful_shutdown_s: float = Field(default=10.0, gt=0)
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        burst = self.escalation.burst
        if burst is not None and burst < self.limits.max_texts:
            raise ValueError(
                f"escalation.burst must be at least limits.max_texts ({self.limits.max_texts}): "
                "a request with more texts than that could never be answered"
            )
        return self

    def escalation_budget(self, plan: Plan) -> tuple[float, int] | None:
        """Rate and burst of one ingress replica's `Budget`; None where there is nothing to limit."""
        measured = plan.stages[-1].rows_per_s
        whole = self.escalation.rate or (measured and measured * self.variant.max_replicas)
        if not whole or len(plan.stages) == 1:
            return None
        rate = whole / self.ingress.max_replicas
        return rate, self.escalation.burst or max(self.limits.max_texts, math.ceil(rate))


class OfflineConfig(Config):
    """What `lspm predict` asks for, and how `--offline` uses the cluster.

    Attributes:
        actors: processes that hold the models; None for one per CPU that can be had.
        threads: CPU threads that each computes with.
        max_risk: largest risk that the answers may have, also those of the endpoint; None takes the plan's default.
        full: let the full model answer everything, also at the endpoint.
    """

    actors: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)
    max_risk: float | None = Field(default=None, ge=0, le=1)
    full: bool = False


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
