"""Stage `profile`: quality, latency, throughput, memory and size of every variant, on this hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, hardware
from lspm_ray.cluster import node_cpus, totals
from lspm_ray.compression.effect import StepEffect
from lspm_ray.compression.recipe import FULL
from lspm_ray.compression.sensitivity import read_sensitivity
from lspm_ray.config import Config
from lspm_ray.corpus.shards import class_counts, labels, read_split
from lspm_ray.errors import ResourceError
from lspm_ray.evaluation.metrics import Comparison, compare, evaluate
from lspm_ray.evaluation.outputs import EVALUATION_SPLITS, outputs, read_outputs
from lspm_ray.models.directory import load_tokenizer, read_variant
from lspm_ray.profiling.baselines import LINEAR, MAJORITY, linear, majority
from lspm_ray.profiling.measure import Bench, Candidate, summarize
from lspm_ray.profiling.pareto import Point, dominated_by
from lspm_ray.profiling.table import ProfileTable, Speed, VariantProfile
from lspm_ray.progress import Report
from lspm_ray.tasks import Encoded, Task

STAGE = "profile"
PROFILE_FILE = "profile.json"
_PLACEMENT_TIMEOUT_S = 60


class ProfileConfig(Config):
    """How variants are measured.

    Attributes:
        batch_sizes: throughput is measured at each.
        rounds: every round measures all variants once, in turn, so that a slow moment of the machine hits all alike.
        cell_s: seconds per variant, round and batch size.
        rows: random rows of the selection split to measure speed with.
        threads: CPU threads per variant; None for those of a served replica (`serve.variant.threads`). Where these are
            several, one is measured as well, for comparison, in a round of its own.
        gpu: measure on a GPU; None if served replicas have one (`serve.variant.gpus`).
        resamples: bootstrap resamples of the quality intervals.
    """

    batch_sizes: list[PositiveInt] = Field(default=[1, 8, 32], min_length=1)
    rounds: int = Field(3, ge=1)
    cell_s: float = Field(0.3, gt=0)
    rows: int = Field(256, ge=8)
    threads: int | None = Field(None, ge=1)
    gpu: bool | None = None
    resamples: int = Field(1000, ge=100)

    def as_served(self, threads: int, gpus: float) -> ProfileConfig:
        """With what is open settled as for a served replica, which has these threads and GPUs."""
        settled = {"threads": self.threads or threads, "gpu": gpus > 0 if self.gpu is None else self.gpu}
        return self.model_copy(update=settled)


Quality = dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Split -> labels [rows] and logits [rows, labels]."""


def profile(
    config: ProfileConfig,
    task: Task,
    models: Mapping[str, Artifact],
    data: Artifact,
    store: ArtifactStore,
    report: Report,
) -> tuple[Artifact, dict[str, Artifact]]:
    """Measure every model. `models` holds the full model under the name `full`.

    Returns:
        An artifact with `profile.json` (a `ProfileTable`) and `profile.parquet`, and each model's outputs artifact.

    Raises:
        ResourceError: no node can take the measurement.
    """
    found = outputs(models, data, store, report, bool(config.gpu))
    parents = {f"model.{name}": a.digest for name, a in models.items()} | {"data": data.digest}
    what = {"profile": config.model_dump(mode="json"), "hardware": hardware(), "task": task.spec()}

    def build(draft: Draft) -> None:
        table = _table(config, task, models, found, data, report)
        (draft.path / PROFILE_FILE).write_text(table.model_dump_json(indent=1), encoding="utf-8")
        pq.write_table(table.to_arrow(), draft.path / "profile.parquet")
        draft.summary = {v.name: {"accuracy": v.test.accuracy.value, "cost": v.cost} for v in table.variants}
        draft.summary["verdict"] = table.baseline_verdict

    return store.make(STAGE, what, parents, build), found


def read_profile(artifact: Artifact) -> ProfileTable:
    """The table that a profile artifact holds."""
    return ProfileTable.parse(artifact.read_json(PROFILE_FILE))


