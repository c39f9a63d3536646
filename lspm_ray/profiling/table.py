"""What profiling finds out about each variant."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import Field

from lspm_ray.compression.effect import StepEffect
from lspm_ray.compression.recipe import FULL
from lspm_ray.compression.sensitivity import Sensitivity
from lspm_ray.config import Config
from lspm_ray.evaluation.metrics import Comparison, Estimate, Metrics


class OneThread(Config):
    """Measured like `Speed`, with a single CPU thread: what a variant costs where cores are shared, not what it is
    served with.

    Attributes:
        p50_ms: median time of one example alone.
        rows_per_s: batch size -> examples per second.
    """

    p50_ms: float
    rows_per_s: dict[int, float]


class Company(Config):
    """How far answers depend on the rows that they are computed with: each row alone, against full batches.

    Attributes:
        rows: that were computed both ways.
        changed: rows that got another answer.
        largest: difference of any probability.
    """

    rows: int
    changed: int
    largest: float

    @property
    def share(self) -> float:
        """Of the rows, those that got another answer."""
        return self.changed / self.rows


class Speed(Config):
    """Measured in a process of its own, interleaved with the other variants; medians over the rounds.

    Attributes:
        p50_ms: median time of one example alone (batch size 1), from token ids to logits.
        p99_ms: 99th percentile of the same, over all rounds.
        rows_per_s: batch size -> examples per second.
        load_s: from files to ready, imports included.
        peak_memory_mb: of the process, with everything loaded and the largest batch computed.
        size_mb: of the files the runtime needs.
        threads: CPU threads it was measured with, those of a served replica.
        one_thread: the same in one round with one thread; None where `threads` is 1 or a GPU computes.
        company: whether answers depend on the batch; None where every row is computed by itself.
    """

    p50_ms: float
    p99_ms: float
    rows_per_s: dict[int, float]
    load_s: float
    peak_memory_mb: float
    size_mb: float
    threads: int
    one_thread: OneThread | None = None
    company: Company | None = None

    @property
    def best_rows_per_s(self) -> float:
        """Throughput at the batch size that suits it best."""
        return max(self.rows_per_s.values())

    def with_one_thread(self, single: Speed) -> Speed:
        """This one, beside what was measured with one thread."""
        return self.model_copy(update={"one_thread": OneThread(p50_ms=single.p50_ms, rows_per_s=single.rows_per_s)})


class VariantProfile(Config):
    """One row of the table.

    Attributes:
        uri: artifact; empty for a baseline, which is never served.
        digest: the artifact's content digest.
        recipe: how it was made.
        selection: quality on the selection split, which choices are made on.
        test: quality on the test split, which is only reported.
        recall_change: label -> recall on test minus that of full; None where the label does not occur.
        agreement: share of test rows answered as full answers.
        against_full: accuracy on test compared with full, paired; None for full itself.
        cost: seconds per example relative to full, tokenising included, each at its best batch size.
        dominated_by: a variant that is at least as good on selection and no more expensive.
        steps: what each step of its recipe did, the full model first; empty for full and baselines.
        structure: what compression left of the full model's parts, by part; empty where nothing is known.
        sensitivity: what quantising each part does to the answers; None where nothing had to stay in float.
    """

    name: str
    uri: str
    digest: str
    runtime: str
    precision: str
    recipe: list[dict[str, Any]]
    selection: Metrics
    test: Metrics
    recall_change: dict[str, float | None]
    agreement: float
    against_full: Comparison | None
    speed: Speed | None
    cost: float
    dominated_by: str | None = None
    steps: list[StepEffect] = Field(default_factory=list)
    structure: dict[str, Any] = Field(default_factory=dict)
    sensitivity: Sensitivity | None = None

    @property
    def servable(self) -> bool:
        """Baselines are measured, never deployed."""
        return bool(self.uri)


class ProfileTable(Config):
    """Everything `profile` measured.

    Attributes:
        encode_ms: time to tokenise one example.
        baseline_verdict: whether the full model beats the linear baseline on test, in one sentence.
        hardware: where speeds were measured; they hold nowhere else.
    """

    variants: list[VariantProfile]
    labels: list[str]
    encode_ms: float
    linear: Comparison
    baseline_verdict: str
    rounds: int
    hardware: dict[str, Any]

    def __getitem__(self, name: str) -> VariantProfile:
        """The variant called `name`."""
        return next(v for v in self.variants if v.name == name)

    def seconds(self, name: str) -> dict[int, float]:
        """Batch size -> seconds per example, tokenising included; empty for what was not measured."""
        speed = self[name].speed
        encode_s = self.encode_ms / 1e3
        return {size: 1 / rate + encode_s for size, rate in speed.rows_per_s.items()} if speed else {}

    def relative_costs(self, name: str) -> dict[int, float]:
        """Batch size -> seconds per example relative to full at the same batch size."""
        full = self.seconds(FULL)
        return {size: value / full[size] for size, value in self.seconds(name).items() if size in full}

    def to_arrow(self) -> pa.Table:
        """Flat table, one row per variant; estimates as value, low and high."""
        return pa.Table.from_pylist([self._flat(v) for v in self.variants])

    def _flat(self, v: VariantProfile) -> dict[str, Any]:
        return _flat(v) | {f"cost_at_{size}": cost for size, cost in self.relative_costs(v.name).items()}


def _flat(v: VariantProfile) -> dict[str, Any]:
    row: dict[str, Any] = {"name": v.name, "runtime": v.runtime, "precision": v.precision, "digest": v.digest}
    for split in ("selection", "test"):
        metrics: Metrics = getattr(v, split)
        for field in Metrics.model_fields:
            value = getattr(metrics, field)
            if isinstance(value, Estimate):
                row |= {f"{split}_{field}": value.value, f"{split}_{field}_low": value.low}
                row[f"{split}_{field}_high"] = value.high
    speed = v.speed.model_dump() if v.speed else dict.fromkeys(Speed.model_fields)
    throughput, single = speed.pop("rows_per_s") or {}, speed.pop("one_thread")
    speed.pop("company")
    row |= speed | {f"rows_per_s_{size}": value for size, value in throughput.items()}
    if v.speed is not None:
        row["changed_by_company"] = 0.0 if v.speed.company is None else v.speed.company.share
    if single is not None:
        row["one_thread_p50_ms"] = single["p50_ms"]
        row |= {f"one_thread_rows_per_s_{size}": value for size, value in single["rows_per_s"].items()}
    return row | {"cost": v.cost, "agreement": v.agreement, "dominated_by": v.dominated_by}
