"""Stage `report`: one page with everything the other stages found out, and the same as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, name_of
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.build import STATS_FILE
from lspm_ray.corpus.shards import read_split
from lspm_ray.evaluation.calibration import Calibrator, fit_temperature, probabilities, softmax
from lspm_ray.evaluation.forgetting import exemplars
from lspm_ray.evaluation.metrics import Estimate, proportion, reliability_bins
from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.profiling.baselines import LINEAR, MAJORITY
from lspm_ray.profiling.profile import read_profile
from lspm_ray.profiling.table import ProfileTable, VariantProfile
from lspm_ray.report.config import ReportConfig
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
from lspm_ray.selection.gears import read_gears
from lspm_ray.selection.options import Option, best_of_each
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.selection.risk import Certified
from lspm_ray.selection.select import (
    BREAK_EVEN_FILE,
    CURVE_FILE,
    FORGETTING_FILE,
    OPTIONS_FILE,
    read_break_even,
    read_forgetting,
    read_plan,
)
from lspm_ray.training.gain import read_gain

STAGE = "report"
PAGE_FILE = "report.html"
DATA_FILE = "report.json"
MOST_CHARACTERS = 300
"""Of the text of a row, where texts are shown."""


def build_report(
    data: Artifact,
    full: Artifact,
    profile: Artifact,
    outputs: Mapping[str, Artifact],
    select: Artifact,
    store: ArtifactStore,
    config: ReportConfig,
    gain: Artifact | None = None,
    gears: Artifact | None = None,
) -> Artifact:
    """Write the report.

    Args:
        data: what `prepare` returned.
        full: what `finetune` returned.
        profile: the measured table.
        outputs: per-example outputs of every model, by name.
        select: plan, certificate, curve and options.
        store: where the artifact goes.
        config: what is shown of single rows.
        gain: what pretraining gave, if that was measured.
        gears: what to serve at which load, if that was planned.

    Returns:
        Artifact with `report.html` (self-contained, no JavaScript) and `report.json` (every number of the page).

    Raises:
        ArtifactError: a file of an input is missing or damaged.
    """
    named = {"data": data, "full": full, "profile": profile, "select": select}
    named |= {f"outputs.{name}": artifact for name, artifact in outputs.items()}
    named |= {} if gain is None else {"gain": gain}
    named |= {} if gears is None else {"gears": gears}
    parents = {role: artifact.digest for role, artifact in named.items()}

    def build(draft: Draft) -> None:
        findings = gather(data, full, profile, outputs, select, config, gain, gears)
        write_report(draft, findings, render(findings))

    return store.make(STAGE, {"report": config.model_dump(mode="json")}, parents, build)


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
    config: ReportConfig,
    gain: Artifact | None = None,
    gears: Artifact | None = None,
) -> Findings:
    """Read the artifacts and work out what the page shows. Arguments as in `build_report`."""
    table = read_profile(profile)
    plan, certificate = read_plan(select)
    models = list(dict.fromkeys([FULL, *(stage.model.name for stage in plan.stages)]))
    sources = {"data": data, "full model": full, "profile": profile}
    sources |= {f"outputs of {name}": artifact for name, artifact in outputs.items()} | {"plan": select}
    sources |= {} if gears is None else {"gears": gears}
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
        forgetting=read_forgetting(select) if _has(select, FORGETTING_FILE) else None,
        flips=answers.flips(),
        flipped=_flipped(answers, plan.labels, data, config),
        break_even=read_break_even(select) if _has(select, BREAK_EVEN_FILE) else [],
        gears=None if gears is None else read_gears(gears),
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
    if len(plan.stages) > 1:
        result.append(_planned(table, plan))
    elif first != FULL:
        result.append(_single("plan", table[first], certified=certificate is not None))
    result.append(_single("plan" if not result else "full", table[FULL]))
    limit = plan.expected["cost"] if first != FULL else 1.0
    cheap = [v for v in table.variants if v.servable and v.name != FULL and v.cost <= limit]
    best = max(cheap, key=lambda v: (v.selection.accuracy.value, -v.cost), default=None)
    if best is not None and (len(plan.stages) > 1 or best.name != first):
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
    """Classes on the selection split: the true ones, those that full answers, and those of each variant; int [rows].

    Test rows stay unseen: whoever looks at single rows may go on to choose by them.
    """

    ids: list[str]
    truth: NDArray[np.int64]
    full: NDArray[np.int64]
    variants: dict[str, NDArray[np.int64]]

    @classmethod
    def read(cls, outputs: Mapping[str, Artifact]) -> _Answers:
        read = {name: read_outputs(artifact, "selection") for name, artifact in outputs.items()}
        ids, truth, _ = read[FULL]
        answers = {name: logits.argmax(1) for name, (_, _, logits) in read.items()}
        return cls(ids, truth, answers.pop(FULL), answers)

    @property
    def right(self) -> dict[str, NDArray[np.bool_]]:
        return {name: answers == self.truth for name, answers in self.variants.items()}

    @property
    def full_right(self) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.full == self.truth
        return right

    def flips(self) -> list[Flips]:
        return [
            Flips(
                model=name,
                rows=len(self.ids),
                lost=int((self.full_right & ~right).sum()),
                gained=int((right & ~self.full_right).sum()),
            )
            for name, right in self.right.items()
        ]


def _flipped(answers: _Answers, labels: Sequence[str], data: Artifact, config: ReportConfig) -> list[FlippedRow]:
    found = exemplars(answers.right, answers.full_right, config.exemplars)
    texts = _texts(data, [answers.ids[e.row] for e in found]) if config.texts and found else {}
    return [
        FlippedRow(
            id=answers.ids[e.row],
            label=labels[answers.truth[e.row]],
            full=labels[answers.full[e.row]],
            answer=labels[int(np.bincount([answers.variants[model][e.row] for model in e.models]).argmax())],
            direction=e.direction,
            models=e.models,
            text=texts.get(answers.ids[e.row]),
        )
        for e in found
    ]


def _texts(data: Artifact, ids: Sequence[str]) -> dict[str, str]:
    """Id -> how the text of that row of the selection split begins."""
    table = read_split(data, "selection", ["id", "text"])
    wanted = table.filter(pc.is_in(table["id"], value_set=pa.array(ids)))
    texts = zip(wanted["id"].to_pylist(), wanted["text"].to_pylist(), strict=True)
    return {key: text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…" for key, text in texts}


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