def _table(
    config: ProfileConfig,
    task: Task,
    models: Mapping[str, Artifact],
    found: Mapping[str, Artifact],
    data: Artifact,
    report: Report,
) -> ProfileTable:
    report("profile: fitting the linear baseline")
    quality = {name: _quality(artifact) for name, artifact in found.items()}
    linear_logits, linear_s = _baseline(data)
    truth = {split: y for split, (y, _) in quality[FULL].items()}
    quality[LINEAR] = {split: (truth[split], linear_logits[split]) for split in truth}
    counts = class_counts(data, "train")
    quality[MAJORITY] = {split: (y, majority(counts, len(y))) for split, y in truth.items()}
    speeds, encode_s, measured_on = _speeds(config, task, models, data, report)
    seconds = {name: 1 / speed.best_rows_per_s + encode_s for name, speed in speeds.items()}
    seconds |= {LINEAR: linear_s, MAJORITY: 0.0}
    report("profile: intervals")
    rows = [
        _row(name, models.get(name), quality, speeds.get(name), seconds[name] / seconds[FULL], labels(data), config)
        for name in quality
    ]
    comparison = _compare(quality, FULL, LINEAR)
    return ProfileTable(
        variants=_mark_dominated(rows),
        labels=labels(data),
        encode_ms=1e3 * encode_s,
        linear=comparison,
        baseline_verdict=baseline_verdict(comparison, {row.name: row for row in rows}),
        rounds=config.rounds,
        hardware=measured_on,
    )


def baseline_verdict(comparison: Comparison, rows: Mapping[str, VariantProfile]) -> str:
    """Whether the full model is worth more than the linear baseline: on accuracy, and on balanced accuracy."""
    full, line = (100 * rows[name].test.balanced_accuracy.value for name in (FULL, LINEAR))
    return (
        f"{comparison.sentence('the full model', 'the linear baseline')}; "
        f"balanced accuracy is {full:.1f} % against {line:.1f} %"
    )


def _quality(artifact: Artifact) -> Quality:
    splits: Quality = {}
    for split in EVALUATION_SPLITS:
        _, truth, logits = read_outputs(artifact, split)
        splits[split] = (truth, logits)
    return splits


def _baseline(data: Artifact) -> tuple[dict[str, NDArray[np.float32]], float]:
    import ray

    result: tuple[dict[str, NDArray[np.float32]], float] = ray.get(
        ray.remote(num_cpus=1, max_calls=1)(linear).remote(data.uri, list(EVALUATION_SPLITS))
    )
    return result


def _row(
    name: str,
    model: Artifact | None,
    quality: Mapping[str, Quality],
    speed: Speed | None,
    cost: float,
    names: list[str],
    config: ProfileConfig,
) -> VariantProfile:
    variant = read_variant(model.local()) if model else None
    selection, test = (
        evaluate(logits, truth, names, resamples=config.resamples)
        for truth, logits in (quality[name]["selection"], quality[name]["test"])
    )
    reference = evaluate(quality[FULL]["test"][1], quality[FULL]["test"][0], names, resamples=100)
    change = {
        mine.label: None if mine.recall is None or full.recall is None else mine.recall.value - full.recall.value
        for mine, full in zip(test.classes, reference.classes, strict=True)
    }
    agreement = (quality[name]["test"][1].argmax(1) == quality[FULL]["test"][1].argmax(1)).mean()
    return VariantProfile(
        name=name,
        uri=model.uri if model else "",
        digest=model.digest if model else "",
        runtime=variant.runtime if variant else "scikit-learn" if name == LINEAR else "none",
        precision=variant.precision if variant else "fp64",
        recipe=variant.recipe if variant else [],
        selection=selection,
        test=test,
        recall_change=change,
        agreement=float(agreement),
        against_full=None if name == FULL else _compare(quality, name, FULL),
        speed=speed,
        cost=cost,
        steps=[StepEffect.parse(step) for step in model.manifest.summary.get("steps", [])] if model else [],
        structure=(variant.structure or {}) if variant else {},
        sensitivity=read_sensitivity(model.local()) if model else None,
    )


def _compare(quality: Mapping[str, Quality], first: str, second: str) -> Any:
    right = [logits.argmax(1) == truth for truth, logits in (quality[first]["test"], quality[second]["test"])]
    return compare(*right)


def _mark_dominated(rows: list[VariantProfile]) -> list[VariantProfile]:
    points = [Point(name=r.name, quality=r.selection.accuracy.value, cost=r.cost) for r in rows if r.servable]
    losers = dominated_by(points)
    return [row.model_copy(update={"dominated_by": losers.get(row.name)}) for row in rows]


