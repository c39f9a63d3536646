"""The page about a hyperparameter sweep."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.page.theme import DARK, LIGHT, SCALE
from lspm_ray.report.build import PAGE_FILE
from lspm_ray.report.figures.sweep_axes import Axis, places
from lspm_ray.report.figures.sweep_parallel import parallel, shade
from lspm_ray.report.figures.sweep_progress import best_so_far, curves
from lspm_ray.report.figures.sweep_results import importance, tradeoff
from lspm_ray.report.findings import Source
from lspm_ray.report.sweep import view, words
from lspm_ray.report.sweep.build import write_sweep_report
from lspm_ray.report.sweep.measure import Measure, focus, padded
from lspm_ray.report.sweep.page import render
from lspm_ray.report.words import percents
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Domain
from lspm_ray.tuning.sweep import Gap, Importance, Sweep
from tests.report.pages import Node, check_figures, check_page, check_tables, parse
from tests.report.sweeps import BOUNDED, HOSTILE_TEXTS, ONE, THREE, TWO, sample_sweep

COMMAND = "lspm run c.yaml --from-sweep runs/tune-0 a='{b: \"<c>\"}'"
SOURCE = Source(role="data", artifact="prepare-1", digest="d" * 64, created_utc="2026-01-31T09:30:00")


def all_failed() -> Sweep:
    sweep = sample_sweep(6, 4)
    lost = [
        trial.model_copy(update={"status": "failed", "values": {}, "history": [], "reason": "out of memory"})
        for trial in sweep.trials
        if not trial.finalist
    ]
    nothing: dict[str, Any] = {"finalists": [], "front": [], "importance": {}, "gap": None}
    return sweep.model_copy(update={"trials": lost, **nothing})


def equal_values() -> Sweep:
    sweep = sample_sweep(20, 4, TWO)
    same = {"accuracy": 0.5, "loss": 0.5, "latency_ms": 3.0}
    trials = [t.model_copy(update={"values": same if t.values else {}}) for t in sweep.trials]
    return sweep.model_copy(update={"trials": trials})


def unkept() -> Sweep:
    return sample_sweep(20, 4, {"objectives": {"accuracy": "max"}, "constraints": {"latency_ms": {"max": 0.1}}})


def hostile() -> Sweep:
    """Every text that somebody else chooses is hostile."""
    raw = json.loads(sample_sweep(20, 4, BOUNDED).model_dump_json())
    path, metric, bounded = f"finetune.{HOSTILE_TEXTS[0][:300]}", HOSTILE_TEXTS[1], HOSTILE_TEXTS[3]
    raw["space"][path] = {"choice": [*HOSTILE_TEXTS, {HOSTILE_TEXTS[0]: [HOSTILE_TEXTS[2], None, True, 1.5]}]}
    raw["importance"][path] = {"share": 0.9, "by_chance": 0.3}
    raw["searcher"]["text"] = raw["settings"]["text"] = HOSTILE_TEXTS[0]
    raw["goals"] = {"objectives": {metric: "max"}, "constraints": {bounded: {"max": 7.6}}}
    for number, trial in enumerate(raw["trials"]):
        trial["params"][path] = raw["space"][path]["choice"][number % 5]
        trial["reason"] = HOSTILE_TEXTS[number % 4]
        if trial["values"]:
            trial["values"] = {metric: trial["values"]["accuracy"], bounded: trial["values"]["latency_ms"]}
    for finalist in raw["finalists"]:
        finalist["params"][path] = raw["trials"][finalist["number"]]["params"][path]
    return Sweep.parse(raw)


# Name: the sweep, how many figures and tables its page has.
CASES: dict[str, tuple[Callable[[], Sweep], int, int]] = {
    "constraint": (sample_sweep, 5, 5),
    "one objective": (lambda: sample_sweep(20, 3, ONE), 4, 5),
    "one epoch": (lambda: sample_sweep(20, 3, ONE, epochs=1), 4, 5),
    "two objectives": (lambda: sample_sweep(30, 4, TWO), 5, 5),
    "three objectives": (lambda: sample_sweep(30, 4, THREE), 5, 5),
    "many trials and fields": (lambda: sample_sweep(300, 12, TWO), 5, 5),
    "one trial": (lambda: sample_sweep(1, 3, TWO), 5, 5),
    "all failed": (all_failed, 2, 4),
    "no trial": (lambda: sample_sweep(0, 2, ONE), 0, 3),
    "equal values": (equal_values, 5, 5),
    "constraint never kept": (unkept, 4, 4),
    "no gap, no importance": (lambda: sample_sweep(20, 3, gap=None, importance={}), 4, 5),
    "hostile": (hostile, 5, 5),
}


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return sample_sweep()


@pytest.fixture(scope="module")
def shown(sweep: Sweep) -> Node:
    return parse(render(sweep, [SOURCE], COMMAND))


def texts(drawn: str) -> list[str]:
    return [node.text() for node in parse(drawn).all("text")]


def measure_of(sweep: Sweep, name: str | None = None) -> Measure:
    return view.measures(sweep)[name or sweep.goals.first]


@pytest.mark.parametrize("case", list(CASES))
def test_the_page_is_sound_whatever_the_sweep(case: str) -> None:
    make, figures, tables = CASES[case]
    sweep = make()
    page = render(sweep, [SOURCE], COMMAND)
    root = parse(page)
    check_page(root)
    assert check_figures(root) == figures
    assert check_tables(root) == tables
    sections = [section.attributes["id"] for section in root.all("section")]
    assert [link.attributes["href"] for link in next(root.all("nav")).all("a")] == [f"#{anchor}" for anchor in sections]
    assert ("tradeoff" in sections) is (len(sweep.goals.names) > 1)
    assert len(page) < 700_000


def test_equal_sweeps_give_equal_pages(sweep: Sweep) -> None:
    again = Sweep.parse(json.loads(sweep.model_dump_json()))
    assert render(again, [SOURCE], COMMAND) == render(sweep, [SOURCE], COMMAND)


def test_hostile_text_is_shown_and_never_becomes_markup() -> None:
    page = render(hostile(), [SOURCE], f"{COMMAND} {HOSTILE_TEXTS[0]}")
    assert "<script" not in page.lower()
    assert "\u202e" not in page
    assert "\x07" not in page
    root = parse(page)
    assert HOSTILE_TEXTS[0] in next(root.all("pre")).text()
    assert "日本語 $a b$ 😀 zwei" in root.by_id("progress").text()
    assert max(len(text) for text in texts(page)) < 80
    assert not any("x" * 700 in node.text() for node in root.all("td"))


def test_the_header_says_what_was_tuned_and_who_won(sweep: Sweep, shown: Node) -> None:
    header = next(shown.all("header")).text()
    assert "8 fields tuned in 60 trials (19 done, 36 stopped early, 5 failed) and 8 repetitions of finalists" in header
    assert "in 2 starts" in header
    assert sweep.winner is not None
    assert f"Trial {sweep.winner.number} won: accuracy {100 * sweep.winner.mean.value:.1f}" in header
    assert "mean over 3 seeds" in header
    for path in sweep.winner.params:
        assert f"{path} = {view.value(sweep.winner.params[path])}" in header
    assert next(shown.all("pre")).text() == COMMAND


def test_without_a_winner_there_is_no_command_and_a_reason() -> None:
    for make, says in (
        (all_failed, "no trial was trained to its end"),
        (unkept, f"none of {len(view.done(unkept()))} finished trials keeps the constraints"),
        (lambda: sample_sweep(0, 2, ONE), "no trial was begun"),
    ):
        root = parse(render(make(), [], ""))
        header = next(root.all("header")).text()
        assert says in header
        assert not list(root.all("pre"))
        assert "won:" not in header


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], ""),
        ([True, True], "Every other finalist is worse by more than chance explains."),
        ([True, False], "cannot be told from it: the difference could be chance."),
        ([False, False, False], " and "),
    ],
)
def test_rivals_are_those_that_cannot_be_told_apart(sweep: Sweep, flags: list[bool], says: str) -> None:
    others = [f.model_copy(update={"distinguishable": d}) for f, d in zip(sweep.finalists[1:], flags, strict=False)]
    text = words.rivals(sweep.model_copy(update={"finalists": [sweep.finalists[0], *others]}))
    assert says in text
    assert bool(text) is bool(says)
    named = [int(number) for number in re.findall(r"\d+", text)]
    assert named == [f.number for f in others if not f.distinguishable]


@pytest.mark.parametrize(
    ("metric", "validation", "test", "good", "says"),
    [
        ("accuracy", 0.92, (0.91, 0.90, 0.93), True, "As far as can be told, yes"),
        ("accuracy", 0.92, (0.90, 0.89, 0.91), False, "it is 2.00 points worse"),
        ("accuracy", 0.92, (0.95, 0.94, 0.96), True, "Yes, and better"),
        ("loss", 0.30, (0.40, 0.38, 0.42), False, "it is 0.1"),
        ("loss", 0.30, (0.20, 0.18, 0.22), True, "Yes, and better"),
    ],
)
def test_the_gap_in_words(
    metric: str, validation: float, test: tuple[float, float, float], good: bool, says: str
) -> None:
    value, low, high = test
    gap = Gap(metric=metric, validation=validation, test=Estimate(value=value, low=low, high=high))
    found = words.gap(sample_sweep(10, 3, THREE).model_copy(update={"gap": gap}))
    assert found is not None
    assert says in found[0]
    assert found[1] is good


def test_the_best_so_far_gets_better_and_counts_only_what_may_win(sweep: Sweep) -> None:
    lucky = [t.model_copy(update={"values": t.values | {"accuracy": 0.99}}) if t.finalist else t for t in sweep.trials]
    best = view.running_best(sweep.model_copy(update={"trials": lucky}))
    values = [value for _, value in best]
    assert values == sorted(set(values))
    assert all(sweep.goals.violation(t.values) == 0 and not t.finalist for t, _ in best)
    kept = [t for t in sweep.trials if t.status == "done" and not t.finalist and t.values["latency_ms"] <= 7.6]
    assert values[-1] == max(t.values["accuracy"] for t in kept)
    least = view.running_best(sample_sweep(30, 4, THREE))
    assert [value for _, value in least] == sorted((value for _, value in least), reverse=True)


def test_the_course_of_the_sweep_counts_every_trial(sweep: Sweep) -> None:
    drawn = texts(best_so_far(sweep, measure_of(sweep), anchor="b"))
    assert {"done (12)", "breaks a constraint (7)", "finalist again (8)", "stopped (36)", "failed (5)"} <= set(drawn)
    assert "accuracy, %" in drawn
    assert "minutes since the sweep began, pauses not counted" in drawn


def test_values_that_are_far_off_do_not_flatten_the_others() -> None:
    sweep = sample_sweep(40, 4, THREE)
    lost = next(t for t in sweep.trials if t.status == "done" and t.number not in {f.number for f in sweep.finalists})
    values = {"loss": 1e6, "latency_ms": 5.0, "accuracy": 0.01}
    trials = [t.model_copy(update={"values": values}) if t is lost else t for t in sweep.trials]
    found = sweep.model_copy(update={"trials": trials})
    drawn = texts(best_so_far(found, measure_of(found), anchor="b"))
    assert "off the scale (1)" in drawn
    assert max(float(t) for t in drawn if re.fullmatch(r"\d+\.\d+", t) and "." in t) < 60
    section = parse(render(found, [], "")).by_id("settings-and-results").text()
    assert "1 trial, far worse in loss" in section


def test_parallel_axes_name_every_field_and_the_settings_of_the_winner(sweep: Sweep) -> None:
    drawn = texts(parallel(sweep, measure_of(sweep), anchor="p"))
    assert set(sweep.space) <= set(drawn)
    assert sweep.winner is not None
    assert f"winner: trial {sweep.winner.number}" in drawn
    for path in sweep.space:
        expected = view.value(sweep.winner.params[path]) if path in sweep.winner.params else "not used"
        assert expected in drawn
    assert drawn.count("not used") == 2 + sum(path not in sweep.winner.params for path in sweep.space)


def test_a_place_on_an_axis_follows_its_domain() -> None:
    rate = Axis.of("a", Domain(loguniform=(1e-5, 1e-1)))
    assert [rate.place(value) for value in (1e-5, 1e-3, 1e-1)] == pytest.approx([0, 0.5, 1])
    assert {"1e-05", "0.001", "0.1"} <= {label for _, label in rate.ticks}
    assert all(rate.place(float(label)) == pytest.approx(at) for at, label in rate.ticks)
    assert Axis.of("a", Domain(uniform=(0, 4))).place(1) == 0.25
    whole = Axis.of("a", Domain(randint=(1, 4)))
    assert [label for _, label in whole.ticks] == ["1", "2", "3", "4"]
    assert Axis.of("a", Domain(randint=(0, 1000))).place(250) == 0.25
    listed = Axis.of("a", Domain(choice=[2, True, "1", {"b": [1]}, None]))
    assert [listed.place(value) for value in (2, True, "1", {"b": [1]}, None)] == pytest.approx(
        [0.1, 0.3, 0.5, 0.7, 0.9]
    )
    assert listed.place("never heard of") is None


def test_many_options_are_named_in_part() -> None:
    axis = Axis.of("a", Domain(choice=[f"option {n}" for n in range(50)]))
    assert len(axis.ticks) <= 12
    assert axis.place("option 49") == pytest.approx(0.99)


def test_lines_through_the_same_option_lie_side_by_side_in_order() -> None:
    axis = Axis.of("a", Domain(choice=["x", "y"]))
    found = places(axis, [{"a": "x"}, {"a": "y"}, {}, {"a": "x"}, {"a": "x"}])
    first = [found[0], found[3], found[4]]
    assert found[2] is None
    assert found[1] == 0.75
    assert first == sorted(first, key=lambda place: place or 0)
    assert len(set(first)) == 3
    assert all(place is not None and 0 < place < 0.5 for place in first)


def test_better_results_stand_out_more_in_light_and_dark() -> None:
    for theme in (LIGHT, DARK):
        ratios = [_contrast(theme[name], theme["paper"]) for name in SCALE]
        assert ratios == sorted(ratios)
        assert ratios[0] >= 1.9
        assert ratios[-1] > 10
    assert [shade(place) for place in (0, 0.5, 1)] == [LIGHT["scale-1"], LIGHT["scale-5"], LIGHT["scale-8"]]


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_best_line_has_the_best_colour_whichever_way_is_better() -> None:
    for goals in (ONE, THREE):
        sweep = sample_sweep(30, 3, goals, finalists=0)
        drawn = parallel(sweep, measure_of(sweep), anchor="p")
        lines = [node.attributes.get("style", "") for node in parse(drawn).all("path")]
        coloured = [style for style in lines if "scale-" in style and "stroke-opacity" in style]
        assert "scale-8" in coloured[-1]
        assert len(coloured) == len(view.done(sweep))


def test_learning_curves_end_where_trials_were_stopped(sweep: Sweep) -> None:
    drawn = texts(curves(sweep, measure_of(sweep), anchor="c"))
    assert sweep.winner is not None
    assert {"stopped there (36)", f"trial {sweep.winner.number} (winner)", "epoch"} <= set(drawn)
    assert "accuracy on validation, %" in drawn


def test_long_learning_curves_stay_small_and_keep_their_ends() -> None:
    sweep = sample_sweep(60, 3, ONE, epochs=1500)
    drawn = curves(sweep, measure_of(sweep), anchor="c")
    assert len(drawn) < 250_000
    assert "1500" in parse(drawn).by_id("c-desc").text()


def test_importance_is_ranked(sweep: Sweep) -> None:
    shares = {path: Importance(share=part, by_chance=0.5) for path, part in {"a": 0.2, "b": 0.7, "c": 0.1}.items()}
    drawn = texts(importance(shares, anchor="i"))
    assert [text for text in drawn if text in "abc"] == ["b", "a", "c"]
    assert percents(0.7, 0) in drawn
    assert "most important field" in render(sweep.model_copy(update={"importance": shares}), [], "")
    chance = shares | {"b": Importance(share=0.7, by_chance=0.8)}
    assert "most important field" not in render(sweep.model_copy(update={"importance": chance}), [], "")
    assert "too few trials" in parse(render(sample_sweep(10, 3, importance={}), [], "")).by_id("importance").text()


def test_the_tradeoff_shows_front_bound_and_broken_constraints(sweep: Sweep) -> None:
    drawn = texts(tradeoff(sweep, measure_of(sweep, "latency_ms"), measure_of(sweep), anchor="t"))
    assert {"done (12)", "breaks a constraint (7)", "bound", "front (1)", "winner"} <= set(drawn)
    both = sample_sweep(60, 6, TWO)
    drawn = texts(tradeoff(both, measure_of(both, "latency_ms"), measure_of(both), anchor="t"))
    assert f"front ({len(both.front)})" in drawn
    assert "bound" not in drawn
    assert len(both.front) > 1
    assert all(f"trial {number}" in drawn for number in both.front[:5])


def test_finalists_are_in_the_table_with_every_seed(sweep: Sweep, shown: Node) -> None:
    rows = shown.by_id("t-finalists").rows()
    assert len(rows) == len(sweep.finalists)
    for row, finalist in zip(rows, sweep.finalists, strict=True):
        assert row[0].startswith(f"trial {finalist.number}")
        assert row[2] == " · ".join(f"{100 * score:.1f}" for score in finalist.scores)
        assert ("could be chance" in row[3]) is (finalist.behind is not None and not finalist.distinguishable)
        assert ("not distinguishable" in row[0]) is ("could be chance" in row[3])
        assert row[4] == f"{finalist.values['latency_ms']:.2f}"
        assert all(f"{path} = " in row[5] for path in finalist.params)
    assert "winner" in rows[0][0]


def test_every_trial_is_in_the_table(sweep: Sweep, shown: Node) -> None:
    rows = shown.by_id("t-trials").rows()
    assert [int(row[0].split("|")[0]) for row in rows] == [trial.number for trial in sweep.trials]
    heads = [head.text() for head in next(shown.by_id("t-trials").all("thead")).all("th")]
    rate = heads.index("learning_ratefinetune")
    for row, trial in zip(rows, sweep.trials, strict=True):
        assert row[1] == trial.status
        assert row[2] == (f"{100 * trial.values['accuracy']:.1f}" if trial.values else "–")
        assert row[4] == str(len(trial.history))
        assert row[rate] == view.value(trial.params["finetune.learning_rate"])
        assert row[-1] == trial.reason
        assert ("repeats" in row[0]) is trial.finalist


def test_a_trial_that_is_cut_off_is_counted_as_not_finished() -> None:
    sweep = sample_sweep(3, 3, ONE)
    cut = Trial(number=99, params={}, seed=0)
    text = words.tuned(sweep.model_copy(update={"trials": [*sweep.trials, cut]}))
    assert "1 not finished" in text
    check_page(parse(render(sample_sweep(0, 3, ONE).model_copy(update={"trials": [cut]}), [], "")))


def test_the_space_and_the_settings_are_listed(sweep: Sweep, shown: Node) -> None:
    rows = {row[0]: row for row in shown.by_id("t-space").rows()}
    assert rows["finetune.learning_rate"][1] == "1e-06 to 0.001, log scale"
    assert rows["finetune.batch_size"][1] == "16 · 32 · 64 · 128"
    assert rows["finetune.layers"][2] == "finetune.freeze = true"
    settings = {row[0]: row[1] for row in shown.by_id("t-settings").rows()}
    assert settings["constraints"] == "latency_ms at most 7.6"
    assert settings["searcher"] == "tpe (startup_trials=10)"
    assert settings["tune.trials"] == "60"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, "null"), (True, "true"), (3.14159e-5, "3.14e-05"), (64, "64"), ("x", "x"),
        ({"schedule": "cosine", "final": 0.1}, "{schedule: cosine, final: 0.1}"), ([1, False], "[1, false]"),
    ],
)  # fmt: skip
def test_values_are_written_as_in_yaml(setting: Any, expected: str) -> None:
    assert view.value(setting) == expected


def test_numbers_have_as_many_decimals_as_tell_them_apart() -> None:
    assert Measure.of("accuracy", True, [0.85, 0.92]).text(0.9012).split("\N{NARROW NO-BREAK SPACE}") == ["90.1", "%"]
    assert Measure.of("accuracy", True, [0.915, 0.92]).number(0.9176) == "91.76"
    assert Measure.of("loss", False, [0.31, 0.55]).number(0.3449) == "0.345"
    assert Measure.of("parameters", False, [1e6, 2e7]).number(1234567.0) == "1,234,567"
    assert Measure.of("loss", False, [0.5, 0.5]).number(0.5) == "0.5"
    assert Measure.of("loss", False, [0.31, 0.55]).number(-0.0001) == "0.000"
    assert Measure.of("loss", False, [-3, -1]).interval(Estimate(value=-2, low=-3, high=-1)) == "−3.00 to −1.00"
    assert Measure.of("loss", False, [1, 2]).number(3e12) == "3e+12"


def test_only_what_is_far_worse_is_out_of_focus() -> None:
    assert focus([0.9, 0.88, 0.87, 0.86, 0.1], True) == pytest.approx((0.74, 0.9))
    assert focus([1, 2, 3, 4, 1000], False) == (1, 13)
    assert focus([1, 2, 3, 4, 5], False) == (1, 5)
    assert focus([1, 2, 3, 4, 1000], None) == (1, 1000)
    assert focus([1, 2, 3, 4, 1000], True) == (1, 1000), "it is the best"
    assert focus([1, 1, 1], True) == (1, 1)
    low, high = padded(3, 3)
    assert low < 3 < high


def test_which_values_of_a_metric_are_better(sweep: Sweep) -> None:
    goals = Goals.parse({
        "objectives": {"loss": "min"},
        "constraints": {"latency_ms": {"max": 1}, "recall": {"min": 0.1}, "rows": {"min": 1, "max": 2}},
    })  # fmt: skip
    other = sweep.model_copy(update={"goals": goals})
    names = ("loss", "accuracy", "latency_ms", "recall", "rows", "unheard of")
    assert [view.higher(other, name) for name in names] == [False, True, False, True, None, None]


def test_the_page_is_a_file_of_the_artifact(sweep: Sweep, tmp_path: Any) -> None:
    store = ArtifactStore(str(tmp_path))
    data = store.make("prepare", {}, {}, lambda draft: None)
    made = store.make(
        "tune", {}, {"data": data.digest}, lambda draft: write_sweep_report(draft, sweep, {"data": data}, COMMAND)
    )
    page = made.read_bytes(PAGE_FILE).decode()
    assert parse(page).by_id("t-lineage").rows()[0][2] == data.digest[:16]
    assert "sweep.json and trials.parquet beside it" in page
