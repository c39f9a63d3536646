"""What the report says of compression: what it forgets, when it pays, and what each step of a recipe did."""

from __future__ import annotations

from collections.abc import Sequence

from lspm_ray.compression.effect import StepEffect
from lspm_ray.compression.recipe import FULL
from lspm_ray.evaluation.forgetting import ClassChange, Forgetting
from lspm_ray.report import words
from lspm_ray.report.findings import Findings, FlippedRow
from lspm_ray.report.grid import TALL_FROM, cell, head, missing, row, table, text_cell
from lspm_ray.report.markup import Child, Html, element, name
from lspm_ray.selection.break_even import BreakEven

MOST_CLASSES = 20
"""Classes of each model that the table lists."""
_PLAN = "the plan's answers"
_SIGNS = {"kept": "✓", "forgotten": "✗", "cannot be told": "?"}
_RELATIVE = f"{words.TIMES} full"


def forgetting(found: Forgetting) -> list[Child]:
    """Recall that classes lost on the selection rows, and whether any is forgotten."""
    judged = {_PLAN: found.plan} if found.plan else {}
    judged |= found.alone
    shown = [(model, change) for model, changes in judged.items() for change in _worst(changes)]
    if not shown:
        return []
    left = sum(map(len, judged.values())) - len(shown)
    bound = "no bound is set" if found.bound is None else f"the bound is {words.percent(found.bound)} points"
    caption = (
        f"What each class loses against full on the selection rows ({bound}). A verdict is given where the rows prove "
        "it, all classes of a model together wrong at most once in twenty times. A plan is judged by its own answers; "
        "a model beside it shows what it would lose if it answered everything."
        + (f" {words.count(left)} classes that lose less are left out." if left else "")
    )
    heads = [head("model"), head("class", text=True), head("rows"), head("lost"), head("gained")]
    heads += [head("drop in recall", "points"), head("verdict", text=True)]
    rows = [
        row(
            name(model),
            [
                text_cell(name(change.label)),
                *(cell(words.count(n)) for n in (change.rows, change.lost, change.gained)),
                cell(words.points(change.drop).lstrip("+")),
                _verdict(change),
            ],
        )
        for model, change in shown
    ]
    return [
        element("p", _summary(found)),
        table("forgetting", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM),
    ]


def _verdict(change: ClassChange) -> Html:
    found = change.verdict
    return missing("no bound") if found is None else text_cell(f"{_SIGNS[found]} {found}")


def _worst(changes: Sequence[ClassChange]) -> list[ClassChange]:
    return sorted(changes, key=lambda change: (change.verdict != "forgotten", -change.drop))[:MOST_CLASSES]


def _summary(found: Forgetting) -> list[Child]:
    guilty = {
        model: [change.label for change in changes if change.verdict == "forgotten"]
        for model, changes in found.alone.items()
    }
    parts: list[Child] = [
        [name(model), f" alone forgets {words.count(len(labels))} of the classes. "]
        for model, labels in guilty.items()
        if labels
    ]
    if not parts:
        parts = ["No model is shown to forget a class beyond the bound. " if found.bound is not None else ""]
    if any(change.verdict == "forgotten" for change in found.plan):
        parts.append("So does the plan.")
    return parts


def flipped(rows_: Sequence[FlippedRow]) -> Html | None:
    """Test rows that compression answers otherwise; None if there are none."""
    if not rows_:
        return None
    heads = [
        head("row"),
        head("class", text=True),
        head("full model", text=True),
        head("answered otherwise by", text=True),
    ]
    rows = [
        row(
            element("code", name(found.id)),
            [
                text_cell(name(found.label)),
                text_cell("right" if found.direction == "lost" else "wrong"),
                text_cell(_listed(found.models)),
            ],
        )
        for found in rows_
    ]
    caption = (
        "Test rows that most models answer otherwise than full, right against wrong: worth a look, as they are often "
        "mislabelled, ambiguous or of a rare kind. By id; texts are not shown."
    )
    return table("flipped", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _listed(models: Sequence[str]) -> list[Child]:
    parts: list[Child] = []
    for model in models:
        parts += [", ", name(model)] if parts else [name(model)]
    return parts


def pays(found: Sequence[BreakEven]) -> Child:
    """At which batch sizes each variant pays before the full model."""
    if not found:
        return element("p", "Not known: no variant was measured.")
    caption = (
        "Each variant answering first and full what is escalated, at the same batch size. Cost: of the variant and the "
        "validator on every row. It saves something while less is escalated than the break-even; what the promise "
        "needs was estimated on the selection rows."
    )
    heads = [head("variant"), head("batch size"), head("cost", _RELATIVE), head("break-even", "% escalated")]
    heads += [head("at the saving asked for", "% escalated"), head("needed", "% escalated"), head("finding", text=True)]
    rows = [
        row(
            name(entry.first),
            [
                cell(words.count(entry.batch_size)),
                cell(words.times(entry.cost)),
                *(_share(value) for value in (entry.most, entry.most_for_saving, entry.needed)),
                text_cell(entry.finding()),
            ],
        )
        for entry in found
    ]
    return table("pays", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _share(value: float | None) -> Html:
    return missing("none") if value is None else cell(words.percent(value))


def steps(findings: Findings) -> Html | None:
    """What each step of every recipe did; None where that was not measured."""
    made = [v for v in findings.variants if v.steps]
    if not made:
        return None
    caption = (
        f"What each step of a recipe did, on {words.count(made[0].steps[0].rows)} validation rows. Agreement: the same "
        "answer as full. The size is that of all files, tokenizer included."
    )
    heads = [head("variant"), head("step", text=True), head("accuracy", "%"), head("balanced accuracy", "%")]
    heads += [head("log-loss", "nats"), head("agreement", "%"), head("files", "MB"), head("parameters", "millions")]
    rows = [row(name(FULL), _step(made[0].steps[0]))]
    rows += [row(name(v.name), _step(effect)) for v in made for effect in v.steps[1:]]
    return table("steps", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _step(effect: StepEffect) -> list[Html]:
    return [
        missing("nothing was done yet") if effect.step is None else text_cell(str(effect.step["method"])),
        cell(words.percent(effect.accuracy)),
        cell(words.percent(effect.balanced_accuracy)),
        cell(f"{effect.loss:.3f}"),
        cell(words.percent(effect.agreement)),
        cell(words.significant(effect.files_mb)),
        cell(words.significant(effect.parameters / 1e6)),
    ]
