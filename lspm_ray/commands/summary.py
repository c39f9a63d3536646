"""Results in a terminal: what was found in the text, the table of variants, what is served, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from lspm_ray.commands.console import table
from lspm_ray.evaluation.forgetting import ClassChange, Forgetting
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.page.markup import plain
from lspm_ray.pipeline import Pipeline
from lspm_ray.profiling.profile import read_profile
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.report.build import PAGE_FILE
from lspm_ray.selection.break_even import BreakEven, slower
from lspm_ray.selection.gears import GearTable, Shift
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.selection.select import read_break_even, read_forgetting, read_plan
from lspm_ray.sweep import read_sweep
from lspm_ray.tuning.view import shown

MOST_CLASSES = 3
"""Forgotten classes that are named of each variant."""


def print_decision(pipeline: Pipeline) -> None:
    """Print what was measured and decided."""
    profile = read_profile(pipeline.profile)
    columns = ["variant", "accuracy % (95 %)", "balanced %", "p50 ms", "rows/s", "cost", "MB", "note"]
    print("variants, quality on test")
    table(columns, [_row(v) for v in profile.variants])
    print(f"{profile.baseline_verdict}.")
    plan, certificate = read_plan(pipeline.select)
    print(describe(plan, certificate))
    for name, reason in plan.reasons.items():
        print(f"  not {name}: {reason}")
    for line in shortcomings(read_break_even(pipeline.select), read_forgetting(pipeline.select)):
        print(line)
    for line in dependent(profile.variants):
        print(line)


def dependent(variants: Sequence[VariantProfile]) -> list[str]:
    """Whose answers depend on the rows they are computed with, in a line each; also of what is served."""
    found = [(v.name, v.speed.company) for v in variants if v.speed and v.speed.company]
    return [
        f"  {name} answers {company.changed} of {company.rows} rows otherwise in a batch than alone"
        for name, company in found
        if company.changed
    ]


def shortcomings(pays: Sequence[BreakEven], forgetting: Forgetting) -> list[str]:
    """What speaks against variants whatever is served, in a line each: slower than full, classes forgotten."""
    sizes = [f"{name} at batch size {', '.join(map(str, at))}" for name, at in slower(pays).items()]
    lost = {name: [c for c in changes if c.verdict == "forgotten"] for name, changes in forgetting.alone.items()}
    classes = [f"{name} ({_named(changes)})" for name, changes in lost.items() if changes]
    return [
        *([f"slower than full: {'; '.join(sizes)}"] if sizes else []),
        *([f"classes forgotten when alone: {'; '.join(classes)}"] if classes else []),
    ]


def _named(changes: Sequence[ClassChange]) -> str:
    worst = sorted(changes, key=lambda change: -change.drop)
    named = [f"{plain(change.label)} by {100 * change.drop:.1f} points" for change in worst[:MOST_CLASSES]]
    return ", ".join(named) + (f" and {len(worst) - MOST_CLASSES} more" if len(worst) > MOST_CLASSES else "")


def print_gears(found: GearTable) -> None:
    """Print what to serve at which load."""
    columns = ["requests/s", "served by", "alpha", "escalated"]
    columns += ["ingress", "replicas", "batch", "CPUs", "p99 ms", "load"]
    print(f"gears for a p99 of {found.slo_ms:g} ms (predicted from the measured profile)")
    table(columns, [_gear(shift) for shift in found.shifts if shift.gear is not None])
    without = [shift for shift in found.shifts if shift.gear is None]
    for reason, same in groupby(without, key=lambda shift: shift.reason):
        print(f"  none for {', '.join(f'{shift.rate:g}' for shift in same)} requests/s: {reason}")


def _gear(shift: Shift) -> list[str]:
    gear, expected = shift.gear, shift.expected
    assert gear is not None and expected is not None  # noqa: S101
    return [
        f"{shift.rate:g}",
        " → ".join(gear.stages),
        "full" if gear.alpha is None else f"{gear.alpha:.2%}{' (degraded)' if gear.degraded else ''}",
        f"{gear.escalation_rate:.1%}",
        str(gear.ingress_replicas),
        ", ".join(f"{name} {count}" for name, count in gear.replicas.items()),
        str(gear.max_batch_size),
        f"{gear.cpus:g}",
        f"{expected.p99_ms:.3g}",
        f"{shift.rate / gear.capacity:.0%}",
    ]


def print_sweep(pipeline: Pipeline) -> None:
    """Print how the trials ended, and the finalists."""
    found = read_sweep(pipeline.tune)
    ended = {status: sum(trial.status == status for trial in found.trials) for status in ("done", "stopped", "failed")}
    print(f"trials: {ended['done']} done, {ended['stopped']} stopped early, {ended['failed']} failed")
    for trial in found.trials:
        if trial.status == "failed":
            print(f"  trial {trial.number} failed: {trial.reason}")
    names = found.goals.names
    rows = []
    for finalist in found.finalists:
        mean = finalist.mean
        note = "" if finalist.distinguishable else "not distinguishable from the winner"
        note = "winner" if finalist is found.winner else note
        others = [f"{finalist.values[name]:.4g}" for name in names[1:]]
        score = f"{mean.value:.4f} ({mean.low:.4f}-{mean.high:.4f})"
        rows.append([finalist.number, shown(finalist.params), score, *others, note])
    if not rows:
        print("no winner: no trial came to an end and kept the constraints")
    else:
        table(["trial", "point", f"{names[0]} (95 %)", *names[1:], "note"], rows)
    if found.gap is not None:
        gap = found.gap
        print(
            f"the winner's {gap.metric}: {gap.validation:.4f} on validation, {gap.test.value:.4f} "
            f"({gap.test.low:.4f}-{gap.test.high:.4f}) on test, which played no part in choosing it"
        )
    print(f"report: {pipeline.tune.path(PAGE_FILE)}")


def print_pretraining(pipeline: Pipeline, stages: Sequence[str]) -> None:
    """Print what the stages before fine-tuning found, those of `stages` that are such."""
    for stage, lines in _PRETRAINING.items():
        if stage in stages:
            for line in lines(pipeline.stage(stage).manifest.summary):
                print(line)


def _documents(found: dict[str, Any]) -> list[str]:
    kept = {name: split["documents"] for name, split in found["splits"].items()}
    dropped = [f"{count:,} {reason}" for reason, count in sorted(found["dropped"].items(), key=lambda e: -e[1])]
    aside = [f"{count:,} {reason}" for reason, count in found["quarantined"].items()]
    words, lengths = found["words"], found["characters"]["train"]
    coverage = ", ".join(f"{int(top):,}: {100 * share:.1f} %" for top, share in words["coverage"].items())
    return [
        f"documents: {found['documents_read']:,} read, {kept['train']:,} to train on, "
        f"{kept['validation']:,} to validate on",
        f"  dropped: {', '.join(dropped) or 'none'}",
        *([f"  could not be read: {', '.join(aside)} (see quarantine/)"] if aside else []),
        f"  characters: {lengths['total']:,}; of a document: median {lengths['p50']:,}, 95 % up to {lengths['p95']:,}",
        f"  words: {words['occurrences']:,}, {words['different']:,} different; share of the most frequent {coverage}",
    ]


def _blocks(found: dict[str, Any]) -> list[str]:
    train, held_out = found["splits"]["train"], found["splits"]["validation"]
    return [
        f"blocks: {train['blocks']:,} of {found['length']} tokens to train on ({train['tokens']:,} tokens), "
        f"{held_out['blocks']:,} to validate on",
        f"  tokenizer: {found['vocabulary']:,} tokens, {found['bytes_per_token']:.2f} bytes per token, "
        f"{100 * found['vocabulary_used']:.1f} % of them in use, {100 * found['unknown_share']:.3f} % unknown, "
        f"{100 * found['padding_share']:.2f} % padding",
    ]


def _pretrain(found: dict[str, Any]) -> list[str]:
    best = found["best"]
    return [
        f"pretrained: {found['parameters'] / 1e6:.1f} million parameters, {found['objective']}, "
        f"best after {best['tokens'] / 1e6:,.2f} million tokens",
        f"  held-out perplexity {found['perplexity']:,.1f}; knowing only how frequent each token is: "
        f"{found['unigram_perplexity']:,.1f}",
    ]


_PRETRAINING: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "documents": _documents,
    "blocks": _blocks,
    "pretrain": _pretrain,
}


def describe(plan: Plan, certificate: Certificate | None) -> str:
    """The plan in a sentence or two."""
    expected = plan.expected
    if certificate is None:
        return f"served: the full model alone (accuracy on test {100 * expected['test_accuracy']:.2f} %)."
    names = [stage.model.name for stage in plan.stages]
    passed_on = zip(certificate.default.shares, names[1:], strict=True)
    passed = [f"{100 * share:.1f} % are escalated to {to}" for share, to in passed_on]
    how = f"{names[0]} answers first; {', '.join(passed)}" if passed else f"{names[0]} alone"
    share = {name: f"{100 * value:.2f} %" for name, value in expected.items()}
    return (
        f"served: {how}. Cost {expected['cost']:.3f} of full; on test accuracy {share['test_accuracy']} "
        f"(full {share['test_full_accuracy']}), balanced {share['test_balanced_accuracy']} "
        f"(full {share['test_full_balanced_accuracy']}).\n"
        f"certificate {certificate.id}: {certificate.risk} <= {certificate.alpha:.2%} at confidence "
        f"{1 - certificate.delta:.0%}; {certificate.losses} losses in {certificate.calibration_rows} calibration rows."
    )


def _row(v: VariantProfile) -> list[str]:
    speed = v.speed
    note = f"dominated by {v.dominated_by}" if v.dominated_by else "" if v.servable else "baseline"
    return [
        v.name,
        _percent(v.test.accuracy),
        f"{100 * v.test.balanced_accuracy.value:.2f}",
        f"{speed.p50_ms:.2f}" if speed else "",
        f"{speed.best_rows_per_s:.0f}" if speed else "",
        f"{v.cost:.4f}",
        f"{speed.size_mb:.1f}" if speed else "",
        note,
    ]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})"
