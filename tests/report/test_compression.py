"""Rows that compression flips, when variants pay, recipes step by step, what is left of models, what stays float."""

import json
from pathlib import Path

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.compression.effect import StepEffect
from lspm_ray.compression.sensitivity import PartSensitivity, Sensitivity
from lspm_ray.page.markup import join, plain
from lspm_ray.report.build import DATA_FILE, MOST_CHARACTERS, PAGE_FILE
from lspm_ray.report.compression import advice, left, sensitivity
from lspm_ray.report.config import ReportConfig
from lspm_ray.report.findings import Findings
from tests.report.pages import Node, check_tables, parse
from tests.report.samples import TEXT, Run, row_ids

Case = tuple[Run, Artifact]


def text(case: Case) -> str:
    return case[1].read_bytes(PAGE_FILE).decode()


def rows_of(case: Case, table: str) -> list[list[str]]:
    return parse(text(case)).by_id(table).rows()


def findings(case: Case) -> Findings:
    return Findings.parse(case[1].read_json(DATA_FILE))


def number(shown: str) -> float | None:
    return None if shown == "–" else float(shown.replace(",", "").replace("−", "-"))


def close(values: list[float | None]) -> list[float | None]:
    """What these values may be shown as, with at least three digits."""
    return [None if value is None else pytest.approx(value, rel=0.006, abs=0.0) for value in values]


def percents(values: list[float | None]) -> list[float | None]:
    """What these shares may be shown as, in percent with one decimal."""
    return [None if value is None else pytest.approx(100 * value, abs=0.0501) for value in values]


def test_flips_on_the_selection_split_are_counted_variant_by_variant(case: Case) -> None:
    run = case[0]
    if not run.variants:
        assert "Rows that compression flips" not in text(case)
        return
    rows = rows_of(case, "t-flips")
    full = run.logits["full"]["selection"].argmax(1) == run.truth["selection"]
    assert [row[0] for row in rows] == list(run.variants)
    for row in rows:
        right = run.logits[row[0]]["selection"].argmax(1) == run.truth["selection"]
        lost, gained = int((full & ~right).sum()), int((~full & right).sum())
        assert row[1:] == [f"{lost:,}", f"{gained:,}", f"{lost + gained:,}", f"{100 * (lost + gained) / run.rows:.1f}"]
    assert f"{run.rows:,} rows of the selection split" in parse(text(case)).by_id("t-flips").text()


def test_flipped_rows_are_what_the_outputs_say(case: Case) -> None:
    run, found = case[0], findings(case)
    truth, order = run.truth["selection"], row_ids("selection", run.rows)
    answers = {name: run.logits[name]["selection"].argmax(1) for name in run.models}
    full_right = answers["full"] == truth
    flips = {
        row: [n for n in run.variants if (answers[n][row] == truth[row]) != full_right[row]] for row in range(run.rows)
    }
    listed = {order.index(entry.id): entry for entry in found.flipped}
    assert len(listed) == min(run.show.exemplars, sum(1 for models in flips.values() if models))
    least = min((len(entry.models) for entry in found.flipped), default=0)
    assert all(row in listed for row, models in flips.items() if len(models) > least)
    for row, entry in listed.items():
        assert entry.models == flips[row]
        assert entry.direction == ("lost" if full_right[row] else "gained")
        assert (entry.label, entry.full) == (run.labels[truth[row]], run.labels[answers["full"][row]])
        given = [run.labels[answers[model][row]] for model in entry.models]
        assert given.count(entry.answer) == max(map(given.count, given))


def test_flipped_rows_are_shown_with_their_classes(case: Case) -> None:
    run, flipped = case[0], findings(case).flipped
    if not flipped:
        assert "t-flipped" not in text(case)
        return
    rows = rows_of(case, "t-flipped")
    for row, entry in zip(rows, flipped, strict=True):
        shown = [plain(label) for label in (entry.label, entry.full, entry.answer)]
        which = ", ".join(entry.models)
        assert [cell.replace("|", "") for cell in row[-5:]] == [*shown, str(len(entry.models)), which]
        assert row[0] == entry.id[:16]
    assert f"of {len(run.variants)} variant" in parse(text(case)).by_id("t-flipped").text()


