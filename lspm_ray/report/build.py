"""Stage `report`: one page with everything the other stages found out, and the same as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, name_of
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.build import STATS_FILE
from lspm_ray.evaluation.calibration import Calibrator, fit_temperature, probabilities, softmax
from lspm_ray.evaluation.forgetting import Forgetting, exemplars
from lspm_ray.evaluation.metrics import Estimate, proportion, reliability_bins
from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.profiling.baselines import LINEAR, MAJORITY
from lspm_ray.profiling.profile import read_profile
from lspm_ray.profiling.table import ProfileTable, VariantProfile
from lspm_ray.report.findings import (
    Alternative,
    Confusion,
    DataSummary,
    Findings,
    FlippedRow,
    Flips,
    Promise,
    Reliability,
    Source,
    Training,
)
from lspm_ray.report.page import render
from lspm_ray.selection.break_even import BreakEven
from lspm_ray.selection.options import Option, best_of_each
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.selection.risk import Certified
from lspm_ray.selection.select import BREAK_EVEN_FILE, CURVE_FILE, FORGETTING_FILE, OPTIONS_FILE, read_plan
from lspm_ray.training.gain import read_gain

STAGE = "report"
PAGE_FILE = "report.html"
DATA_FILE = "report.json"
MOST_FLIPPED = 20
"""Rows that are listed because compression answers them otherwise."""


def build_report(
    data: Artifact,
    full: Artifact,
    profile: Artifact,
    outputs: Mapping[str, Artifact],
    select: Artifact,
    store: ArtifactStore,
    gain: Artifact | None = None,
) -> Artifact:
    """Write the report.

    Args:
        data: what `prepare` returned.
        full: what `finetune` returned.
        profile: the measured table.
        outputs: per-example outputs of every model, by name.
        select: plan, certificate, curve and options.
        store: where the artifact goes.
        gain: what pretraining gave, if that was measured.

    Returns:
        Artifact with `report.html` (self-contained, no JavaScript) and `report.json` (every number of the page).

    Raises:
        ArtifactError: a file of an input is missing or damaged.
    """
    named = {"data": data, "full": full, "profile": profile, "select": select}
    named |= {f"outputs.{name}": artifact for name, artifact in outputs.items()}
    named |= {} if gain is None else {"gain": gain}
    parents = {role: artifact.digest for role, artifact in named.items()}

    def build(draft: Draft) -> None:
        findings = gather(data, full, profile, outputs, select, gain)
        write_report(draft, findings, render(findings))

    return store.make(STAGE, {}, parents, build)


def write_report(draft: Draft, findings: Config, page: str) -> None:
    """Write a page and the numbers on it."""
    (draft.path / DATA_FILE).write_text(findings.model_dump_json(indent=1), encoding="utf-8")
    (draft.path / PAGE_FILE).write_text(page, encoding="utf-8")
    draft.summary = {"page": PAGE_FILE}


def gather(
    data: Artifact,
    full: Artifact,
    profile: Artifact,
    outputs: Mapping[str, Artifact],
    select: Artifact,
    gain: Artifact | None = None,
) -> Findings:
    """Read the artifacts and work out what the page shows. Arguments as in `build_report`."""
    table = read_profile(profile)
    plan, certificate = read_plan(select)
    models = list(dict.fromkeys([FULL, *(stage.model.name for stage in plan.stages)]))
    sources = {"data": data, "full model": full, "profile": profile}
    sources |= {f"outputs of {name}": artifact for name, artifact in outputs.items()} | {"plan": select}
    answers = _Answers.read(outputs)
    return Findings(
        date=max(artifact.manifest.created_utc for artifact in sources.values()),
        code_version=select.manifest.code_version,
        task=plan.task,
        promise=_promise(select),
        plan=plan,
        alternatives=alternatives(table, plan, certificate),
        certificate=certificate,
        certificate_id=plan.certificate_id,
        curve=Certified.parse(select.read_json(CURVE_FILE)) if _has(select, CURVE_FILE) else None,
        options=best_of_each([Option.parse(raw) for raw in select.read_json(OPTIONS_FILE)]),
        variants=[_without_details(v) for v in table.variants],
        linear=table.linear,
        baseline_verdict=table.baseline_verdict,
        encode_ms=table.encode_ms,
        rounds=table.rounds,
        hardware=table.hardware,
        reliability=[_reliability(name, outputs[name], plan) for name in models],
        confusion={name: _matrix(table[name]) for name in models},
        training=training(full),
        gain=None if gain is None else read_gain(gain),
        forgetting=Forgetting.parse(select.read_json(FORGETTING_FILE)) if _has(select, FORGETTING_FILE) else None,
        flips=answers.flips(),
        flipped=answers.flipped(plan.labels),
        break_even=[BreakEven.parse(raw) for raw in select.read_json(BREAK_EVEN_FILE)]
        if _has(select, BREAK_EVEN_FILE)
        else [],
        data=data_summary(data.read_json(STATS_FILE), data.manifest.config),
        lineage=_lineage(sources, table.variants),
    )


def alternatives(table: ProfileTable, plan: Plan, certificate: Certificate | None) -> list[Alternative]:
    """The plan beside what else could be done: full alone, the best single cheap model, the baselines.

    The best single model is the compressed variant with the best accuracy on selection among those that cost no more
    than the plan, or among all that cost less than full where the full model is the plan.
    """
    result = []
    first = plan.stages[0].model.name
    if len(plan.stages) == 2:
        result.append(_planned(table, plan))
    elif first != FULL:
        result.append(_single("plan", table[first], certified=certificate is not None))
    result.append(_single("plan" if not result else "full", table[FULL]))
    limit = plan.expected["cost"] if first != FULL else 1.0
    cheap = [v for v in table.variants if v.servable and v.name != FULL and v.cost <= limit]
    best = max(cheap, key=lambda v: (v.selection.accuracy.value, -v.cost), default=None)
    if best is not None and (len(plan.stages) == 2 or best.name != first):
        result.append(_single("single", best))
    names = {v.name for v in table.variants}
    if LINEAR in names:
        result.append(_single("linear", table[LINEAR]))
    if MAJORITY in names:
        result.append(_single("majority", table[MAJORITY]))
    return result


def data_summary(stats: Mapping[str, Any], config: Mapping[str, Any]) -> DataSummary:
    """`stats.json` and the config of a prepared corpus, without what the page does not show."""
    fields = {key: stats[key] for key in DataSummary.model_fields if key in stats}
    return DataSummary.parse(fields | {"max_length": config.get("task", {}).get("max_length")})


def _has(artifact: Artifact, file: str) -> bool:
    return file in artifact.manifest.files


@dataclass(frozen=True)
class _Answers:
    """Who is right about each test row: full, and the variants by name; bool [rows]."""

    ids: list[str]
    truth: NDArray[np.int64]
    full: NDArray[np.bool_]
    right: dict[str, NDArray[np.bool_]]

    @classmethod
    def read(cls, outputs: Mapping[str, Artifact]) -> _Answers:
        read = {name: read_outputs(artifact, "test") for name, artifact in outputs.items()}
        ids, truth, _ = read[FULL]
        right = {name: logits.argmax(1) == truth for name, (_, _, logits) in read.items()}
        return cls(ids, truth, right.pop(FULL), right)

    def flips(self) -> list[Flips]:
        return [
            Flips(
                model=name,
                rows=len(self.ids),
                lost=int((self.full & ~right).sum()),
                gained=int((right & ~self.full).sum()),
            )
            for name, right in self.right.items()
        ]

    def flipped(self, labels: Sequence[str]) -> list[FlippedRow]:
        return [
            FlippedRow(
                id=str(self.ids[found.row]),
                label=labels[self.truth[found.row]],
                direction=found.direction,
                models=found.models,
            )
            for found in exemplars(self.right, self.full, MOST_FLIPPED)
        ]


def _planned(table: ProfileTable, plan: Plan) -> Alternative:
    n = table[FULL].test.n
    accuracy = proportion(round(plan.expected["test_accuracy"] * n), n, table[FULL].test.confidence)
    name = " → ".join(stage.model.name for stage in plan.stages)
    return Alternative(kind="plan", name=name, accuracy=accuracy, cost=plan.expected["cost"], certified=True)


def _single(kind: Any, variant: VariantProfile, certified: bool = False) -> Alternative:
    accuracy: Estimate = variant.test.accuracy
    return Alternative(kind=kind, name=variant.name, accuracy=accuracy, cost=variant.cost, certified=certified)


def _promise(select: Artifact) -> Promise:
    asked = select.manifest.config["select"]
    return Promise.parse({key: asked[key] for key in Promise.model_fields if key in asked})


def _without_details(variant: VariantProfile) -> VariantProfile:
    test = variant.test.model_copy(update={"confusion": ()})
    selection = variant.selection.model_copy(update={"confusion": (), "classes": ()})
    return variant.model_copy(update={"test": test, "selection": selection})


def _matrix(variant: VariantProfile) -> Confusion:
    return [list(row) for row in variant.test.confusion]


def _reliability(name: str, outputs: Artifact, plan: Plan) -> Reliability:
    _, labels, logits = read_outputs(outputs, "test")
    temperature, calibrator = _calibration(name, outputs, plan)
    return Reliability(
        model=name,
        temperature=temperature,
        before=reliability_bins(softmax(logits), labels),
        after=reliability_bins(probabilities(logits, temperature, calibrator), labels),
    )


def _calibration(name: str, outputs: Artifact, plan: Plan) -> tuple[float, Calibrator | None]:
    """The plan's, or a temperature fitted as the plan's were, for a model that is not in it."""
    for stage in plan.stages:
        if stage.model.name == name:
            return stage.temperature, stage.calibrator
    _, labels, logits = read_outputs(outputs, "selection")
    return fit_temperature(logits, labels), None


def training(full: Artifact) -> Training:
    """History and settings of a fine-tuned model."""
    settings, seconds = dict(full.manifest.config["train"]), full.manifest.summary["seconds"]
    history = full.read_json("history.json")
    return Training(
        history=[epoch | {"seconds": value} for epoch, value in zip(history, seconds, strict=True)],
        metric=settings["metric"],
        best_epoch=int(full.manifest.summary["best"]["epoch"]),
        settings=settings,
    )


def _lineage(sources: Mapping[str, Artifact], variants: Sequence[VariantProfile]) -> list[Source]:
    found = [Source.of(role, artifact) for role, artifact in sources.items()]
    known = {source.digest for source in found}
    models = [v for v in variants if v.servable and v.digest not in known]
    # Only the profile knows these artifacts: when they were made stands in their own manifests.
    made = [Source(role=f"model {v.name}", artifact=name_of(v.uri), digest=v.digest) for v in models]
    return [*found[:2], *made, *found[2:]]
