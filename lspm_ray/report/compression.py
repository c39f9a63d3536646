"""What the report says of compression: what it forgets, when it pays, and what each step of a recipe did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lspm_ray.compression.effect import StepEffect
from lspm_ray.compression.recipe import FULL
from lspm_ray.compression.sensitivity import PartSensitivity, Sensitivity
from lspm_ray.evaluation.forgetting import ClassChange, Forgetting
from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import words
from lspm_ray.report.findings import Findings, FlippedRow, Flips
from lspm_ray.report.grid import TALL_FROM, cell, head, missing, missing_text, row, share_of, table, text_cell
from lspm_ray.report.tables import RELATIVE, asked
from lspm_ray.selection.break_even import BreakEven

MOST_CLASSES = 20
"""Classes that the table lists, unless more are forgotten."""
PLAN = "the plan's answers"
_ID = 16
"""Characters of an id that are shown; a corpus of millions is told apart by them."""
_ROUNDING = ("quantize_int8", "quantize_static")
_BEARABLE_POINTS = 0.5
_SIGNS = {"kept": "✓", "forgotten": "✗", "cannot be told": "?"}
_PARTS = {
    "layers": "those kept, from 0",
    "removed_layers": "in order, with nats",
    "hidden_size": None,
    "heads": "layer by layer",
    "neurons": "layer by layer",
    "vocabulary": "token embeddings",
}
"""Parts that the table knows, with what stands below their names."""


def forgetting(found: Forgetting) -> list[Child]:
    """Recall that classes lost on the selection rows, and whether any is forgotten."""
    models = _judged(found)
    if not models:
        return []
    columns = {model: {change.label: change for change in changes} for model, changes in models.items()}
    every = list(dict.fromkeys(label for changes in columns.values() for label in changes))
    shown = _worst(every, columns)
    left = len(every) - len(shown)
    bound = "no bound is set" if found.bound is None else f"the bound is {100 * found.bound:.6g} points"
    caption = (
        f"Drop in recall from full on the selection rows, in points ({bound}), with the rows that only full answers "
        "right (lost) and those that only the model does (gained). A verdict is given where the rows prove it, all "
        "classes of a model together wrong at most once in twenty times. The plan is judged by its own answers; a "
        "model beside it shows what it would lose if it answered everything."
        + (f" {words.count(left)} {_classes(left)} that lose less {_are(left)} left out." if left else "")
    )
    heads = [head("class"), head("rows"), *(head(name(model), "points lost") for model in columns)]
    rows = [_class(label, [changes.get(label) for changes in columns.values()]) for label in shown]
    return [
        element("p", _summary(found)),
        table("forgetting", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM),
    ]


def _judged(found: Forgetting) -> dict[str, list[ClassChange]]:
    return ({PLAN: found.plan} if found.plan else {}) | found.alone


def _class(label: str, changes: Sequence[ClassChange | None]) -> Html:
    size = next(change.rows for change in changes if change is not None)
    return row(name(label), [cell(words.count(size)), *map(_change, changes)])


def _change(change: ClassChange | None) -> Html:
    if change is None:
        return missing("not measured")
    return element(
        "td",
        words.points(change.drop).lstrip("+"),
        element("span", f"{words.count(change.lost)} lost, {words.count(change.gained)} gained", class_="range"),
        None if change.verdict is None else element("span", f"{_SIGNS[change.verdict]} {change.verdict}"),
    )


def _worst(labels: Sequence[str], columns: Mapping[str, Mapping[str, ClassChange]]) -> list[str]:
    """All that is forgotten by any model, and what loses most up to `MOST_CLASSES`; in the order of the labels."""
    if len(labels) <= MOST_CLASSES:
        return list(labels)
    found = {label: [changes[label] for changes in columns.values() if label in changes] for label in labels}
    forgotten = {label for label, changes in found.items() if any(c.verdict == "forgotten" for c in changes)}
    order = sorted(labels, key=lambda label: (label not in forgotten, -max(c.drop for c in found[label])))
    kept = set(order[: max(MOST_CLASSES, len(forgotten))])
    return [label for label in labels if label in kept]


def _summary(found: Forgetting) -> list[Child]:
    if found.bound is None:
        return ["No bound is set on what a class may lose (select.constraints.max_recall_drop)."]
    bound = f"more than {100 * found.bound:.6g} points of recall"
    guilty = {
        model: [change for change in changes if change.verdict == "forgotten"]
        for model, changes in _judged(found).items()
    }
    parts: list[Child] = [_forgets(model, changes) for model, changes in guilty.items() if changes]
    if not parts:
        parts = [f"No model, nor the plan, is shown to lose {bound} of any class. "]
    else:
        parts = [f"Forgotten is a class that loses {bound}. ", *parts]
    unsure = sum(change.verdict == "cannot be told" for change in found.plan)
    if unsure:
        few = f"For {words.count(unsure)} of {words.count(len(found.plan))} classes"
        parts.append(f"{few} it cannot be told of the plan's answers: too few rows.")
    return parts


def _forgets(model: str, changes: Sequence[ClassChange]) -> list[Child]:
    worst = max(changes, key=lambda change: change.drop)
    alone = " forget " if model == PLAN else " alone forgets "
    count = f"{words.count(len(changes))} {_classes(len(changes))}, most of all "
    return [name(model), alone, count, name(worst.label), f" ({words.points(worst.drop).lstrip('+')} points). "]


def _classes(number: int) -> str:
    return "class" if number == 1 else "classes"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def flips(found: Sequence[Flips]) -> Html | None:
    """How many rows each variant flips; None if there are no variants."""
    if not found:
        return None
    heads = [head("variant"), head("lost", "rows"), head("gained", "rows"), head("flipped", "rows")]
    heads.append(head("flipped", "% of rows"))
    rows = [
        row(
            name(entry.model),
            [
                *(cell(words.count(n)) for n in (entry.lost, entry.gained, entry.lost + entry.gained)),
                cell(share_of(entry.lost + entry.gained, entry.rows)),
            ],
        )
        for entry in found
    ]
    caption = (
        f"Of {words.counted(found[0].rows, 'row')} of the selection split, those that full answers right and the "
        "variant wrong (lost), and the other way round (gained). Equal accuracies may hide many of either. Test rows "
        "are not looked at one by one, so that nothing is chosen by them."
    )
    return table("flips", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def flipped(rows_: Sequence[FlippedRow], variants: int) -> Html | None:
    """Rows that most of so many variants flip; None if there are none."""
    if not rows_:
        return None
    texts = any(found.text is not None for found in rows_)
    caption = (
        "Rows of the selection split that most variants flip, right against wrong: worth a look, as they are often "
        "mislabelled, ambiguous or of a rare kind. Flipped to: what most of these variants answer. "
        + ("Long texts are cut." if texts else "By id, as in the prepared corpus; report.texts=true shows texts too.")
    )
    heads = [
        head("row", text=True),
        *([head("text", text=True)] if texts else []),
        head("true class", text=True),
        head("full answers", text=True),
        head("flipped to", text=True),
        head("flipped by", f"of {words.counted(variants, 'variant')}"),
        head("which", text=True),
    ]
    rows = [row(element("code", name(e.id[:_ID]), title=e.id), _flipped(e, texts=texts)) for e in rows_]
    return table("flipped", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _flipped(found: FlippedRow, *, texts: bool) -> list[Html]:
    text = missing("no text was found") if found.text is None else text_cell(element("bdi", found.text))
    return [
        *([text] if texts else []),
        *(text_cell(name(label)) for label in (found.label, found.full, found.answer)),
        cell(words.count(len(found.models))),
        text_cell(_listed(found.models)),
    ]


def _listed(models: Sequence[str]) -> list[Child]:
    parts: list[Child] = []
    for model in models:
        parts += [", ", name(model)] if parts else [name(model)]
    return parts


def pays(found: Sequence[BreakEven]) -> Html | None:
    """At which batch sizes each variant pays before the full model; None if there are none."""
    if not found:
        return None
    caption = (
        "Each variant answering first and full what is escalated, at the same batch size. Cost: of the variant and the "
        "validator on every row. It saves something while less is escalated than the break-even; what the promise "
        "needs was estimated on the selection rows."
    )
    heads = [head("variant"), head("batch size"), head("cost", RELATIVE), head("break-even", "% escalated")]
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


def advice(findings: Findings) -> list[Child]:
    """A sentence for every variant that rounding alone costs more than half a point."""
    found: list[Child] = []
    for v in findings.variants:
        for before, after in pairwise(v.steps):
            lost = 100 * (before.accuracy - after.accuracy)
            if _method(after) in _ROUNDING and _method(before) != "quantization_aware" and lost > _BEARABLE_POINTS:
                sentence = f": {_method(after)} costs {lost:.1f} points of accuracy. Try quantization_aware before it."
                found.append(element("p", name(v.name), sentence, class_="note"))
    return found


def _method(effect: StepEffect) -> str:
    return "" if effect.step is None else str(effect.step["method"])


def _step(effect: StepEffect) -> list[Html]:
    return [
        text_cell(
            missing_text("nothing was done yet") if effect.step is None else words.spec(asked(effect.step), "method")
        ),
        cell(words.percent(effect.accuracy)),
        cell(words.percent(effect.balanced_accuracy)),
        cell(f"{effect.loss:.3f}"),
        cell(words.percent(effect.agreement)),
        cell(words.significant(effect.files_mb)),
        cell(words.significant(effect.parameters / 1e6)),
    ]


def left(findings: Findings) -> Html | None:
    """What compression left of the model's parts; None where nobody knows."""
    made = [v for v in findings.variants if any(part in _PARTS for part in v.structure)]
    if not made:
        return None
    parts = [part for part in _PARTS if any(part in v.structure for v in made)]
    heads = [head("variant"), *(head(part.replace("_", " "), _PARTS[part], text=True) for part in parts)]
    rows = [row(name(v.name), [_part(part, v.structure.get(part)) for part in parts]) for v in made]
    caption = "Parts that variants still have. A dash: as many as before, or a student that has no such parts."
    if "removed_layers" in parts:
        caption += (
            " Removed layers are numbered as in the model that they were removed from, in the order of removal, each "
            "with the divergence of the answers after it (KL divergence, in nats)."
        )
    return table("left", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _part(part: str, value: Any) -> Html:
    if value is None:
        return text_cell(missing_text("as before, or no such part"))
    if part == "layers":
        return text_cell(f"{words.count(len(value))}: {', '.join(map(str, value))}")
    if part == "removed_layers":
        return text_cell(", ".join(f"{layer} ({words.significant(nats, 2)})" for layer, nats in value))
    if part == "vocabulary":
        kept, total = value
        return text_cell(f"{words.count(kept)} of {words.count(total)}")
    if isinstance(value, list):
        return text_cell(", ".join(map(words.count, value)))
    return text_cell(words.count(value))


def sensitivity(findings: Findings) -> Html | None:
    """Which parts of quantised variants stayed in float, and why; None where that was not asked for."""
    measured = [(v, v.sensitivity) for v in findings.variants if v.sensitivity is not None]
    if not measured:
        return None
    caption = (
        "Parts that bear quantisation least stay in float (max_divergence of the method). Divergence: of the answers "
        "from those in float if this part alone is quantised, the mean KL divergence over training rows; the most "
        "sensitive part first."
    )
    heads = [head("part"), head("weights", "millions"), head("divergence", "nats"), head("squared error", "of logits")]
    heads.append(head("result", text=True))
    bodies = []
    for v, found in measured:
        title = element(
            "th", element("strong", name(v.name)), _mixture(found), colspan=str(len(heads)), scope="rowgroup"
        )
        bodies.append(element("tbody", element("tr", title, class_="group"), map(_sensitive, found.parts)))
    tall = sum(len(found.parts) for _, found in measured) >= TALL_FROM
    return table("sensitivity", caption, heads, bodies, tall=tall)


def _mixture(found: Sensitivity) -> str:
    kept = sum(part.kept for part in found.parts)
    stay = "stays" if kept == 1 else "stay"
    return (
        f": {words.count(kept)} of {words.counted(len(found.parts), 'part')} {stay} in float, divergence "
        f"{words.significant(found.divergence, 2)} nats (allowed: {found.max_divergence:g}; with "
        f"all parts quantised: {words.significant(found.all_quantized, 2)}), on "
        f"{words.counted(found.rows, 'training row')}"
    )


def _sensitive(part: PartSensitivity) -> Html:
    numbers = (part.weights / 1e6, part.divergence, part.squared_error)
    cells = [cell(words.significant(number, digits)) for number, digits in zip(numbers, (3, 2, 2), strict=True)]
    return row(part.part, [*cells, text_cell(element("strong", "float") if part.kept else "quantised")])