def test_texts_are_shown_only_where_asked_for(case: Case) -> None:
    run, flipped = case[0], findings(case).flipped
    begins = plain(TEXT)[:80]
    for content in (parse(text(case)).text(), json.dumps(case[1].read_json(DATA_FILE))):
        assert ("alert('a text')" in content) is run.show.texts
    if run.show.texts:
        assert flipped and all(len(entry.text or "") == MOST_CHARACTERS + 1 for entry in flipped)
        assert all(row[1].startswith(begins) and row[1].endswith("…") for row in rows_of(case, "t-flipped"))
    else:
        assert all(entry.text is None for entry in flipped)


def test_by_default_no_text_is_read(tmp_path: Path) -> None:
    run = Run(ArtifactStore(str(tmp_path)), rows=300, alpha=0.05, variants=("bag",))
    assert run.show == ReportConfig() and not run.show.texts
    (Path(run.data.uri) / "selection" / "part-00000.parquet").unlink()
    assert run.findings().flipped


def test_other_settings_give_another_report(tmp_path: Path) -> None:
    run = Run(ArtifactStore(str(tmp_path)), rows=300, alpha=0.05, variants=("bag",))
    before = run.report()
    run.show = ReportConfig(texts=True, exemplars=2)
    after = run.report()
    assert after.uri != before.uri
    assert len(Findings.parse(after.read_json(DATA_FILE)).flipped) == 2


def test_when_a_variant_pays_is_told_for_every_batch_size(case: Case) -> None:
    found = findings(case).break_even
    if not found:
        assert "When a cascade pays" not in text(case)
        return
    rows = rows_of(case, "t-pays")
    assert [(row[0], row[1], row[6]) for row in rows] == [(e.first, str(e.batch_size), e.finding()) for e in found]
    assert [number(row[2]) for row in rows] == close([e.cost for e in found])
    for row, entry in zip(rows, found, strict=True):
        assert [number(cell) for cell in row[3:6]] == percents([entry.most, entry.most_for_saving, entry.needed])


def test_recipes_are_shown_step_by_step(case: Case) -> None:
    made = [v for v in findings(case).variants if v.steps]
    if not made:
        assert "t-steps" not in text(case)
        return
    rows = rows_of(case, "t-steps")
    effects = [("full", made[0].steps[0]), *((v.name, effect) for v in made for effect in v.steps[1:])]
    assert [row[0] for row in rows] == [name for name, _ in effects]
    for row, (_, effect) in zip(rows, effects, strict=True):
        assert row[1].split(" (")[0] == ("–" if effect.step is None else effect.step["method"])
        shares = [effect.accuracy, effect.balanced_accuracy, effect.agreement]
        assert [number(row[column]) for column in (2, 3, 5)] == percents(list(shares))
        assert row[4] == f"{effect.loss:.3f}"
        assert [number(cell) for cell in row[6:]] == close([effect.files_mb, effect.parameters / 1e6])


def test_steps_are_told_with_the_settings_that_are_not_the_usual_ones(case: Case) -> None:
    asked = {row[1] for row in rows_of(case, "t-steps")} if case[0].variants else set()
    if "int8" in case[0].variants:
        assert "quantize_int8 (max_divergence=0.002)" in asked
    if "pruned" in case[0].variants:
        assert "prune (heads=0.5)" in asked


def test_what_is_left_of_a_model_is_shown_where_it_is_known(case: Case) -> None:
    known = {v.name: v.structure for v in findings(case).variants if v.structure}
    if not known:
        assert "t-left" not in text(case)
        return
    rows = {row[0]: row[1:] for row in rows_of(case, "t-left")}
    assert list(rows) == list(known)
    for variant, parts in known.items():
        shown = [cell for cell in rows[variant] if cell != "–"]
        assert ("2: 0, 5" in shown) is ("layers" in parts)
        assert ("9,000 of 30,522" in shown) is ("vocabulary" in parts)
        assert ("768, 700, 812, 768, 768, 1,024" in shown) is ("neurons" in parts)


