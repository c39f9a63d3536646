from pathlib import Path

import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.recipe import FULL
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.profiling.baselines import LINEAR
from lspm_ray.report import words
from lspm_ray.report.findings import Findings
from tests.report.samples import Run


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (1, "1.00"), (0.0213, "0.0213"), (0.5, "0.500"), (12.34, "12.3"), (99.96, "100"), (100.4, "100"),
        (1234.5, "1,234"), (-0.25, "−0.250"), (0.00012, "0.000120"), (20000, "20,000"),
    ],
)  # fmt: skip
def test_significant(value: float, shown: str) -> None:
    assert words.significant(value) == shown


@pytest.mark.parametrize(
    ("change", "shown"), [(0.012, "+1.2"), (-0.012, "−1.2"), (0, "0.0"), (-0.0001, "0.0"), (0.0001, "0.0")]
)
def test_points(change: float, shown: str) -> None:
    assert words.points(change) == shown


@pytest.mark.parametrize(("share", "shown"), [(0.01, "1"), (0.005, "0.5"), (0.95, "95"), (0.0001, "0.01")])
def test_levels_have_the_digits_they_need(share: float, shown: str) -> None:
    assert words.level(share) == f"{shown}\N{NARROW NO-BREAK SPACE}%"


def test_percent() -> None:
    assert words.percent(0.90125) == "90.1"
    assert words.percent(0.90125, 2) == "90.12"
    assert words.percents(0.5) == "50.0\N{NARROW NO-BREAK SPACE}%"


def test_intervals_with_negative_ends_are_joined_by_a_word() -> None:
    assert words.interval(Estimate(value=0.5, low=0.4, high=0.6)) == "40.0–60.0"
    assert words.interval(Estimate(value=0, low=-0.01, high=0.01)) == "−1.0 to 1.0"


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (0.2, "80\u202f% less than the full model alone"),
        (1.0, "no saving"),
        (1.5, "50\u202f% more than the full model alone"),
    ],
)
def test_saving(cost: float, shown: str) -> None:
    assert words.saving(cost) == shown


def test_a_plugin_in_one_line() -> None:
    assert words.spec({"method": "onnx"}, "method") == "onnx"
    step = {"method": "prune", "heads": 0.5, "train": {"epochs": 2, "rate": 5e-5}}
    assert words.spec(step, "method") == "prune (heads=0.5, train={epochs=2, rate=5e-05})"


def test_hardware() -> None:
    found = {"cpu": "X", "cpus": 8, "machine": "x86_64", "gpus": ["A", "A", "B"]}
    assert words.hardware(found) == "X (8 CPUs, x86_64) with 2 × A, 1 × B"
    assert words.hardware({"cpu": "X", "cpus": 2, "machine": "x86_64", "gpus": []}) == "X (2 CPUs, x86_64), no GPU"


def test_counted() -> None:
    assert words.counted(1, "round") == "1 round"
    assert words.counted(1200, "row") == "1,200 rows"


def test_moment() -> None:
    assert words.moment("2026-01-31T09:30:12.000001+00:00") == "2026-01-31 09:30"


def test_only_what_differs_from_the_defaults_is_shown() -> None:
    defaults = {"layers": 2, "train": {"epochs": 3, "seed": 0}, "distill": {"weight": 0.7}}
    step = {"layers": 1, "train": {"epochs": 5, "seed": 0}, "distill": {"weight": 0.7}, "new": True}
    assert words.changed(step, defaults) == {"layers": 1, "train": {"epochs": 5}, "new": True}
    assert words.changed(defaults, defaults) == {}


def test_a_full_model_that_is_better_where_classes_count_the_same_is_not_advised_against(tmp_path: Path) -> None:
    found = Run(ArtifactStore(str(tmp_path))).findings()

    def with_balanced(full: float, linear: float) -> Findings:
        values = {FULL: full, LINEAR: linear}
        variants = [
            v.model_copy(update={"test": v.test.model_copy(update={"balanced_accuracy": interval(values[v.name])})})
            if v.name in values
            else v
            for v in found.variants
        ]
        chance = found.linear.model_copy(update={"distinguishable": False})
        return found.model_copy(update={"variants": variants, "linear": chance})

    def interval(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.02, high=value + 0.02)

    text, good = words.baseline(with_balanced(0.9, 0.8))
    assert good and "where every class counts the same, it is better" in text
    text, good = words.baseline(with_balanced(0.82, 0.8))
    assert not good and "consider using that" in text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999_999, "999,999"), (1_234_567, "1.23 million"), (2.5e12, "2.50 trillion")]
)
def test_large_numbers_get_a_word(number: float, text: str) -> None:
    assert words.large(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.94, "4.9 s"), (60, "1 min 00 s"), (750.4, "12 min 30 s"), (11_130, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_settings_are_one_line() -> None:
    rules = [{"rule": "length", "min_words": 5}, "lowercase"]
    assert words.settings({"a": 0.5, "rules": rules}) == "a=0.5, rules=[{rule=length, min_words=5}, lowercase]"
