"""The two documents that selection writes and serving obeys: the certificate and the plan."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from lspm_ray.config import Config, digest_of
from lspm_ray.evaluation.calibration import Calibrator
from lspm_ray.selection.conformal import LabelSets

CERTIFICATE_FILE = "certificate.json"
PLAN_FILE = "plan.json"


class ModelRef(Config):
    """A variant's artifact, pinned by content."""

    name: str
    uri: str
    digest: str


class ClassBound(Config):
    """What is promised about the rows of one true class: P(loss | class) <= alpha."""

    label: str
    alpha: float = Field(gt=0, lt=1)
    rows: int
    """Calibration rows of this class."""
    losses: int
    p_value: float
    upper_bound: float
    """Exact upper bound at confidence 1 - the point's level."""


class OperatingPoint(Config):
    """One certified setting of the cascade: P(the answer is a loss) <= alpha."""

    alpha: float = Field(gt=0, lt=1)
    level: float = Field(gt=0, lt=1)
    """Chance of error that the test which certified it may spend; below the certificate's delta where several points
    are certified together."""
    threshold: float | None
    """Of the first stage: accept where score >= threshold; None accepts every answer."""
    middle_thresholds: list[float] = Field(default_factory=list)
    """Of the stages between the first and the last, in their order."""
    losses: int
    """Calibration rows whose answer, whoever gives it, is a loss."""
    p_value: float
    upper_bound: float
    """Exact (Clopper-Pearson) upper bound of the risk at confidence 1 - level, at these thresholds."""
    escalation_rate: float
    """Share of the calibration rows that the first stage passes on."""
    middle_escalation_rates: list[float] = Field(default_factory=list)
    """Share of all calibration rows that each stage in between passes on."""
    classes: list[ClassBound] = Field(default_factory=list)
    """What holds per true class, where that is promised."""
    default: bool = False
    """Whether it is the point of `select.alpha`, which is served unless something asks for another."""

    @property
    def thresholds(self) -> list[float | None]:
        """Of every stage but the last, in their order."""
        return [self.threshold, *self.middle_thresholds]

    @property
    def shares(self) -> list[float]:
        """Of all calibration rows, those that each stage but the last passes on; empty where the first serves alone."""
        return [] if self.threshold is None else [self.escalation_rate, *self.middle_escalation_rates]


def check_points(points: Sequence[OperatingPoint], middle: int) -> None:
    """Points go from strict to lenient, one is the default, and each is about all stages.

    Args:
        points: of a plan or certificate.
        middle: stages between the first and the last.

    Raises:
        ValueError: they do not.
    """
    for point in points:
        numbers = {len(point.middle_thresholds), len(point.middle_escalation_rates)}
        if numbers != {0 if point.threshold is None else middle}:
            raise ValueError("points must have a threshold and an escalation rate for every stage but the last")
    if sum(point.default for point in points) != 1:
        raise ValueError("one of the points must be the default")
    if any(a.alpha >= b.alpha for a, b in pairwise(points)):
        raise ValueError("points must go from strict to lenient")


class MiddleStage(Config):
    """A stage between the first and the last; how its answers are judged was fitted as for the first."""

    model: ModelRef
    temperature: float
    calibrator: Calibrator | None = None


class DisagreementBound(Config):
    """How often answers may differ from full's at the served threshold: what the live audit can test without labels.

    With probability 1 - `delta` over the calibration rows, P(accepted and not full's answer) <= `level`. The threshold
    was chosen on the same rows, among `thresholds`: the bound is that of Clopper and Pearson at `delta` / `thresholds`,
    so it holds at all of them together (Bonferroni).
    """

    losses: int = Field(ge=0)
    rows: int = Field(ge=1)
    thresholds: int = Field(ge=1)
    delta: float = Field(gt=0, lt=1)
    level: float = Field(gt=0, le=1)


