"""The page: sections of words, tables and figures, in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable

from lspm_ray.compression.recipe import FULL
from lspm_ray.page.frame import Section, figure, numbers_in, page, tiles, verdict
from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import compression, tables, words
from lspm_ray.report.figures.confusion import CELL_NUMBERS_UP_TO, MOST_CLASSES, confusion
from lspm_ray.report.figures.latency import latency
from lspm_ray.report.figures.learning import learning_curves
from lspm_ray.report.figures.lengths import token_lengths
from lspm_ray.report.figures.pareto import pareto
from lspm_ray.report.figures.reliability import reliability
from lspm_ray.report.figures.risk import risk_curve
from lspm_ray.report.figures.series import short
from lspm_ray.report.findings import Findings
from lspm_ray.report.gears import gears
from lspm_ray.report.points import points
from lspm_ray.selection.plan import Certificate
from lspm_ray.training.gain import Gain

_SIDE_BY_SIDE = 8
"""Classes up to which two confusion matrices fit side by side."""


def render(findings: Findings) -> str:
    """The whole page; equal findings give equal bytes."""
    title = "Report: " + _task(findings)
    contents = ((anchor, text, content(findings)) for anchor, text, content in _SECTIONS)
    sections = [Section(*section) for section in contents if section[2] is not None]
    return page(title, _header(findings), sections, numbers_in(findings.code_version))


def _task(findings: Findings) -> str:
    labels = findings.labels
    names = " / ".join(short(label) for label in labels) if len(labels) <= 4 else f"{len(labels)} classes"
    return f"{str(findings.task.get('task', 'task')).replace('_', ' ')}, {names}"


def _header(findings: Findings) -> Child:
    made = f"Measured on {words.hardware(findings.hardware)}; {words.moment(findings.date)} UTC."
    return [
        element("p", made, class_="note"),
        element("p", words.headline(findings), class_="lead"),
        element("p", words.promise(findings), class_="lead"),
        element("p", words.why(findings), " ", element("a", "Why not the others?", href="#rejected"), class_="note"),
        _tiles(findings),
        _verdict(findings),
        tables.alternatives(findings),
    ]


def _tiles(findings: Findings) -> Html:
    plan, expected = findings.plan, findings.plan.expected
    names = [name(stage.model.name) for stage in plan.stages]
    serves = [part for each in names for part in (" → ", each)][1:]
    accuracy, full = expected["test_accuracy"], expected["test_full_accuracy"]
    gap = "the full model itself" if plan.stages[0].model.name == FULL else f"full model alone {words.percents(full)}"
    shown: list[tuple[str, Child, Child]] = [
        ("serves", serves, "first answer, then escalation" if len(names) > 1 else "alone"),
        ("expected cost", f"{words.times(expected['cost'])} {words.TIMES}", words.saving(expected["cost"])),
        ("escalated", f"{words.percents(expected['escalation_rate'])}", _escalation_note(findings)),
        ("accuracy on test", f"{words.percents(accuracy)}", gap),
    ]
    if findings.certificate is not None:
        bound = f"measured bound {words.percents(findings.certificate.upper_bound, 2)}"
        shown.append(("certified loss, at most", words.level(findings.certificate.alpha), bound))
    return tiles(shown)


def _escalation_note(findings: Findings) -> str:
    if len(findings.plan.stages) == 1:
        return "one model answers all"
    on_test = findings.plan.expected.get("test_escalation_rate")
    later = [stage.model.name for stage in findings.plan.stages[1:]]
    further = zip(words.passed_on(findings)[1:], later[1:], strict=True)
    told = f"of requests go to {later[0]}" + (f"; {words.percents(on_test)} on test" if on_test is not None else "")
    return told + "".join(f"; {words.percents(share)} further to {model}" for share, model in further)


def _verdict(findings: Findings) -> Html:
    text, good = words.baseline(findings)
    return verdict("Is a transformer needed at all?", text, good=good)


def _variants(findings: Findings) -> Child:
    plan = next(a for a in findings.alternatives if a.kind == "plan")
    point = plan if len(findings.plan.stages) > 1 else None
    shown = findings.variants
    majority = [v for v in shown if v.cost <= 0]
    left_out = "; ".join(f"{v.name} ({words.percents(v.test.accuracy.value)} accuracy)" for v in majority)
    note = (
        "Cheaper is left, better is up. Bars are intervals. The line joins the variants that no other dominates, which "
        "is decided on the selection split, so it may bend here. Hollow: dominated, or (squares) a baseline."
        + (" Star: the plan." if point else "")
        + (f" Without cost and therefore not drawn: {left_out}." if left_out else "")
    )
    pair = element(
        "div",
        figure(pareto(shown, point, FULL, "accuracy", anchor="pareto")),
        figure(pareto(shown, None, FULL, "balanced_accuracy", anchor="pareto-balanced")),
        class_="pair",
    )
    return [
        tables.quality(findings),
        element("h3", "Quality against cost"),
        pair,
        element("p", note, class_="note"),
        element("h3", "Speed and size"),
        tables.speed(findings),
        _company(findings),
        figure(
            latency(findings.variants, FULL, anchor="latency"),
            "From token ids to answer, medians over the rounds. Hollow: dominated.",
        ),
        _steps(findings),
    ]


def _company(findings: Findings) -> Child:
    """Which variants answer otherwise in other company, in a sentence each."""
    found = [(v.name, v.speed.company) for v in findings.variants if v.speed and v.speed.company]
    moved = [(variant, company) for variant, company in found if company.changed]
    if not moved:
        if not found:
            return None
        most = max(company.largest for _, company in found)
        rows = words.counted(max(company.rows for _, company in found), "row")
        return element(
            "p",
            f"None of {rows} is answered otherwise in a batch than alone, by any variant; probabilities differ by "
            f"up to {most:.2g}.",
            class_="note",
        )
    return [
        element(
            "p",
            name(variant),
            f" answers {words.counted(company.changed, 'row')} of {words.count(company.rows)} otherwise in a batch "
            f"than alone; probabilities differ by up to {company.largest:.2g}.",
            class_="note",
        )
        for variant, company in moved
    ]


def _steps(findings: Findings) -> Child:
    made = {
        "Recipes, step by step": compression.steps(findings),
        "What is left of the full model": compression.left(findings),
        "Parts that stay in float": compression.sensitivity(findings),
    }
    sections = [[element("h3", title), table] for title, table in made.items() if table is not None]
    return [*sections, *compression.advice(findings)]


def _classes(findings: Findings) -> Child:
    served = [v for v in findings.served if v.against_full is not None]
    lines = [_worst(v.name, v.recall_change) for v in served]
    return [
        (element("p", line) for line in lines if line),
        tables.recall_change(findings),
        None if findings.forgetting is None else compression.forgetting(findings.forgetting),
        _flips(findings),
    ]


def _flips(findings: Findings) -> Child:
    counts = compression.flips(findings.flips)
    if counts is None:
        return None
    return [
        element("h3", "Rows that compression flips"),
        counts,
        compression.flipped(findings.flipped, len(findings.flips)),
    ]


def _worst(model: str, changes: dict[str, float | None]) -> Child:
    known = {label: change for label, change in changes.items() if change is not None}
    if not known or min(known.values()) >= 0:
        return None
    label = min(known, key=lambda key: (known[key], key))
    change = words.points(known[label])
    return [name(model), " loses most on ", name(label), f": {change} points of recall before escalation."]


def _risk(findings: Findings) -> Child:
    if findings.curve is None:
        return element("p", "No variant got as far as certification, so there is no curve to show.")
    validator = words.spec(findings.plan.validator, "validator")
    of = findings.certificate.first.name if findings.certificate else "the best candidate, which is not served,"
    note = [
        "What happens on the calibration rows as ",
        name(of),
        " is trusted with more answers. Thresholds are walked from strict to lenient and stop before the bound "
        "crosses the promise; all that were certified are shaded.",
    ]
    return figure(risk_curve(findings.curve, validator, findings.promise.risk, anchor="risk"), note)


def _certificate(findings: Findings) -> Child:
    c = findings.certificate
    if c is None:
        asked = findings.promise
        return element(
            "p",
            f"{words.promise(findings)} Asked for was a {asked.risk} of at most {words.level(asked.alpha)} with "
            f"{words.level(1 - asked.delta)} confidence.",
        )
    alone = c.threshold is None
    rule = "every answer is accepted" if alone else f"answers are accepted from {c.threshold:.6g} up"
    entries: list[tuple[str, Child]] = [
        ("What is promised", words.promise(findings)),
        (
            "About what",
            [
                name(c.first.name),
                f" answering {'in place of' if c.last is None else 'before'} {(c.last or c.full).name}, its logits "
                f"divided by {c.temperature:.4g}{_recalibrated(c)}, judged by "
                f"{words.spec(c.validator, 'validator')}: {rule}.{_between(c)}{_refused(c)}",
            ],
        ),
        ("On what evidence", words.evidence(findings)),
        ("What happened on test", _on_test(findings)),
        ("Label sets", _label_sets(findings)),
        ("What is assumed", c.assumption[:1].upper() + c.assumption[1:] + "."),
        (
            "What is not promised",
            f"Nothing about a single answer, and nothing below {words.level(c.alpha)}: that the bound lies lower was "
            "found by looking. Where traffic drifts away from the calibration rows, the promise lapses.",
        ),
        ("How to check it", c.how_to_check or "Recompute it from the outputs named under lineage."),
        ("Certificate", element("code", findings.certificate_id)),
    ]
    listed = element("dl", ([element("dt", term), element("dd", text)] for term, text in entries if text))
    return [element("div", listed, class_="certificate"), *points(findings)]


def _on_test(findings: Findings) -> str:
    expected = findings.plan.expected
    if "test_risk" not in expected or findings.certificate is None:
        return ""
    return (
        f"{words.percents(expected['test_risk'], 2)} of the answers were "
        f"{words.loss_in_words(findings.certificate.risk)}; "
        f"accuracy was {words.percents(expected['test_accuracy'], 2)}, of the full model alone "
        f"{words.percents(expected['test_full_accuracy'], 2)}."
    )


def _rejected(findings: Findings) -> Child:
    if not findings.plan.reasons:
        return element("p", "There was nothing to reject: every variant made is in the plan.")
    return tables.rejected(findings)


def _pays(findings: Findings) -> Child:
    return compression.pays(findings.break_even)


def _load(findings: Findings) -> Child:
    return None if findings.gears is None else gears(findings.gears)


def _recalibrated(c: Certificate) -> str:
    return "" if c.calibrator is None else f" and its probabilities calibrated by {c.calibrator.kind} scaling"


def _between(c: Certificate) -> str:
    """What is asked before the last, and when it may answer."""
    told = [
        f" What it passes on is answered by {stage.model.name} from {limit:.6g} up, its logits divided by "
        f"{stage.temperature:.4g}."
        for stage, limit in zip(c.middle, c.default.middle_thresholds, strict=False)
    ]
    return "".join(told)


def _refused(c: Certificate) -> str:
    names = [words.spec(check, "check") for check in c.checks]
    return f" What these checks refuse is not accepted whatever its score: {', '.join(names)}." if names else ""


def _label_sets(findings: Findings) -> str:
    sets, expected = findings.plan.stages[0].label_sets, findings.plan.expected
    if sets is None:
        return ""
    return (
        f"Answers carry a set of labels that holds the true one with probability {words.level(sets.config.coverage)} "
        f"or more ({sets.config.kind}); on test {words.percents(expected['test_label_set_coverage'])} of the sets did, "
        f"with {expected['test_label_set_size']:.2f} labels on average."
    )


def _calibration(findings: Findings) -> Child:
    drawn = [
        figure(
            reliability(model, anchor=f"calibration-{index}"),
            [element("strong", name(model.model)), f", temperature {model.temperature:.3g}"],
        )
        for index, model in enumerate(findings.reliability)
    ]
    note = (
        f"Does a confidence of 80{words.PERCENT} mean that 80{words.PERCENT} are right? Bins of equal mass on test, "
        f"with 95{words.PERCENT} intervals. "
        "Temperatures, and what may follow them, were fitted on the selection split; answers do not change with them, "
        "probabilities do."
    )
    return [element("p", note), element("div", drawn, class_="pair")]


def _confusion(findings: Findings) -> Child:
    drawn = [
        [
            figure(
                confusion(matrix, findings.labels, model, anchor=f"confusion-{index}"),
                [element("strong", name(model)), ", on test, before any escalation"],
            ),
            tables.mistakes(findings, model) if len(matrix) > CELL_NUMBERS_UP_TO else None,
        ]
        for index, (model, matrix) in enumerate(findings.confusion.items())
    ]
    text = "Rows are true classes, columns predicted ones; the shade is the share of the true class."
    if len(findings.labels) > MOST_CLASSES:
        text = f"The {MOST_CLASSES - 1} most frequent classes are shown, the others added up. {text}"
    small = len(findings.labels) <= _SIDE_BY_SIDE
    return [element("p", text), element("div", (element("div", d) for d in drawn), class_="pair" if small else None)]


def _training(findings: Findings) -> Child:
    settings = ", ".join(f"{key} {value}" for key, value in findings.training.settings.items())
    return [
        figure(learning_curves(findings.training, anchor="learning")),
        tables.epochs(findings),
        element("p", f"Settings: {settings}.", class_="note"),
        *(_gain(findings.gain) if findings.gain is not None else ()),
    ]


def _gain(gain: Gain) -> list[Child]:
    return [
        element("h3", "What pretraining gave"),
        element("p", f"{gain.verdict[0].upper()}{gain.verdict[1:]}. Both were fine-tuned with the same settings."),
        tables.gain(gain),
    ]


def _data(findings: Findings) -> Child:
    data = findings.data
    notes = [f"{key}: {words.count(n)} rows" for key, n in data.notes.items() if n]
    return [
        element("ul", (element("li", warning) for warning in data.warnings)) if data.warnings else None,
        tables.rows_used(findings),
        element("p", "Noted and used all the same: ", "; ".join(notes), ".", class_="note") if notes else None,
        tables.classes(findings),
        figure(token_lengths(data, anchor="lengths"), _length_note(findings)),
    ]


def _length_note(findings: Findings) -> str:
    data = findings.data
    split = data.splits[0]
    length = data.token_length[split]
    return (
        f"Tokens per text, special tokens included, all splits. In {split}: mean {length.mean:.1f}, "
        f"median {length.p50}, 95{words.PERCENT} have at most {length.p95}, the longest {length.max}."
    )


def _lineage(findings: Findings) -> Child:
    return [
        element("p", f"Measured on {words.hardware(findings.hardware)}. Code version {findings.code_version}."),
        tables.lineage(findings.lineage),
    ]


_SECTIONS: list[tuple[str, str, Callable[[Findings], Child]]] = [
    ("variants", "Variants", _variants),
    ("risk", "Risk against threshold", _risk),
    ("certificate", "Certificate", _certificate),
    ("rejected", "Why the others are not served", _rejected),
    ("when-it-pays", "When a cascade pays", _pays),
    ("load", "What to serve at which load", _load),
    ("classes", "What compression forgets", _classes),
    ("calibration", "Calibration", _calibration),
    ("confusion", "Confusion", _confusion),
    ("training", "Training", _training),
    ("data", "Data", _data),
    ("lineage", "Lineage", _lineage),
]