def _speeds(
    config: ProfileConfig, task: Task, models: Mapping[str, Artifact], data: Artifact, report: Report
) -> tuple[dict[str, Speed], float, dict[str, Any]]:
    """Speed of every model, seconds to tokenise one example, and where. One process per model, all on one node."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    examples, encode_s = examples_of(config, task, models[FULL], data)
    gpu = bool(config.gpu)
    if gpu and totals()["GPU"] < 1:
        raise ResourceError("is asked for, the cluster has no GPU", field="profile.gpu", value=True)
    bundle = {"CPU": node_cpus()} | ({"GPU": 1.0} if gpu else {})
    group = placement_group([bundle], strategy="STRICT_PACK")
    try:
        if not group.wait(_PLACEMENT_TIMEOUT_S):
            raise ResourceError(
                f"no node has {bundle} free to measure on, for {_PLACEMENT_TIMEOUT_S} s", field="profile"
            )
        strategy = PlacementGroupSchedulingStrategy(group)
        speeds, measured_on = measure_models(config, models, examples, report, strategy)
        if not gpu and (config.threads or 1) > 1:
            report("profile: the same with one thread")
            alone = config.model_copy(update={"threads": 1, "rounds": 1})
            single, _ = measure_models(alone, models, examples, report, strategy)
            speeds = {name: speed.with_one_thread(single[name]) for name, speed in speeds.items()}
        return speeds, encode_s, measured_on
    finally:
        remove_placement_group(group)


def measure_models(
    config: ProfileConfig, models: Mapping[str, Artifact], examples: list[Encoded], report: Report, strategy: Any
) -> tuple[dict[str, Speed], dict[str, Any]]:
    """Speed of every model, and the hardware: see `measure`."""
    threads, gpu = config.threads or 1, bool(config.gpu)
    candidates = {name: Candidate.of(model, threads, gpu) for name, model in models.items()}
    return measure(config, candidates, examples, report, strategy)


def measure(
    config: ProfileConfig, candidates: Mapping[str, Candidate], examples: list[Encoded], report: Report, strategy: Any
) -> tuple[dict[str, Speed], dict[str, Any]]:
    """Speed of every candidate, and the hardware. One process each, in turn; nothing else should run beside them.

    Args:
        config: how, with `threads` and `gpu` settled.
        candidates: by name.
        examples: to measure with.
        report: progress.
        strategy: of Ray, for where the processes run.
    """
    import ray

    share = 1 / len(candidates) if config.gpu else 0
    actor = ray.remote(num_cpus=0, num_gpus=share, scheduling_strategy=strategy)(Bench)
    benches, load_s = {}, {}
    for name, candidate in candidates.items():
        report(f"profile: loading {name}")
        benches[name] = actor.remote(candidate.load, examples, config.cell_s)
        load_s[name] = ray.get(benches[name].load_time.remote())  # one after another: a race would slow all
    measured_on = ray.get(benches[next(iter(candidates))].hardware.remote())
    return _interleave(config, benches, candidates, load_s, report), measured_on


def _interleave(
    config: ProfileConfig,
    benches: dict[str, Any],
    candidates: Mapping[str, Candidate],
    load_s: Mapping[str, float],
    report: Report,
) -> dict[str, Speed]:
    import ray

    latency: dict[str, list[list[float]]] = {name: [] for name in benches}
    rate: dict[str, dict[int, list[float]]] = {n: {size: [] for size in config.batch_sizes} for n in benches}
    for number in range(config.rounds):
        for name, bench in benches.items():
            report(f"profile: round {number + 1}/{config.rounds}, {name}")
            latency[name].append(ray.get(bench.latencies.remote()))
            for size in config.batch_sizes:
                rate[name][size].append(ray.get(bench.rows_per_s.remote(size)))
    speeds = {}
    for name, bench in benches.items():
        p50, p99 = summarize(latency[name])
        speeds[name] = Speed(
            p50_ms=p50,
            p99_ms=p99,
            rows_per_s={size: float(np.median(values)) for size, values in rate[name].items()},
            load_s=load_s[name],
            peak_memory_mb=ray.get(bench.peak_memory_mb.remote()),
            size_mb=candidates[name].size_mb,
            threads=config.threads or 1,
            company=ray.get(bench.company.remote(max(config.batch_sizes))),
        )
        ray.kill(bench)
    return speeds


def examples_of(config: ProfileConfig, task: Task, full: Artifact, data: Artifact) -> tuple[list[Encoded], float]:
    """Rows of the selection split to measure with, and seconds to tokenise one."""
    import time

    texts = read_split(data, "selection", ["text"]).slice(0, config.rows)["text"].to_pylist()
    tokenizer = load_tokenizer(full.local())
    task.encode(texts[:8], tokenizer)
    started = time.perf_counter()
    examples = task.encode(texts, tokenizer)
    return examples, (time.perf_counter() - started) / len(texts)