class Certificate(Config):
    """What is promised about the answers of a plan, on which evidence.

    The promise: over rows drawn like the calibration rows, P(the answer is a loss) <= alpha at every operating point,
    and the procedure that issued this certificate breaks any of these promises with probability at most delta. So it
    does not matter which of the points is used when.
    """

    delta: float = Field(gt=0, lt=1)
    risk: Literal["regret", "disagreement"]
    points: list[OperatingPoint] = Field(min_length=1)
    """From strict to lenient."""
    multiplicity: Literal["none", "nested", "bonferroni"] = "none"
    """How delta is shared among the points: see `lspm_ray.selection.points`."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Risk level that was asked for -> why there is no point for it."""
    first: ModelRef
    """The variant that answers first."""
    middle: list[MiddleStage] = Field(default_factory=list)
    """Stages that are asked before the last; none in a cascade of two. Where the first serves alone after all, those
    that would have been asked: the losses at stricter steps of the path include theirs."""
    tie: float = 1.0
    """Exponent that ties the thresholds of middle stages to the first's (`lspm_ray.selection.points.tied_path`), chosen
    on selection rows; without middle stages it has no effect."""
    last: ModelRef | None
    """The model that answers what is escalated: full, or a cheaper one whose own losses are counted too. None when the
    first variant serves alone."""
    full: ModelRef
    """The model that answers are compared with."""
    validator: dict[str, Any]
    temperature: float
    """Divides the first variant's logits before the softmax that the validator sees; fitted on selection rows."""
    calibrator: Calibrator | None = None
    """What follows the temperature, fitted on selection rows too; None for nothing."""
    checks: list[dict[str, Any]] = Field(default_factory=list)
    """What refuses answers whatever their score; refused calibration rows were counted as escalated."""
    scorer_digest: str | None = None
    """sha256 of `scorer.safetensors`, what validator and checks have learnt about each stage from selection and
    training rows; None where they learn nothing."""
    grid_size: int = 200
    """Thresholds that were tried: quantiles of the scores of selection rows."""
    calibration_rows: int
    outputs: dict[str, ModelRef]
    """Per-example outputs of these models by name: every number here can be recomputed from them."""
    data: ModelRef
    """The prepared corpus, whose calibration split they are about."""
    fresh: ModelRef | None = None
    """Labelled traffic that took the place of the calibration split, where the plan was certified again."""
    fresh_outputs: dict[str, ModelRef] = Field(default_factory=dict)
    """Outputs of the models on it."""
    profile: ModelRef | None = None
    """The measured table that costs and latencies of the plan are from."""
    hardware: dict[str, Any]
    """Where outputs were computed. The risk claim carries over to other hardware only as far as outputs agree."""
    assumption: str = "calibration rows and live requests are drawn independently from one distribution"
    how_to_check: str = "`lspm verify` with the directory of this file recomputes every number"
    disagreement: DisagreementBound | None = None
    """Of the default point, and only of `regret`: a certificate of `disagreement` bounds it by alpha."""

    @model_validator(mode="after")
    def _ordered(self) -> "Certificate":
        check_points(self.points, len(self.middle) if self.last is not None else 0)
        for alpha in self.left_out:
            float(alpha)
        return self

    @property
    def id(self) -> str:
        """Short content digest; every answer carries it."""
        return digest_of(self.model_dump(mode="json"))[:16]

    @property
    def default(self) -> OperatingPoint:
        """The point of `select.alpha`."""
        return next(point for point in self.points if point.default)

    @property
    def alpha(self) -> float:
        """Of the default point, like the properties below."""
        return self.default.alpha

    @property
    def threshold(self) -> float | None:
        """Accept where score >= threshold; None accepts every answer (the variant serves alone)."""
        return self.default.threshold

    @property
    def losses(self) -> int:
        """Calibration rows whose answer is a loss."""
        return self.default.losses

    @property
    def p_value(self) -> float:
        """Of the exact binomial test."""
        return self.default.p_value

    @property
    def upper_bound(self) -> float:
        """Exact upper bound of the risk."""
        return self.default.upper_bound

    @property
    def escalation_rate(self) -> float:
        """Share of the calibration rows that the first stage passes on."""
        return self.default.escalation_rate


class PlanStage(Config):
    """One variant of the plan.

    Attributes:
        model: its artifact.
        temperature: divides its logits before the softmax.
        calibrator: what follows; None for nothing.
        threshold: accept where the validator's score >= threshold; None for the last stage: it always answers.
        batch_1_latency_ms: measured median; serving keeps a cheap first stage inside the ingress replica.
        cost: seconds of this machine per example at the best batch size, relative to full.
        rows_per_s: measured throughput of one replica at its best batch size; None where it was not measured.
        label_sets: gives each of its answers a set of labels with a stated coverage; None where none was asked for.
    """

    model: ModelRef
    temperature: float = Field(gt=0)
    calibrator: Calibrator | None = None
    threshold: float | None
    batch_1_latency_ms: float = Field(ge=0)
    cost: float = Field(ge=0)
    rows_per_s: float | None = Field(None, gt=0)
    label_sets: LabelSets | None = None


class Plan(Config):
    """What to serve.

    `stages[0]` answers first. An answer scored below its stage's threshold is escalated to the next stage. With one
    stage that variant serves alone. The thresholds of `stages` are those of the default point.
    """

    labels: list[str] = Field(min_length=2)
    task: dict[str, Any]
    max_characters: int | None = None
    """Longer texts are cut, as they were in the corpus; None for no limit."""
    validator: dict[str, Any]
    checks: list[dict[str, Any]] = Field(default_factory=list)
    """What refuses answers of every stage but the last whatever their score."""
    stages: list[PlanStage] = Field(min_length=1, max_length=3)
    points: list[OperatingPoint] = Field(default_factory=list)
    """The certificate's, from strict to lenient; empty when the full model serves alone."""
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
        if self.points:
            check_points(self.points, max(0, len(self.stages) - 2))
        return self

    @property
    def default(self) -> OperatingPoint | None:
        """The point whose thresholds the stages hold; None when there is nothing to certify."""
        return next((point for point in self.points if point.default), None)
