"""Artifacts as the other stages would write them, with plausible numbers: real metrics of synthetic logits.

`from tests.report.samples import Run`; `Run(store).report()` builds the page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, hardware
from lspm_ray.compression.effect import StepEffect
from lspm_ray.compression.recipe import FULL
from lspm_ray.compression.sensitivity import PartSensitivity, Sensitivity
from lspm_ray.corpus.config import SPLITS
from lspm_ray.evaluation.calibration import fit_temperature, softmax
from lspm_ray.evaluation.forgetting import ClassChange, Forgetting, class_changes
from lspm_ray.evaluation.metrics import compare, evaluate
from lspm_ray.evaluation.outputs import EVALUATION_SPLITS, logits_array
from lspm_ray.profiling.baselines import LINEAR, MAJORITY, majority
from lspm_ray.profiling.pareto import Point, dominated_by
from lspm_ray.profiling.profile import baseline_verdict
from lspm_ray.profiling.table import ProfileTable, Speed, VariantProfile
from lspm_ray.report.build import build_report, gather, training
from lspm_ray.report.config import ReportConfig
from lspm_ray.report.findings import Findings, Training
from lspm_ray.selection.break_even import break_even
from lspm_ray.selection.gears import GearsConfig, make_gears
from lspm_ray.selection.options import Option
from lspm_ray.selection.plan import Certificate, ModelRef, OperatingPoint, Plan, PlanStage
from lspm_ray.selection.risk import ACCEPT_ALL, Certified, RiskKind, fixed_sequence, losses, threshold_grid

# Name: noise of the logits, cost, ms at batch 1, MB of memory, MB on disk, recipe.
_VARIANTS: dict[str, tuple[float, float, float, float, float, list[dict[str, Any]]]] = {
    FULL: (0.55, 1.0, 9.8, 612, 90.9, []),
    "int8": (0.57, 0.46, 4.1, 388, 23.4, [{"method": "quantize_int8", "max_divergence": 0.002}]),
    "pruned": (0.68, 0.61, 7.2, 560, 61.2, [{"method": "prune", "heads": 0.5, "neurons": 0.5}]),
    "pruned-int8": (0.69, 0.52, 5.0, 360, 17.1, [{"method": "prune", "heads": 0.5}, {"method": "quantize_int8"}]),
    "layers-2": (0.66, 0.35, 3.6, 520, 58.0, [{"method": "distill_layers", "layers": 2}]),
    "layers-2-int8": (0.67, 0.18, 1.6, 330, 15.0, [{"method": "distill_layers", "layers": 2}, {"method": "onnx"}]),
    "bag": (0.85, 0.021, 0.21, 301, 16.8, [{"method": "distill_bag", "buckets": 65536, "embedding_size": 64}]),
}
HOSTILE = ["<script>alert(1)</script>" + "x" * 300, "日本語 $a_b$ 😀", "\u202eevil\x07", 'a"b\' onload="x']
"""Label names that break careless pages."""
TEXT = "<script>alert('a text')</script> \u202eevil\x07 " + "so it goes on " * 30
"""How every text of the selection split begins."""
_SIZES = (1, 8, 32)
_SEED = 7


@dataclass
class Run:
    """The artifacts of a run.

    Attributes:
        store: where they go.
        labels: class names.
        rows: of each evaluation split.
        variants: those that exist beside full and the baselines.
        serve: `cascade`, `alone` (the first variant without escalation), `full`, or `failed` (full, after a curve on
            which nothing was certified).
        absent: classes that do not occur in the evaluation splits.
        epochs: of the training.
        old: made by a version that knew nothing of forgetting, break-even, gears and the steps of recipes.
        show: what is shown of single rows.
        noise: multiplies the noise of every model; the linear baseline is noisier by `linear_noise`.
    """

    store: ArtifactStore
    labels: Sequence[str] = ("no", "yes")
    rows: int = 1200
    variants: Sequence[str] = tuple(_VARIANTS)[1:]
    serve: str = "cascade"
    absent: Sequence[int] = ()
    epochs: int = 3
    alpha: float = 0.01
    risk: RiskKind = "regret"
    linear_noise: float = 1.1
    first: str = "bag"
    old: bool = False
    warnings: list[str] = field(default_factory=list)
    show: ReportConfig = field(default_factory=ReportConfig)

    def report(self) -> Artifact:
        return build_report(
            self.data, self.full, self.profile, self.outputs, self.select, self.store, self.show, gears=self.gears
        )

    def findings(self) -> Findings:
        return gather(self.data, self.full, self.profile, self.outputs, self.select, self.show, gears=self.gears)

    def findings_of_training(self) -> Training:
        return training(self.full)

    @property
    def models(self) -> list[str]:
        return [FULL, *self.variants]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        shares = np.array([0.18, 0.82]) if len(self.labels) == 2 else 1 / np.arange(2, len(self.labels) + 2) ** 0.8
        shares[list(self.absent)] = 0
        result: NDArray[np.float64] = shares / shares.sum()
        return result

    @cached_property
    def truth(self) -> dict[str, NDArray[np.int64]]:
        rng = np.random.default_rng(_SEED)
        return {split: rng.choice(len(self.labels), self.rows, p=self.shares) for split in EVALUATION_SPLITS}

    @cached_property
    def logits(self) -> dict[str, dict[str, NDArray[np.float32]]]:
        noises = {name: _VARIANTS[name][0] for name in self.models} | {LINEAR: self.linear_noise}
        rng = np.random.default_rng(_SEED + 1)
        result: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in noises}
        for split, labels in self.truth.items():
            right = np.eye(len(self.labels))[labels]
            shared = rng.normal(size=right.shape)
            spread = 1 + 0.25 * np.log(len(self.labels) / 2)
            for name, noise in noises.items():
                own = rng.normal(size=right.shape)
                evidence = right * 1.5 * spread + 0.55 * shared + noise * 0.6 * own + np.log(self.shares + 1e-4) * 0.3
                result[name][split] = (2.6 * evidence).astype(np.float32)
            result.setdefault(MAJORITY, {})[split] = majority([int(1000 * s) for s in self.shares], self.rows)
        return result

    @cached_property
    def data(self) -> Artifact:
        train = np.random.default_rng(3).multinomial(6 * self.rows, self.shares)
        counts = {split: np.bincount(y, minlength=len(self.labels)) for split, y in self.truth.items()}
        counts |= {"train": train, "validation": np.random.default_rng(4).multinomial(self.rows, self.shares)}
        kept = int(sum(c.sum() for c in counts.values()))
        lengths = np.random.default_rng(5).gamma(5, 16, size=kept).astype(int).clip(4, 128)
        stats = {
            "rows_read": kept + 845 + 23 + 120 + 3,
            "rows_kept": kept,
            "dropped": {"duplicate": 23, "near duplicate": 120, "no text": 845},
            "quarantined": {"invalid UTF-8": 3},
            "notes": {"cut to max_characters": 12, "texts with different labels": 4},
            "warnings": self.warnings,
            "labels": list(self.labels),
            "class_counts": {s: dict(zip(self.labels, counts[s].tolist(), strict=True)) for s in SPLITS},
            "majority_share": {s: float(counts[s].max() / counts[s].sum()) for s in SPLITS},
            "token_length": {s: _histogram(lengths[i::5]) for i, s in enumerate(SPLITS)},
            "character_length": {},
        }
        files = {"stats.json": stats, "labels.json": list(self.labels), "selection/part-00000.parquet": self._texts()}
        return _write(self.store, "prepare", {"task": self.task, "rows": self.rows, "labels": self.labels}, files)

    def _texts(self) -> pa.Table:
        texts = [f"{TEXT} {i}" for i in range(self.rows)]
        return pa.table({"id": row_ids("selection", self.rows), "text": texts})

    @property
    def task(self) -> dict[str, Any]:
        return {"task": "text_classification", "max_length": 128, "class_weight": "sqrt", "label_smoothing": 0.0}

    @cached_property
    def full(self) -> Artifact:
        history = [
            {
                "epoch": e,
                "train_loss": 0.42 / e**0.5,
                "loss": 0.31 - 0.02 * e + 0.008 * e**2,
                "accuracy": 0.875 + 0.02 * (1 - 0.5**e),
                "balanced_accuracy": 0.79 + 0.05 * (1 - 0.5**e) - 0.004 * max(0, e - 3),
                "macro_f1": 0.80 + 0.04 * (1 - 0.6**e),
                "learning_rate": 5e-5 / e,
            }
            for e in range(1, self.epochs + 1)
        ]
        best = max(history, key=lambda h: h["balanced_accuracy"])
        config = {"train": {"epochs": self.epochs, "metric": "balanced_accuracy", "batch_size": 32, "seed": 0}}
        parents = {"data": self.data.digest}
        summary = {"best": best, "seconds": [131.7 + h["epoch"] for h in history]}
        return _write(self.store, "finetune", config, {"history.json": history}, parents, summary)

    @cached_property
    def table(self) -> ProfileTable:
        rows = [self._profile(name) for name in [*self.models, LINEAR, MAJORITY]]
        points = [Point(name=r.name, quality=r.selection.accuracy.value, cost=r.cost) for r in rows if r.servable]
        losers = dominated_by(points)
        linear = compare(self._right(FULL), self._right(LINEAR))
        return ProfileTable(
            variants=[r.model_copy(update={"dominated_by": losers.get(r.name)}) for r in rows],
            labels=list(self.labels),
            encode_ms=0.11,
            linear=linear,
            baseline_verdict=baseline_verdict(linear, {row.name: row for row in rows}),
            rounds=3,
            hardware=hardware(),
        )

    @cached_property
    def profile(self) -> Artifact:
        return _write(self.store, "profile", {}, {"profile.json": self.table.model_dump(mode="json")}, self._parents())

    @cached_property
    def outputs(self) -> dict[str, Artifact]:
        return {name: self._outputs(name) for name in self.models}

    @cached_property
    def select(self) -> Artifact:
        certified = self._certified() if self.serve != "full" else None
        certificate = self._certificate(certified) if certified and self.serve != "failed" else None
        plan = self._plan(certificate)
        options = [
            Option(first=n, last=FULL, escalation_rate=0.1, cost=self.table[n].cost + 0.12) for n in self.variants
        ]
        files = {"plan.json": plan.model_dump(mode="json")}
        files["options.json"] = [option.model_dump(mode="json") for option in options]
        if not self.old:
            files |= self._of_compression(options, plan)
        if certified:
            files["curve.json"] = certified.model_dump(mode="json")
        if certificate:
            files["certificate.json"] = certificate.model_dump(mode="json")
        asked = {"alpha": self.alpha, "delta": 0.05, "risk": self.risk, "min_saving": 0.1}
        return _write(self.store, "select", {"select": asked, "serve": self.serve}, files, self._parents())

    @cached_property
    def gears(self) -> Artifact | None:
        """The highest rate has no gear."""
        if self.old:
            return None
        config = GearsConfig(rates=[1, 30, 300, 20_000], slo_ms=60, max_replicas=2, requests=1000).as_served(2.0, 1)
        return make_gears(config, self.profile, self.select, self.store, lambda _: None)

    def _of_compression(self, options: list[Option], plan: Plan) -> dict[str, Any]:
        truth, bound, first = self.truth["selection"], 0.05, plan.stages[0]
        right = {name: self.logits[name]["selection"].argmax(1) == truth for name in self.models}
        alone = {name: class_changes(right[name], right[FULL], truth, self.labels, bound) for name in self.variants}
        given: list[ClassChange] = []
        if first.model.name != FULL:
            accepted = self._scores("selection") >= (ACCEPT_ALL if first.threshold is None else first.threshold)
            answers = np.where(accepted, right[first.model.name], right[FULL])
            given = class_changes(answers, right[FULL], truth, self.labels, bound)
        found = Forgetting(bound=bound, alone=alone, plan=given)
        pays = break_even(self.table, options, 1e-5, 0.1)
        return {
            "forgetting.json": found.model_dump(mode="json"),
            "break_even.json": [entry.model_dump(mode="json") for entry in pays],
        }

    def _effects(self, recipe: list[dict[str, Any]]) -> list[StepEffect]:
        return [
            StepEffect(
                step=step, rows=800, accuracy=0.91 - 0.01 * n, balanced_accuracy=0.88 - 0.02 * n, loss=0.25 + 0.03 * n,
                agreement=1 - 0.04 * n, files_mb=91.4 / (n + 1), parameters=22_713_216 // (n + 1),
            )
            for n, step in enumerate([None, *recipe])
        ]  # fmt: skip

    def _parents(self) -> dict[str, str]:
        return {"data": self.data.digest, "full": self.full.digest}

    def _right(self, name: str) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.logits[name]["test"].argmax(1) == self.truth["test"]
        return right

    def _profile(self, name: str) -> VariantProfile:
        selection, test = (
            evaluate(self.logits[name][split], self.truth[split], list(self.labels), resamples=100)
            for split in ("selection", "test")
        )
        reference = evaluate(self.logits[FULL]["test"], self.truth["test"], list(self.labels), resamples=1)
        change = {
            mine.label: None if mine.recall is None or full.recall is None else mine.recall.value - full.recall.value
            for mine, full in zip(test.classes, reference.classes, strict=True)
        }
        servable = name in _VARIANTS
        _, cost, ms, memory, size, recipe = _VARIANTS.get(name, (0, 0.012 if name == LINEAR else 0.0, 0, 0, 0, []))
        same = self.logits[name]["test"].argmax(1) == self.logits[FULL]["test"].argmax(1)
        return VariantProfile(
            name=name,
            uri=f"/runs/variant-{name}" if servable else "",
            digest=name.encode().hex().ljust(64, "0")[:64] if servable else "",
            runtime=("onnxruntime" if "int8" in name else "torch") if servable else "scikit-learn",
            precision="int8" if "int8" in name else "fp32",
            recipe=recipe,
            selection=selection,
            test=test,
            recall_change=change,
            agreement=float(same.mean()),
            against_full=None if name == FULL else compare(self._right(name), self._right(FULL)),
            speed=_speed(ms, cost, memory, size) if servable else None,
            cost=cost,
            steps=self._effects(recipe) if recipe and not self.old else [],
            structure=_left(recipe) if not self.old else {},
            sensitivity=_sensitivity() if name == "int8" and not self.old else None,
        )

    def _outputs(self, name: str) -> Artifact:
        with_files = {}
        for split, labels in self.truth.items():
            columns = {
                "id": row_ids(split, self.rows),
                "label": labels,
                "logits": logits_array(self.logits[name][split]),
            }
            with_files[f"{split}.parquet"] = pa.table(columns)
        config = {"splits": list(EVALUATION_SPLITS), "name": name}
        return _write(self.store, "outputs", config, with_files, {"data": self.data.digest})

    def _temperature(self, name: str) -> float:
        return fit_temperature(self.logits[name]["selection"], self.truth["selection"])

    def _scores(self, split: str) -> NDArray[np.float64]:
        scores: NDArray[np.float64] = softmax(self.logits[self.first][split], self._temperature(self.first)).max(axis=1)
        return scores

    def _certified(self) -> Certified:
        alpha = {"alone": 0.5, "failed": 0.003}.get(self.serve, self.alpha)
        answers = {name: self.logits[name]["calibration"].argmax(1) for name in (self.first, FULL)}
        lost = losses(self.risk, answers[self.first], answers[FULL], self.truth["calibration"])
        scores = self._scores("calibration")
        if self.serve == "failed":
            lost = lost | (scores >= np.quantile(scores, 0.9))
        return fixed_sequence(scores, lost, threshold_grid(self._scores("selection")), alpha, 0.05)

    def _certificate(self, certified: Certified) -> Certificate:
        point = certified.point
        assert point is not None, "the sample data must certify"
        return Certificate(
            delta=certified.delta,
            risk=self.risk,
            points=[
                OperatingPoint(
                    alpha=certified.alpha,
                    level=certified.delta,
                    threshold=None if point.threshold == ACCEPT_ALL else point.threshold,
                    losses=point.losses,
                    p_value=point.p_value,
                    upper_bound=point.bound,
                    escalation_rate=point.escalation_rate,
                    default=True,
                )
            ],
            first=self._ref(self.first),
            last=None if point.threshold == ACCEPT_ALL else self._ref(FULL),
            full=self._ref(FULL),
            validator={"validator": "max_probability"},
            temperature=self._temperature(self.first),
            calibration_rows=certified.n,
            outputs={name: self._ref(name) for name in (self.first, FULL)},
            data=self._ref("data"),
            hardware=hardware(),
        )

    def _plan(self, certificate: Certificate | None) -> Plan:
        full_accuracy = float(self._right(FULL).mean())
        expected = {"escalation_rate": 0.0, "cost": 1.0, "test_accuracy": full_accuracy}
        names = [FULL]
        threshold = None
        if certificate is not None:
            threshold = certificate.threshold
            names = [self.first] if threshold is None else [self.first, FULL]
            accepted = self._scores("test") >= (ACCEPT_ALL if threshold is None else threshold)
            right = np.where(accepted, self._right(self.first), self._right(FULL))
            e, c = certificate.escalation_rate, self.table[self.first].cost
            expected = {
                "escalation_rate": e,
                "cost": c + e + 0.0004,
                "test_accuracy": float(right.mean()),
                "test_escalation_rate": float(1 - accepted.mean()),
                "test_risk": float((accepted & ~self._right(self.first) & self._right(FULL)).mean()),
            }
        stages = [
            PlanStage(
                model=self._ref(name),
                temperature=self._temperature(name),
                threshold=threshold if index < len(names) - 1 else None,
                batch_1_latency_ms=_VARIANTS[name][2],
                cost=_VARIANTS[name][1],
            )
            for index, name in enumerate(names)
        ]
        cost = expected["cost"]
        return Plan(
            labels=list(self.labels),
            task=self.task,
            validator={"validator": "max_probability"},
            stages=stages,
            points=certificate.points if certificate else [],
            certificate_id=certificate.id if certificate else None,
            expected=expected | {"test_full_accuracy": full_accuracy},
            reasons={
                name: f"would cost {_VARIANTS[name][1] + 0.09:.3f} of full (escalating 9%), {names[0]} {cost:.3f}"
                for name in self.variants
                if name not in names
            },
        )

    def _ref(self, name: str) -> ModelRef:
        if name == "data":
            return ModelRef(name=name, uri=self.data.uri, digest=self.data.digest)
        return ModelRef(name=name, uri=self.table[name].uri, digest=self.table[name].digest)


def row_ids(split: str, rows: int) -> list[str]:
    """Of the rows of a split, in order."""
    return [hashlib.sha256(f"{split} {i}".encode()).hexdigest() for i in range(rows)]


def _sensitivity() -> Sensitivity:
    """Of a small transformer whose embeddings and first attention stay in float."""
    parts = {"embedding": (11_720_448, 6.1e-3), "layer.0.attention": (589_824, 2.4e-3)}
    parts |= {f"layer.{n}.ffn": (1_179_648, 8.3e-4 / (n + 1)) for n in range(3)}
    parts |= {"classifier": (148_224, 3.2e-6)}
    return Sensitivity(
        rows=128,
        max_divergence=0.002,
        all_quantized=0.0119,
        divergence=0.00174,
        parts=[
            PartSensitivity(part=part, weights=weights, divergence=nats, squared_error=9 * nats, kept=nats > 1e-3)
            for part, (weights, nats) in parts.items()
        ],
    )


def _left(recipe: list[dict[str, Any]]) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {
        "prune": {"heads": [6, 5, 7, 6, 6, 6], "neurons": [768, 700, 812, 768, 768, 1024]},
        "distill_layers": {"layers": [0, 5], "removed_layers": [[1, 0.01]], "vocabulary": [9000, 30522]},
    }
    return {part: left for step in recipe for part, left in parts.get(step["method"], {}).items()}


def _histogram(lengths: NDArray[np.int64]) -> dict[str, Any]:
    p50, p95, p99 = (int(np.percentile(lengths, q)) for q in (50, 95, 99))
    return {
        "bin_width": 1,
        "counts": np.bincount(lengths).tolist(),
        "mean": float(lengths.mean()),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "max": int(lengths.max()),
    }


def _speed(ms: float, cost: float, memory: float, size: float) -> Speed:
    best = 420 / max(cost, 0.01)
    rates = {batch: min(1000 / ms * batch**0.9, best * (0.6 + 0.4 * batch / _SIZES[-1])) for batch in _SIZES}
    return Speed(
        p50_ms=ms, p99_ms=1.7 * ms, rows_per_s=rates, load_s=1.9 + 0.02 * size, peak_memory_mb=memory, size_mb=size,
        threads=2,
    )  # fmt: skip


def _write(
    store: ArtifactStore,
    stage: str,
    config: dict[str, Any],
    files: dict[str, Any],
    parents: dict[str, str] | None = None,
    summary: dict[str, Any] | None = None,
) -> Artifact:
    with store.create(stage, json.loads(json.dumps(config)), parents or {}) as draft:
        for name, content in files.items():
            path: Path = draft.path / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, pa.Table):
                pq.write_table(content, path)
            else:
                path.write_text(json.dumps(content), encoding="utf-8")
        draft.summary |= summary or {}
    found = store.find(stage, store.key(stage, json.loads(json.dumps(config)), parents or {}))
    assert found is not None
    return found
