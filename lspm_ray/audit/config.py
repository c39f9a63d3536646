"""Settings of the live audit."""

from pydantic import Field

from lspm_ray.config import Config


class AuditConfig(Config):
    """How live traffic is watched.

    Attributes:
        share: of all answers that are sampled; a sampled answer that the full model did not give is computed by it too.
            0 turns the audit off.
        delta: chance, over all its life, that the audit revokes a certificate that holds; see `hypotheses`.
        max_queue: sampled answers that wait; while it is full nothing is sampled, and that is counted.
        sync_s: how often the routers compare notes. A revocation is known everywhere after this time.
        keep_texts: store the texts of disagreements beside their hashes.
        recent_answers: answers per router that a label given later can be matched with; no texts are kept for it.
        deploy_full: where the plan does not serve the full model, deploy it for the audit, and for all traffic once the
            certificate is revoked. False: such a plan is not audited.
    """

    share: float = Field(default=0.02, ge=0, le=1)
    delta: float = Field(default=0.01, gt=0, lt=1)
    max_queue: int = Field(default=256, ge=1)
    sync_s: float = Field(default=1.0, gt=0)
    keep_texts: bool = False
    recent_answers: int = Field(default=10_000, ge=1)
    deploy_full: bool = True
