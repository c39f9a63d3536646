import functools
import re
from pathlib import Path

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.evaluation.calibration import Calibrator
from lspm_ray.evaluation.forgetting import ClassChange, Forgetting
from lspm_ray.page.markup import join, plain
from lspm_ray.profiling.table import Company
from lspm_ray.report import tables
from lspm_ray.report.build import DATA_FILE, PAGE_FILE
from lspm_ray.report.compression import MOST_CLASSES, PLAN, forgetting
from lspm_ray.report.findings import Findings
from lspm_ray.report.page import render
from lspm_ray.selection.conformal import ConformalConfig, LabelSets
from lspm_ray.selection.plan import ClassBound, MiddleStage, ModelRef
from tests.report.pages import (
    Node,
    check_figures,
    check_inert,
    check_outline,
    check_references,
    check_tables,
    parse,
)
from tests.report.samples import HOSTILE, Run

SECTIONS = [
    "variants", "risk", "certificate", "rejected", "when-it-pays", "load", "classes", "calibration", "confusion",
    "training", "data", "lineage",
]  # fmt: skip
Case = tuple[Run, Artifact]


def page(case: Case) -> Node:
    return _parsed(text(case))


@functools.cache
def _parsed(html: str) -> Node:
    return parse(html)


def text(case: Case) -> str:
    return case[1].read_bytes(PAGE_FILE).decode()


def findings(case: Case) -> Findings:
    return Findings.parse(case[1].read_json(DATA_FILE))


def test_every_section_is_there_and_linked(case: Case) -> None:
    found = page(case)
    expected = [section for section in SECTIONS if section != "when-it-pays" or findings(case).break_even]
    assert [section.attributes["id"] for section in found.all("section")] == expected
    links = [link.attributes["href"] for link in next(found.all("nav")).all("a")]
    assert links == [f"#{section}" for section in expected]


def test_headings_form_an_outline(case: Case) -> None:
    check_outline(page(case))


def test_every_table_has_a_caption_and_as_many_cells_as_heads(case: Case) -> None:
    assert check_tables(page(case)) >= 8


def test_every_figure_says_what_it_shows(case: Case) -> None:
    assert check_figures(page(case)) >= 7


def test_ids_are_unique_and_references_lead_somewhere(case: Case) -> None:
    check_references(page(case))


def test_nothing_is_loaded_and_nothing_runs(case: Case) -> None:
    assert "//" not in re.sub(r"&[a-z]+;", "", text(case)).replace("</", ""), "no address of any kind"
    assert "@import" not in text(case)
    check_inert(page(case))


def test_names_are_shown_and_never_become_markup(case: Case) -> None:
    content = text(case)
    assert "<script" not in content
    assert "\u202e" not in content
    assert "\x07" not in content
    if case[0].labels != HOSTILE:
        return
    shown = [row[0] for row in page(case).by_id("t-recall").rows()]
    assert shown == [HOSTILE[0], HOSTILE[1], "evil\N{REPLACEMENT CHARACTER}", HOSTILE[3]]
    assert f"no row in test has label {HOSTILE[0]}" in page(case).by_id("data").text()


