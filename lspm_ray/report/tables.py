"""The tables of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lspm_ray.compression.method import Method
from lspm_ray.compression.recipe import FULL
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.profiling.table import Speed, VariantProfile
from lspm_ray.report import words
from lspm_ray.report.findings import Alternative, Findings, Source
from lspm_ray.report.grid import (
    TALL_FROM,
    bar,
    cell,
    head,
    missing,
    missing_text,
    row,
    share_of,
    table,
    text_cell,
)
from lspm_ray.training.gain import Gain

MOST_MISTAKES = 10
"""Pairs of classes listed under a confusion matrix."""
RELATIVE = f"{words.TIMES} full"
_KINDS = {
    "plan": "the plan",
    "full": "full model alone",
    "single": "best single compressed model, without a certificate",
    "linear": "linear baseline",
    "majority": "answers the most frequent class",
}
_FULL_TINT_POINTS = 10.0
_MOST_TINT_PERCENT = 45.0


def alternatives(findings: Findings) -> Html:
    """The plan beside what else could be served."""
    caption = "The plan and what else could be served. Accuracy on test, with intervals; cost per request."
    heads = [head("what"), head("accuracy", "%"), head("cost", RELATIVE), head("certified")]
    rows = [
        row(
            _alternative(a),
            [_estimated(a.accuracy), cell(words.times(a.cost)), cell(_certified(a))],
            "served" if a.kind == "plan" else None,
        )
        for a in findings.alternatives
    ]
    return table("alternatives", caption, heads, [element("tbody", rows)])


def quality(findings: Findings) -> Html:
    """Quality of every variant on test, with intervals."""
    metrics = findings.variants[0].test
    caption = (
        f"Quality on the test split: {words.count(metrics.n)} rows that nothing was trained or chosen on. "
        f"Small figures are {words.level(metrics.confidence)} intervals. Macro recall is balanced accuracy. "
        "The difference from full is paired: both models on the same rows."
    )
    heads = [
        head("variant"),
        head("accuracy", "%"),
        head("difference from full", "points"),
        head("balanced accuracy", "%"),
        head("macro-F1", "%"),
        head("macro precision", "%"),
        head("log-loss", "nats per row"),
        head("calibration error", "%"),
        head("same answer as full", "%"),
    ]
    return _variant_table("quality", caption, heads, findings, lambda v: _standing(v, findings), _quality_cells)


def speed(findings: Findings) -> Html:
    """Cost, latency, throughput, memory, size and load time of every variant."""
    sizes = batch_sizes(findings)
    threads = next((v.speed.threads for v in findings.variants if v.speed), 0)
    caption = (
        f"Speed and size with {words.counted(threads, 'CPU thread')} on {words.hardware(findings.hardware)}; medians "
        f"over {words.counted(findings.rounds, 'interleaved round')}. Latency is that of one row alone. Cost is time "
        f"per row at the best batch size, {words.significant(findings.encode_ms)} ms of tokenising included. "
        "Baselines are measured for quality and cost alone."
    )
    heads = [
        head("variant"),
        head("cost", RELATIVE),
        head("latency p50", "ms"),
        head("latency p99", "ms"),
        *(head("throughput", f"rows/s at {size}") for size in sizes),
        head("peak memory", "MB"),
        head("size", "MB"),
        head("load time", "s"),
    ]
    if not any(v.speed and v.speed.one_thread for v in findings.variants):
        return _variant_table("speed", caption, heads, findings, _making, lambda v: _speed_cells(v, sizes))
    heads.append(head("throughput, one thread", "rows/s at best"))
    return _variant_table(
        "speed", caption, heads, findings, _making, lambda v: [*_speed_cells(v, sizes), _one_thread(v.speed)]
    )


def recall_change(findings: Findings) -> Html:
    """Recall of each class against full."""
    compressed = [v for v in findings.variants if v.servable and v.against_full is not None]
    full = next(v for v in findings.variants if v.against_full is None)
    caption = (
        "Recall of each class on test: of the full model with its interval, and the change in percentage points in "
        "each variant. Few rows make large changes likely by chance."
    )
    heads = [head("class"), head("rows"), head("full", "%"), *(head(name(v.name), "points") for v in compressed)]
    rows = []
    for entry in full.test.classes:
        cells = [cell(words.count(entry.support)), _estimated(entry.recall) if entry.recall else missing()]
        cells += [_change(v.recall_change.get(entry.label)) for v in compressed]
        rows.append(row(name(entry.label), cells))
    return table("recall", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def mistakes(findings: Findings, model: str) -> Html | None:
    """The most frequent confusions of one model; None if it makes none."""
    matrix, labels = findings.confusion[model], findings.labels
    found = [(n, i, j) for i, line in enumerate(matrix) for j, n in enumerate(line) if n and i != j]
    worst = sorted(found, key=lambda pair: (-pair[0], pair[1:]))[:MOST_MISTAKES]
    if not worst:
        return None
    heads = [head("true class"), head("taken for", text=True), head("rows"), head("share of the true class", "%")]
    rows = [
        row(name(labels[i]), [text_cell(name(labels[j])), cell(words.count(n)), cell(share_of(n, sum(matrix[i])))])
        for n, i, j in worst
    ]
    caption = (
        f"The most frequent mistakes of {model} on test: {words.count(len(worst))} of {words.count(len(found))} pairs."
    )
    return table(f"mistakes-{model}", caption, heads, [element("tbody", rows)])


def rejected(findings: Findings) -> Html:
    """Why each variant that is not served was left out."""
    caption = "Variants that are not in the plan. Cost and escalation as estimated on the selection split."
    heads = [
        head("variant"),
        head("why it is not served", text=True),
        head("cost", RELATIVE),
        head("escalated", "%"),
    ]
    rows = []
    for variant, reason in findings.plan.reasons.items():
        option = findings.options.get(variant)
        cost = cell(words.times(option.cost)) if option else missing()
        share = cell(words.percent(option.escalation_rate)) if option else missing()
        rows.append(row(name(variant), [text_cell(reason), cost, share]))
    return table("rejected", caption, heads, [element("tbody", rows)])


def rows_used(findings: Findings) -> Html:
    """Where the rows of the sources went."""
    data = findings.data
    lost = [("quarantined", reason, n) for reason, n in data.quarantined.items()]
    lost += [("dropped", reason, n) for reason, n in data.dropped.items()]
    entries = [("read", "rows in the sources", data.rows_read), *lost, ("kept", "rows in the splits", data.rows_kept)]
    rows = [
        row(what, [text_cell(reason), cell(words.count(n)), cell(share_of(n, data.rows_read))])
        for what, reason, n in entries
    ]
    heads = [head("rows"), head("reason", text=True), head("count"), head("share", "%")]
    caption = "What became of every row. Quarantined rows could not be read and are kept in quarantine.jsonl."
    return table("rows", caption, heads, [element("tbody", rows)])


def classes(findings: Findings) -> Html:
    """Rows of each class in each split."""
    data = findings.data
    heads = [head("class"), *(head(split) for split in data.splits), head("all splits"), head("share", "%")]
    rows = []
    for label in data.labels:
        total = data.label_rows(label)
        share = total / data.rows_kept if data.rows_kept else 0.0
        cells = [cell(words.count(data.class_counts[split].get(label, 0))) for split in data.splits]
        rows.append(row(name(label), [*cells, cell(words.count(total)), cell([words.percent(share), bar(share)])]))
    totals = [cell(words.count(data.rows(split))) for split in data.splits]
    totals += [cell(words.count(data.rows_kept)), cell("100")]
    most = [cell(words.percent(data.majority_share[split])) for split in data.splits]
    foot = [row("all classes", totals), row("most frequent class, %", [*most, missing(), missing()])]
    caption = "Rows of each class in each split."
    bodies = [element("tbody", rows), element("tbody", foot, class_="baselines")]
    return table("classes", caption, heads, bodies, tall=len(rows) >= TALL_FROM)


def epochs(findings: Findings) -> Html:
    """The learning curves as numbers."""
    columns = [
        ("train_loss", "training loss", "nats", 1, 4),
        ("loss", "validation loss", "nats", 1, 4),
        ("accuracy", "accuracy", "%", 100, 1),
        ("balanced_accuracy", "balanced accuracy", "%", 100, 1),
        ("macro_f1", "macro-F1", "%", 100, 1),
        ("seconds", "time", "s", 1, 0),
    ]
    training = findings.training
    heads = [head("epoch"), *(head(label, unit) for _, label, unit, _, _ in columns)]
    rows = []
    for entry in training.history:
        epoch = int(entry["epoch"])
        cells = [cell(f"{scale * entry[key]:,.{digits}f}") for key, _, _, scale, digits in columns]
        rows.append(row(f"{epoch} (kept)" if epoch == training.best_epoch else str(epoch), cells))
    caption = f"Each epoch on the validation split; {training.metric.replace('_', ' ')} decides which one is kept."
    return table("epochs", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def gain(found: Gain) -> Html:
    """The full model beside its twin from fresh weights."""
    heads = [
        head("fine-tuned from"),
        head("accuracy", "%"),
        head("balanced accuracy", "%"),
        head("log-loss", "nats"),
    ]
    rows = [
        row(
            name,
            [_estimated(m.accuracy), _estimated(m.balanced_accuracy), _estimated(m.log_loss, scale=1, digits=3)],
        )
        for name, m in (("pretrained weights", found.pretrained), ("fresh weights", found.scratch))
    ]
    caption = f"On {found.pretrained.n:,} rows of the test split, with 95 % intervals."
    return table("gain", caption, heads, [element("tbody", rows)])


def lineage(sources: Sequence[Source], data_file: str = "report.json") -> Html:
    """The artifacts the report rests on; `data_file` has their whole digests."""
    heads = [head("role"), head("artifact", text=True), head("sha256", text=True), head("made (UTC)", text=True)]
    rows = [
        row(
            name(source.role),
            [
                text_cell(element("code", source.artifact)),
                text_cell(element("code", source.digest[:16], title=source.digest)),
                text_cell(
                    words.moment(source.created_utc) if source.created_utc else missing_text("not recorded here")
                ),
            ],
        )
        for source in sources
    ]
    caption = f"Artifacts under this report, by content. {data_file} has the whole digests."
    return table("lineage", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def batch_sizes(findings: Findings) -> list[int]:
    """The batch sizes that any variant was measured at, ascending."""
    return sorted({size for v in findings.variants if v.speed for size in v.speed.rows_per_s})


def _variant_table(
    anchor: str,
    caption: str,
    heads: Sequence[Html],
    findings: Findings,
    note: Callable[[VariantProfile], Child],
    cells: Callable[[VariantProfile], list[Html]],
) -> Html:
    served = {stage.model.name for stage in findings.plan.stages}
    models: list[Html] = []
    baselines: list[Html] = []
    for v in findings.variants:
        title = [name(v.name), element("span", note(v), class_="range")]
        mark = "served" if v.name in served else "dominated" if v.dominated_by else None
        (models if v.servable else baselines).append(row(title, cells(v), mark))
    bodies = [element("tbody", models)]
    if baselines:
        group = element("th", "baselines, for comparison: never served", colspan=str(len(heads)), scope="rowgroup")
        bodies.append(element("tbody", element("tr", group, class_="group"), baselines, class_="baselines"))
    return table(anchor, caption, heads, bodies)


def _quality_cells(v: VariantProfile) -> list[Html]:
    test = v.test
    return [
        _estimated(test.accuracy),
        _difference(v),
        _estimated(test.balanced_accuracy),
        _estimated(test.macro_f1),
        _estimated(test.macro_precision),
        _estimated(test.log_loss, 1, 3),
        _estimated(test.calibration_error),
        cell(words.percent(v.agreement)),
    ]


def _speed_cells(v: VariantProfile, sizes: Sequence[int]) -> list[Html]:
    return [cell(words.times(v.cost)), *_measured(v.speed, sizes)]


def _making(v: VariantProfile) -> Child:
    if not v.servable:
        return None
    steps = " → ".join(words.spec(asked(step), "method") for step in v.recipe)
    return f"{v.runtime}, {v.precision}" + (f"; {steps}" if steps else "")


def _measured(speed: Speed | None, sizes: Sequence[int]) -> list[Html]:
    if speed is None:
        return [missing("not measured") for _ in range(5 + len(sizes))]
    rates = [speed.rows_per_s.get(size) for size in sizes]
    return [
        cell(words.significant(speed.p50_ms)),
        cell(words.significant(speed.p99_ms)),
        *(missing() if rate is None else cell(words.significant(rate)) for rate in rates),
        cell(words.significant(speed.peak_memory_mb)),
        cell(words.significant(speed.size_mb)),
        cell(words.significant(speed.load_s)),
    ]


def _one_thread(speed: Speed | None) -> Html:
    if speed is None or speed.one_thread is None:
        return missing("not measured")
    return cell(words.significant(max(speed.one_thread.rows_per_s.values())))


def _difference(v: VariantProfile) -> Html:
    if v.against_full is None:
        return missing("is full itself")
    found = v.against_full
    note = None if found.distinguishable else element("span", "could be chance", class_="range")
    return element(
        "td",
        words.points(found.difference.value),
        element("span", words.interval(found.difference), class_="range"),
        note,
    )


def _standing(v: VariantProfile, findings: Findings) -> Child:
    stages = [stage.model.name for stage in findings.plan.stages]
    if v.name in stages:
        if len(stages) == 1:
            return _badge("serves alone", on=True)
        place = {stages[0]: "answers first", stages[-1]: "answers the rest"}
        return _badge(place.get(v.name, "answers next"), on=True)
    if v.dominated_by:
        return ["dominated by ", name(v.dominated_by)]
    return "on the front" if v.servable else None


def _alternative(a: Alternative) -> list[Html]:
    return [name(a.name), element("span", _KINDS[a.kind], class_="range")]


def _certified(a: Alternative) -> str:
    if a.name == FULL:
        return "not needed"
    return "yes" if a.certified else "no"


def _change(change: float | None) -> Html:
    if change is None:
        return missing("class does not occur in test")
    share = min(1.0, abs(100 * change) / _FULL_TINT_POINTS) * _MOST_TINT_PERCENT
    tint = "var(--alert)" if change < 0 else "var(--good)"
    return element("td", words.points(change), class_="change", style=f"--tint:{tint};--share:{share:.0f}")


def _badge(text: str, *, on: bool = False) -> Html:
    return element("span", text, class_="badge on" if on else "badge")


def _estimated(estimate: Estimate, scale: float = 100, digits: int = 1) -> Html:
    value = f"{scale * estimate.value:.{digits}f}".replace("-", words.MINUS)
    return element("td", value, element("span", words.interval(estimate, scale, digits), class_="range"))


def asked(step: dict[str, Any]) -> dict[str, Any]:
    """A recipe step with only the settings that differ from the method's defaults."""
    method = step["method"]
    defaults = Method.make(method).spec() if method in Method.names() else {}
    return {"method": method} | words.changed(step, {key: value for key, value in defaults.items() if key != "method"})
