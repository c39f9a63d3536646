"""What the report says, as data: `report.json` is exactly this, and the page shows nothing that is not in it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lspm_ray.artifact import Artifact, name_of
from lspm_ray.config import Config
from lspm_ray.corpus.config import SPLITS
from lspm_ray.evaluation.forgetting import Forgetting
from lspm_ray.evaluation.metrics import Bin, Comparison, Estimate
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.selection.break_even import BreakEven
from lspm_ray.selection.gears import GearTable
from lspm_ray.selection.options import Option
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.selection.risk import Certified
from lspm_ray.training.gain import Gain

Histories = list[dict[str, float]]
Confusion = list[list[int]]
"""Rows: true class. Columns: predicted class."""


class Lengths(Config):
    """Token counts of the rows of one split; bin i counts lengths in [i * bin_width, (i + 1) * bin_width)."""

    bin_width: int
    counts: list[int]
    mean: float
    p50: int
    p95: int
    p99: int
    max: int


class DataSummary(Config):
    """What `prepare` found, as its `stats.json` has it.

    Attributes:
        rows_read: rows of the sources, quarantined ones included.
        rows_kept: rows of all splits together.
        dropped: reason -> rows that were read and not used.
        quarantined: reason -> rows that could not be read.
        notes: what was found -> rows; these rows were used.
        warnings: sentences for people.
        class_counts: split -> label -> rows.
        majority_share: split -> accuracy of always answering its most frequent class.
        token_length: split -> lengths after truncation.
        max_length: tokens kept of each text; None if the task does not say.
    """

    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    quarantined: dict[str, int] = Field(default_factory=dict)
    notes: dict[str, int] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    labels: list[str]
    class_counts: dict[str, dict[str, int]]
    majority_share: dict[str, float]
    token_length: dict[str, Lengths]
    max_length: int | None = None

    @property
    def splits(self) -> list[str]:
        """The splits there are, in the order of the data's way."""
        known = [split for split in SPLITS if split in self.class_counts]
        return known + [split for split in self.class_counts if split not in known]

    def rows(self, split: str) -> int:
        """Rows of one split."""
        return sum(self.class_counts[split].values())

    def label_rows(self, label: str) -> int:
        """Rows of one label over all splits."""
        return sum(counts.get(label, 0) for counts in self.class_counts.values())


class Training(Config):
    """How the full model was fine-tuned.

    Attributes:
        history: one entry per epoch: epoch, train_loss, learning_rate, seconds and the validation metrics.
        metric: the validation metric that decided which epoch was kept.
        best_epoch: that epoch.
        settings: the other settings of the run.
    """

    history: Histories = Field(min_length=1)
    metric: str
    best_epoch: int
    settings: dict[str, Any]


class Reliability(Config):
    """Confidence against accuracy of one model on test, before and after its temperature.

    Attributes:
        temperature: fitted on the selection split; above 1 the model was overconfident.
    """

    model: str
    temperature: float
    before: list[Bin]
    after: list[Bin]


class Alternative(Config):
    """One thing that could be served, for the comparison at the top of the page.

    Attributes:
        kind: what it is; `plan` is what the plan serves.
        accuracy: on test.
        cost: per example, relative to the full model alone.
        certified: whether its answers are covered by the certificate.
    """

    kind: Literal["plan", "full", "single", "linear", "majority"]
    name: str
    accuracy: Estimate
    cost: float
    certified: bool


class Promise(Config):
    """What the user asked for; `first` is the variant that the configuration insists on."""

    alpha: float
    delta: float
    risk: Literal["regret", "disagreement"]
    min_saving: float
    first: str | None = None


class Source(Config):
    """One artifact the report rests on; date and version are None where only its digest is known here."""

    role: str
    artifact: str
    digest: str
    created_utc: str | None = None
    code_version: str | None = None

    @classmethod
    def of(cls, role: str, artifact: Artifact) -> Source:
        """What an artifact's manifest says."""
        manifest = artifact.manifest
        return cls(
            role=role,
            artifact=name_of(artifact.uri),
            digest=artifact.digest,
            created_utc=manifest.created_utc,
            code_version=manifest.code_version,
        )


class Flips(Config):
    """Rows of the selection split that a variant flips.

    Attributes:
        rows: of the split.
        lost: those that full answers right and the variant wrong.
        gained: the other way round.
    """

    model: str
    rows: int
    lost: int
    gained: int


class FlippedRow(Config):
    """A row of the selection split that compression flips; see `lspm_ray.evaluation.forgetting.Exemplar`.

    Attributes:
        id: of the row in the corpus.
        label: its true class.
        full: what full answers.
        answer: what most of the variants that flip it answer.
        direction: `lost`: full is right; `gained`: full is wrong.
        models: the variants that flip it.
        text: how it begins; None unless `report.texts` asks for it.
    """

    id: str
    label: str
    full: str
    answer: str
    direction: Literal["lost", "gained"]
    models: list[str]
    text: str | None = None


class Findings(Config):
    """Everything in the report.

    Attributes:
        date: when the youngest artifact under the report was made: the same inputs give the same report.
        certificate_id: None without a certificate.
        curve: risk against threshold on the calibration rows; None if no variant got as far as certification.
        variants: the profile, without the confusion matrices and per-class numbers of the selection split.
        confusion: model -> confusion matrix on test, for the models of the plan and the full model.
        encode_ms: time to tokenise one example.
        gain: what pretraining gave; None where the model was not pretrained here.
        forgetting: what classes lose; None where nobody looked.
        flips: how many rows of the selection split each variant flips.
        flipped: those that most variants flip.
        break_even: when each variant pays.
        gears: what to serve at which load; None where that was not planned.
        rounds: of the speed measurement.
        hardware: where speeds were measured.
    """

    date: str
    code_version: str
    task: dict[str, Any]
    promise: Promise
    plan: Plan
    alternatives: list[Alternative]
    certificate: Certificate | None
    certificate_id: str | None
    curve: Certified | None
    options: dict[str, Option]
    variants: list[VariantProfile]
    linear: Comparison
    baseline_verdict: str
    encode_ms: float
    rounds: int
    hardware: dict[str, Any]
    reliability: list[Reliability]
    confusion: dict[str, Confusion]
    training: Training
    gain: Gain | None = None
    forgetting: Forgetting | None = None
    flips: list[Flips] = Field(default_factory=list)
    flipped: list[FlippedRow] = Field(default_factory=list)
    break_even: list[BreakEven] = Field(default_factory=list)
    gears: GearTable | None = None
    data: DataSummary
    lineage: list[Source]

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the class indices."""
        return self.plan.labels

    def variant(self, name: str) -> VariantProfile:
        """The variant called `name`."""
        return next(v for v in self.variants if v.name == name)

    @property
    def served(self) -> list[VariantProfile]:
        """The variants of the plan, in the order in which they answer."""
        return [self.variant(stage.model.name) for stage in self.plan.stages]

    @property
    def front(self) -> list[VariantProfile]:
        """Servable variants that no other dominates, cheapest first."""
        return sorted((v for v in self.variants if v.servable and v.dominated_by is None), key=lambda v: v.cost)