def test_every_number_of_the_quality_table_is_in_the_json(case: Case) -> None:
    table = {row[0].split("|")[0]: row[1:] for row in page(case).by_id("t-quality").rows() if len(row) > 1}
    names = ["accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "log_loss", "calibration_error"]
    columns = [0, 2, 3, 4, 5, 6]
    assert list(table) == [v.name for v in findings(case).variants]
    for v in findings(case).variants:
        for name, column in zip(names, columns, strict=True):
            scale, digits = (1, 3) if name == "log_loss" else (100, 1)
            e = getattr(v.test, name)
            value, low, high = (f"{scale * x:.{digits}f}" for x in (e.value, e.low, e.high))
            assert table[v.name][column] == f"{value}|{low}–{high}"
        assert table[v.name][7] == f"{100 * v.agreement:.1f}"


def test_classes_that_are_lost_are_told_with_a_verdict(case: Case) -> None:
    found = findings(case).forgetting
    assert found is not None
    judged = ({PLAN: found.plan} if found.plan else {}) | found.alone
    if not judged:
        assert "t-forgetting" not in text(case)
        return
    heads = [head.text() for head in page(case).by_id("t-forgetting").all("th") if head.attributes["scope"] == "col"]
    assert heads == ["class", "rows", *(f"{model}points lost" for model in judged)]
    labels = [plain(change.label) for change in next(iter(judged.values()))]
    rows = page(case).by_id("t-forgetting").rows()
    assert len(rows) == min(MOST_CLASSES, len(labels))
    for row in rows:
        for shown, changes in zip(row[2:], judged.values(), strict=True):
            change = changes[labels.index(row[0])]
            drop, counts, verdict = shown.split("|")
            assert row[1] == f"{change.rows:,}"
            assert float(drop.replace("−", "-")) == pytest.approx(100 * change.drop, abs=0.051)
            assert counts == f"{change.lost:,} lost, {change.gained:,} gained"
            assert verdict[0] in "✓✗?" and verdict[2:] == change.verdict
    forgotten = {model for model, changes in found.alone.items() if any(c.verdict == "forgotten" for c in changes)}
    told = page(case).by_id("classes").text()
    assert all(f"{model} alone forgets" in told for model in forgotten)
    assert ("No model, nor the plan" in told) is not any(
        change.verdict == "forgotten" for changes in judged.values() for change in changes
    )


def test_of_many_classes_all_that_are_forgotten_and_the_worst_are_shown() -> None:
    changes = [ClassChange(label=f"c{i}", rows=100, right=90, lost=i, gained=0, verdict="kept") for i in range(40)]
    changes[2] = changes[2].model_copy(update={"verdict": "forgotten"})
    shown = table_of(Forgetting(bound=0.05, alone={"a": changes, "b": changes[:39]}, plan=[]))
    assert [row[0] for row in shown.rows()] == ["c2", *(f"c{i}" for i in range(21, 40))]
    assert shown.rows()[-1][3] == "–"
    assert "20 classes that lose less are left out." in shown.text()
    many = [change.model_copy(update={"verdict": "forgotten"}) for change in changes[:25]]
    assert len(table_of(Forgetting(bound=0.05, alone={"a": many}, plan=[])).rows()) == 25


def test_a_plan_that_forgets_is_told_even_where_no_model_does_alone() -> None:
    lost = ClassChange(label="rare", rows=100, right=90, lost=40, gained=0, verdict="forgotten")
    unsure = lost.model_copy(update={"label": "few", "rows": 4, "lost": 1, "verdict": "cannot be told"})
    told = summary_of(Forgetting(bound=0.05, alone={"a": [unsure]}, plan=[lost, unsure]))
    assert "Forgotten is a class that loses more than 5 points of recall." in told
    assert f"{PLAN} forget 1 class, most of all rare (40.0 points)." in told
    assert "For 1 of 2 classes it cannot be told" in told
    assert "No bound is set" in summary_of(Forgetting(bound=None, alone={"a": [unsure]}, plan=[]))


def table_of(found: Forgetting) -> Node:
    return parse(join(forgetting(found))).by_id("t-forgetting")


def summary_of(found: Forgetting) -> str:
    return next(parse(join(forgetting(found))).all("p")).text()


def test_gears_are_shown_with_what_they_do_and_where_there_is_none(case: Case) -> None:
    found = findings(case).gears
    assert found is not None
    rows = page(case).by_id("t-gears").rows()
    planned = [shift for shift in found.shifts if shift.gear]
    assert [row[0] for row in rows] == [f"{shift.rate:g}" for shift in planned]
    assert [row[7] for row in rows] == [f"{shift.gear.cpus:g}" for shift in planned if shift.gear]
    assert [shift.rate for shift in found.shifts if not shift.gear][-1] == 20_000
    assert f"requests/s: {found.shifts[-1].reason}." in page(case).by_id("load").text()
    assert "nothing is sent past it" in page(case).by_id("load").text()


def test_runs_of_older_versions_are_shown_without_what_they_do_not_have(tmp_path: Path) -> None:
    run = Run(ArtifactStore(str(tmp_path)), rows=300, variants=("bag",), old=True)
    found = parse(run.report().read_bytes(PAGE_FILE).decode())
    shown = found.text()
    assert "Recipes, step by step" not in shown and "When a cascade pays" not in shown
    assert "What to serve at which load" not in shown
    assert run.findings().forgetting is None and not run.findings().break_even


def test_differences_from_full_say_when_they_could_be_chance(case: Case) -> None:
    table = {row[0].split("|")[0]: row[2] for row in page(case).by_id("t-quality").rows() if len(row) > 1}
    for v in findings(case).variants:
        if v.against_full is None:
            assert table[v.name] == "–"
            continue
        assert ("could be chance" in table[v.name]) is not v.against_full.distinguishable
        shown = float(table[v.name].split("|")[0].replace("−", "-"))
        assert shown == pytest.approx(100 * v.against_full.difference.value, abs=0.051)


def test_every_number_of_the_speed_table_is_in_the_json(case: Case) -> None:
    table = {row[0].split("|")[0]: row[1:] for row in page(case).by_id("t-speed").rows() if len(row) > 1}
    for v in findings(case).variants:
        shown = [None if cell == "–" else float(cell.replace(",", "")) for cell in table[v.name]]
        assert shown[0] == pytest.approx(v.cost, rel=0.006)
        if v.speed is None:
            assert shown[1:] == [None] * 8
            continue
        s = v.speed
        assert shown[1:] == pytest.approx(
            [s.p50_ms, s.p99_ms, *s.rows_per_s.values(), s.peak_memory_mb, s.size_mb, s.load_s], rel=0.006
        )


def test_one_thread_has_a_column_where_it_was_measured(case: Case) -> None:
    found = findings(case)
    variants = [
        v.model_copy(update={"speed": v.speed.with_one_thread(v.speed)}) if v.speed else v for v in found.variants
    ]
    html = str(tables.speed(found.model_copy(update={"variants": variants})))
    table = parse(f"<html><body>{html}</body></html>").by_id("t-speed")
    shown = {row[0].split("|")[0]: row[-1].replace(",", "") for row in table.rows() if len(row) > 1}
    assert "one thread" in table.text() and "one thread" not in page(case).by_id("t-speed").text()
    for v in found.variants:
        if v.speed is None:
            assert shown[v.name] == "–"
        else:
            assert float(shown[v.name]) == pytest.approx(v.speed.best_rows_per_s, rel=0.006)


def test_recall_changes_are_in_the_json_and_absent_classes_have_none(case: Case) -> None:
    compressed = [v for v in findings(case).variants if v.servable and v.against_full]
    rows = page(case).by_id("t-recall").rows()
    full = findings(case).variants[0]
    assert len(rows) == len(findings(case).labels)
    for row, entry in zip(rows, full.test.classes, strict=True):
        assert row[1] == f"{entry.support:,}"
        for cell, v in zip(row[3:], compressed, strict=True):
            change = v.recall_change[entry.label]
            assert (cell == "–") is (change is None)
            if change is not None:
                assert float(cell.replace("−", "-")) == pytest.approx(100 * change, abs=0.051)


def test_rows_are_accounted_for(case: Case) -> None:
    rows = page(case).by_id("t-rows").rows()
    read, *lost, kept = (int(row[2].replace(",", "")) for row in rows)
    assert read == sum(lost) + kept
    assert ["dropped", "no text", "845"] in [row[:3] for row in rows]
    by_class = page(case).by_id("t-classes").rows()
    totals = [int(cell.replace(",", "")) for cell in next(r for r in by_class if r[0] == "all classes")[1:-1]]
    assert totals[-1] == kept == sum(totals[:-1])


def test_reasons_of_the_rejected_are_there(case: Case) -> None:
    reasons = findings(case).plan.reasons
    section = page(case).by_id("rejected")
    if not reasons:
        assert "nothing to reject" in section.text()
        return
    assert {row[0]: row[1] for row in section.rows()} == reasons


def test_the_certificate_says_what_is_promised_and_on_what_evidence(case: Case) -> None:
    found, section = findings(case), page(case).by_id("certificate").text()
    c = found.certificate
    if c is None:
        assert "There is no certificate" in section
        assert not list(page(case).by_id("certificate").all("dl"))
        return
    assert f"{c.alpha:.0%}".rstrip("%") in section
    assert f"{c.losses:,} " in section
    assert f"{c.calibration_rows:,} calibration rows" in section
    assert f"{100 * c.upper_bound:.2f}" in section
    assert c.id in section
    assert c.how_to_check in section
    assert "drawn independently from one distribution" in section


def test_the_certified_points_are_listed_with_what_an_answer_costs_under_each(case: Case) -> None:
    found = findings(case)
    if found.certificate is None:
        assert "t-points" not in [node.attributes.get("id") for node in page(case).every()]
        return
    default = found.certificate.default
    bounds = [ClassBound(label="<i>", alpha=0.05, rows=300, losses=4, p_value=0.01, upper_bound=0.031)]
    lenient = default.model_copy(update={"alpha": 0.5, "default": False, "losses": 123})
    several = found.certificate.model_copy(
        update={
            "points": [default.model_copy(update={"classes": bounds}), lenient],
            "left_out": {"0.001": "needs 2,995 calibration rows"},
        }
    )
    told = parse(render(found.model_copy(update={"certificate": several})))
    served, other = told.by_id("t-points").rows()
    assert [served[0], other[0], other[2]] == [f"{100 * default.alpha:g}", "50", "123"]
    section = told.by_id("certificate").text()
    assert "An answer costs" in section and "No point at alpha = 0.1" in section
    assert told.by_id("t-class-bounds").rows() == [["<i>", "5", "4", "300", "3.10"]]


def test_answers_that_depend_on_the_batch_are_told(case: Case) -> None:
    found = findings(case)

    def told(changed: int) -> str:
        company = Company(rows=256, changed=changed, largest=0.0421)
        first = [
            v.model_copy(update={"speed": v.speed.model_copy(update={"company": company})}) if v.speed else v
            for v in found.variants[:1]
        ]
        shown = parse(render(found.model_copy(update={"variants": [*first, *found.variants[1:]]})))
        return shown.by_id("variants").text()

    assert "in a batch than alone" not in page(case).by_id("variants").text()
    assert "answers 3 rows of 256 otherwise in a batch than alone; probabilities differ by up to 0.042" in told(3)
    assert "None of 256 rows is answered otherwise in a batch than alone, by any variant; probabilities" in told(0)


def test_the_top_says_what_is_served(case: Case) -> None:
    top = next(page(case).all("header")).text()
    stages = [stage.model.name for stage in findings(case).plan.stages]
    if len(stages) == 2:
        assert f"{stages[0]} answers first" in top
    else:
        assert "alone" in top
    assert "Is a transformer needed at all?" in top
    assert findings(case).baseline_verdict[1:] in top


def test_a_model_in_the_middle_is_told_of(case: Case) -> None:
    """A plan of two with another variant between them: the names and shares of all three are shown."""
    found = findings(case)
    if found.certificate is None or len(found.plan.stages) != 2 or len(found.plan.labels) > 2:
        pytest.skip("one case will do")
    first, last = found.plan.stages
    variant = next(v for v in found.variants if v.servable and v.name not in (first.model.name, last.model.name))
    model = ModelRef(name=variant.name, uri="/m", digest="d")
    shares = {"middle_thresholds": [0.75], "middle_escalation_rates": [0.03]}
    points = [point.model_copy(update=shares) for point in found.certificate.points]
    middle = first.model_copy(update={"model": model, "threshold": 0.75})
    plan = found.plan.model_copy(update={"stages": [first, middle, last], "points": points})
    certificate = found.certificate.model_copy(
        update={"points": points, "middle": [MiddleStage(model=model, temperature=1.25)]}
    )
    shown = parse(render(found.model_copy(update={"plan": plan, "certificate": certificate})))
    top = next(shown.all("header")).text()
    assert re.search(rf"on to {variant.name}, which passes 3\.0.% on to {last.model.name}; expected cost", top)
    assert f"{first.model.name} → {variant.name} → {last.model.name}" in top
    assert f"answered by {variant.name} from 0.75 up, its logits divided by 1.25." in shown.by_id("certificate").text()
    assert "answers next" in shown.by_id("variants").text()


def test_the_curve_is_drawn_where_there_is_one(case: Case) -> None:
    drawings = list(page(case).by_id("risk").all("svg"))
    assert len(drawings) == (0 if findings(case).curve is None else 1)


def test_training_shows_every_epoch_and_the_kept_one(case: Case) -> None:
    rows = page(case).by_id("t-epochs").rows()
    training = findings(case).training
    assert len(rows) == len(training.history)
    assert [row[0] for row in rows if "kept" in row[0]] == [f"{training.best_epoch} (kept)"]


def test_what_follows_the_temperature_and_what_is_refused_is_told(case: Case) -> None:
    found = findings(case)
    if found.certificate is None or len(found.plan.labels) > 2:
        pytest.skip("one case will do")
    html = text(case)
    assert "calibrated by" not in html and "refuse is not accepted" not in html and "set of labels" not in html
    calibrator = Calibrator(kind="isotonic", x=(0.0, 1.0), y=(0.1, 0.9))
    certificate = found.certificate.model_copy(
        update={"calibrator": calibrator, "checks": [{"check": "length", "min_tokens": 3}]}
    )
    limits = (0.5,) * len(found.plan.labels)
    sets = LabelSets(config=ConformalConfig(coverage=0.9, kind="aps"), level=0.95, limits=limits, rows=9)
    first = found.plan.stages[0].model_copy(update={"label_sets": sets})
    expected = found.plan.expected | {"test_label_set_coverage": 0.912, "test_label_set_size": 1.5}
    plan = found.plan.model_copy(update={"stages": [first, *found.plan.stages[1:]], "expected": expected})
    words = render(found.model_copy(update={"certificate": certificate, "plan": plan}))
    assert "its probabilities calibrated by isotonic scaling, judged by" in words
    assert "What these checks refuse is not accepted whatever its score: length (min_tokens=3)." in words
    assert re.search(
        r"with probability 90.% or more \(aps\); on test 91\.2.% of the sets did, with 1\.50 labels", words
    )