def with_variant(tmp_path: Path, **changed: object) -> Findings:
    """Findings of a run whose only variant was changed."""
    found = Run(ArtifactStore(str(tmp_path)), rows=300, alpha=0.05, variants=("bag",)).findings()
    variants = [v.model_copy(update=changed) if v.name == "bag" else v for v in found.variants]
    return found.model_copy(update={"variants": variants})


def one_table(made: object) -> Node:
    root = parse(join([made if isinstance(made, str) else None]))
    assert check_tables(root) == 1
    return next(root.all("table"))


def test_every_part_that_methods_write_down_is_shown(tmp_path: Path) -> None:
    structure = {
        "layers": [0, 2, 3],
        "removed_layers": [[4, 0.0123], [1, 0.1]],
        "hidden_size": 1024,
        "heads": [6, 4, 12],
        "neurons": [1536, 700, 12],
        "vocabulary": [9000, 30522],
    }
    table = one_table(left(with_variant(tmp_path, structure=structure)))
    heads = [head.text() for head in next(table.all("thead")).all("th")]
    assert [
        head for part, head in zip(["variant", *structure], heads, strict=True) if part.split("_")[0] in head
    ] == heads
    shown = ["3: 0, 2, 3", "4 (0.012), 1 (0.10)", "1,024", "6, 4, 12", "1,536, 700, 12", "9,000 of 30,522"]
    assert table.rows() == [["bag", *shown]]
    assert left(with_variant(tmp_path, structure={"unheard of": 1})) is None


def test_what_stayed_in_float_is_shown_part_by_part(case: Case) -> None:
    measured = [v for v in findings(case).variants if v.sensitivity is not None]
    if not measured:
        assert "t-sensitivity" not in text(case)
        return
    (variant,) = measured
    title, *rows = rows_of(case, "t-sensitivity")
    found = variant.sensitivity
    assert found is not None
    assert title[0].startswith(f"{variant.name}|: 2 of 6 parts stay in float, divergence 0.0017 nats")
    assert "(allowed: 0.002; with all parts quantised: 0.012), on 128 training rows" in title[0]
    assert [row[0] for row in rows] == [part.part for part in found.parts]
    assert [row[4] for row in rows] == ["float" if part.kept else "quantised" for part in found.parts]
    for row, part in zip(rows, found.parts, strict=True):
        assert number(row[1]) == pytest.approx(part.weights / 1e6, rel=0.006)
        assert [number(cell) for cell in row[2:4]] == pytest.approx([part.divergence, part.squared_error], rel=0.06)


def test_a_single_part_in_float_stays_and_many_parts_scroll(tmp_path: Path) -> None:
    parts = [PartSensitivity(part=f"p{n}", weights=1, divergence=0.1, squared_error=0.0, kept=not n) for n in range(13)]
    found = Sensitivity(rows=16, max_divergence=0.05, all_quantized=0.2, divergence=0.04, parts=parts)
    made = sensitivity(with_variant(tmp_path, sensitivity=found))
    assert made is not None and 'class="scroll tall"' in made
    assert "1 of 13 parts stays in float" in one_table(made).text()


@pytest.mark.parametrize(
    ("methods", "after", "told"),
    [
        (["quantize_int8"], 0.894, True),
        (["quantize_static"], 0.85, True),
        (["quantize_int8"], 0.896, False),
        (["quantize_int4"], 0.7, False),
        (["quantization_aware", "quantize_int8"], 0.7, False),
    ],
)
def test_rounding_that_costs_more_than_half_a_point_asks_for_training_with_it(case, methods, after, told) -> None:
    found = findings(case)
    first = StepEffect(
        step=None, rows=9, accuracy=0.9, balanced_accuracy=0.9, loss=1, agreement=1, files_mb=1, parameters=9
    )
    accuracies = [0.9] * (len(methods) - 1) + [after]
    steps = [
        first.model_copy(update={"step": {"method": method}, "accuracy": value})
        for method, value in zip(methods, accuracies, strict=True)
    ]
    variant = found.variants[0].model_copy(update={"name": "mine", "steps": [first, *steps]})
    lines = [parse(join([line])).text() for line in advice(found.model_copy(update={"variants": [variant]}))]
    points = f"{100 * (0.9 - after):.1f}"
    assert lines == (
        [f"mine: {methods[0]} costs {points} points of accuracy. Try quantization_aware before it."] if told else []
    )
