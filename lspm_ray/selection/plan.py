"""The two documents that selection writes and serving obeys: the certificate and the plan."""

from typing import Any, Literal

from pydantic import Field, model_validator

from lspm_ray.config import Config, digest_of

CERTIFICATE_FILE = "certificate.json"
PLAN_FILE = "plan.json"


class ModelRef(Config):
    """A variant's artifact, pinned by content."""

    name: str
    uri: str
    digest: str


class DisagreementBound(Config):
    """How often answers may differ from full's at the served threshold: what the live audit can test without labels.

    With probability 1 - `delta` over the calibration rows, P(accepted and not full's answer) <= `level`. The threshold
    was chosen on the same rows, among `thresholds`: the bound is that of Clopper and Pearson at `delta` / `thresholds`,
    so it holds at all of them together (Bonferroni).
    """

    losses: int
    rows: int
    thresholds: int
    delta: float
    level: float


class Certificate(Config):
    """What is promised about the answers of a plan, on which evidence.

    The promise: over rows drawn like the calibration rows, P(the answer is a loss) <= alpha, and the procedure that
    issued this certificate breaks that promise with probability at most delta.
    """

    alpha: float
    delta: float
    risk: Literal["regret", "disagreement"]
    first: ModelRef
    """The variant that answers first."""
    last: ModelRef | None
    """The model that answers what is escalated: full, or a cheaper one whose own losses are counted too. None when the
    first variant serves alone."""
    full: ModelRef
    """The model that answers are compared with."""
    validator: dict[str, Any]
    temperature: float
    """Divides the first variant's logits before the softmax that the validator sees; fitted on selection rows."""
    threshold: float | None
    """Accept where score >= threshold; None accepts every answer (the variant serves alone)."""
    calibration_rows: int
    losses: int
    """Calibration rows whose answer, accepted or escalated, is a loss."""
    p_value: float
    upper_bound: float
    """Exact (Clopper-Pearson) upper bound of the risk at confidence 1 - delta, at the threshold."""
    escalation_rate: float
    outputs: dict[str, ModelRef]
    """Per-example outputs of these models by name: every number here can be recomputed from them."""
    data: ModelRef
    """The prepared corpus, whose calibration split they are about."""
    hardware: dict[str, Any]
    """Where outputs were computed. The risk claim carries over to other hardware only as far as outputs agree."""
    assumption: str = "calibration rows and live requests are drawn independently from one distribution"
    how_to_check: str = ""
    disagreement: DisagreementBound | None = None
    """Only of `regret`: a certificate of `disagreement` bounds it by alpha."""

    @property
    def id(self) -> str:
        """Short content digest; every answer carries it."""
        return digest_of(self.model_dump(mode="json"))[:16]


class PlanStage(Config):
    """One variant of the plan.

    Attributes:
        model: its artifact.
        temperature: divides its logits before the softmax.
        threshold: accept where the validator's score >= threshold; None for the last stage: it always answers.
        batch_1_latency_ms: measured median; serving keeps a cheap first stage inside the ingress replica.
        cost: seconds of this machine per example at the best batch size, relative to full.
    """

    model: ModelRef
    temperature: float = Field(gt=0)
    threshold: float | None
    batch_1_latency_ms: float = Field(ge=0)
    cost: float = Field(ge=0)


class Plan(Config):
    """What to serve.

    `stages[0]` answers first. With two stages, an answer scored below `stages[0].threshold` is escalated to
    `stages[1]`. With one stage that variant serves alone.
    """

    labels: list[str] = Field(min_length=2)
    task: dict[str, Any]
    max_characters: int | None = None
    """Longer texts are cut, as they were in the corpus; None for no limit."""
    validator: dict[str, Any]
    stages: list[PlanStage] = Field(min_length=1, max_length=2)
    certificate_id: str | None
    """None when the full model serves alone: there is nothing to certify."""
    expected: dict[str, float]
    """escalation_rate, cost (relative to full), accuracy, full_accuracy: measured, for the record."""
    reasons: dict[str, str]
    """Why each variant that is not in the plan was left out."""

    @model_validator(mode="after")
    def _last_answers(self) -> "Plan":
        if self.stages[-1].threshold is not None:
            raise ValueError("the last stage must have no threshold: it always answers")
        if any(stage.threshold is None for stage in self.stages[:-1]):
            raise ValueError("every stage but the last needs a threshold")
        return self
