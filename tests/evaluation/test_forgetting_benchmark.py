"""benchmarks/forgetting.py, and that docs/decisions/forgetting-gate.md says what it finds."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import multinomial

from lspm_ray.evaluation.forgetting import verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_forgetting", ROOT / "benchmarks" / "forgetting.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("rows", "drop", "classes"), [(12, 0.5, 2), (30, 0.3, 2), (24, 0.6, 10)])
def test_power_is_the_sum_over_all_outcomes(benchmark: ModuleType, rows: int, drop: float, classes: int) -> None:
    outcomes = (
        (lost, gained) for lost, gained in itertools.product(range(rows + 1), repeat=2) if lost + gained <= rows
    )
    shares = [drop + benchmark.GAINED, benchmark.GAINED, 1 - drop - 2 * benchmark.GAINED]
    expected = sum(
        multinomial.pmf([lost, gained, rows - lost - gained], rows, shares)
        for lost, gained in outcomes
        if verdict(lost, gained, rows, benchmark.BOUND, 0.05 / classes) == "forgotten"
    )
    assert 0.1 < expected < 0.99
    assert benchmark.power(rows, drop, classes) == pytest.approx(expected, abs=1e-6)


def test_without_a_drop_hardly_anything_is_found(benchmark: ModuleType) -> None:
    assert benchmark.power(100, benchmark.BOUND, 2) <= 0.025


@pytest.mark.parametrize(("drop", "classes", "rows"), [(0.1, 2, 481), (0.2, 2, 96), (0.3, 60, 90), (0.5, 10, 32)])
def test_so_many_rows_are_needed_and_fewer_are_not_enough(
    benchmark: ModuleType, drop: float, classes: int, rows: int
) -> None:
    assert benchmark.power(rows, drop, classes) >= benchmark.CHANCE
    assert benchmark.power(int(0.9 * rows), drop, classes) < benchmark.CHANCE


def test_the_page_has_the_numbers_that_were_found() -> None:
    found = json.loads((ROOT / "docs" / "measured" / "forgetting.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "decisions" / "forgetting-gate.md").read_text(encoding="utf-8")
    classes = [int(number) for number in re.findall(r"\| (\d+) classes", page)]
    lines = re.findall(r"^\| (\d+) points \|(.*)\|$", page, flags=re.M)
    shown = {
        (int(points) / 100, count): int(cell)
        for points, cells in lines
        for count, cell in zip(classes, cells.split("|"), strict=True)
    }
    assert shown == {(entry["drop"], entry["classes"]): entry["rows"] for entry in found["needed"]}
    assert len(shown) == 15


def test_rows_that_an_identical_variant_would_need_to_prove_it_are_those_of_the_page() -> None:
    for rows, level in ((103, 0.05 / 2), (175, 0.05 / 60)):
        assert verdict(0, 0, rows, 0.05, level) == "kept"
        assert verdict(0, 0, rows - 1, 0.05, level) == "cannot be told"
