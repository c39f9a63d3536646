import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.space import Domain, Space, matching


def space(**domains):
    return Space({path.replace("__", "."): Domain.parse(domain) for path, domain in domains.items()})


@pytest.mark.parametrize(
    ("raw", "kind", "bounds", "values", "extremes"),
    [
        (
            {"choice": ["a", None, [1], {"k": 2}]},
            "choice",
            None,
            ["a", None, [1], {"k": 2}],
            ["a", None, [1], {"k": 2}],
        ),
        ({"grid": [1, 2]}, "grid", None, [1, 2], [1, 2]),
        ({"uniform": [-1, 2.5]}, "uniform", (-1, 2.5), None, [-1, 2.5]),
        ({"loguniform": [1e-5, 1]}, "loguniform", (1e-5, 1), None, [1e-5, 1]),
        ({"randint": [-1, 2]}, "randint", (-1, 2), [-1, 0, 1, 2], [-1, 2]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_of_domains(raw, kind, bounds, values, extremes):
    domain = Domain.parse(raw)
    assert (domain.kind, domain.bounds, domain.extremes) == (kind, bounds, extremes)
    assert (domain.values if values is None else list(domain.values)) == values
    random = np.random.default_rng(0)
    drawn = [domain.draw(random) for _ in range(200)]
    if values is not None:
        assert all(value in drawn for value in values)
        assert all(value in values for value in drawn)
    else:
        assert min(drawn) < np.quantile(extremes, 0.1)
        assert all(extremes[0] <= value <= extremes[1] for value in drawn)
    json.dumps(drawn)  # what is drawn is written down


def test_logarithms_are_uniform():
    random = np.random.default_rng(0)
    drawn = np.array([Domain(loguniform=(1e-6, 1.0)).draw(random) for _ in range(2000)])
    assert np.mean(drawn < 1e-3) == pytest.approx(0.5, abs=0.05)
    assert np.mean(drawn < 1e-5) == pytest.approx(1 / 6, abs=0.05)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "give one of choice, grid, uniform, loguniform, randint, not none"),
        ({"choice": [1], "grid": [1]}, "give one of .*, not choice, grid"),
        ({"uniform": [0, 1], "randint": [0, 1]}, "not uniform, randint"),
        ({"choice": []}, "choice: .*at least 1"),
        ({"grid": []}, "grid: .*at least 1"),
        ({"uniform": [1, 1]}, "uniform needs a lower and a higher number"),
        ({"loguniform": [2, 1]}, "loguniform needs a lower and a higher number"),
        ({"randint": [3, 3]}, "randint needs a lower and a higher number"),
        ({"uniform": [0, 0]}, "uniform needs a lower and a higher number"),
        ({"loguniform": [0, 1]}, "numbers above zero"),
        ({"loguniform": [-1, 1]}, "numbers above zero"),
        ({"randint": [0.5, 3]}, "randint"),
        ({"uniform": [0]}, "uniform"),
        ({"uniform": [0, math.inf]}, "finite"),
        ({"choice": [1, 2, 1]}, "1 is given twice"),
        ({"grid": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]}, "is given twice, or is equal"),
        ({"choice": [False, 0]}, "0 is given twice, or is equal to a value before it"),
        ({"choice": [math.inf]}, "inf cannot be written down as JSON"),
        ({"choice": [math.nan]}, "nan cannot be written down"),
        ({"choice": [{1: "a"}]}, "cannot be written down"),
        ({"choice": [1], "wen": {}}, "did you mean `when`"),
    ],
)
def test_bad_domains_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        Domain.parse(raw)


def test_a_wide_range_of_whole_numbers_costs_nothing():
    tracemalloc.start()
    domain = Domain.parse({"randint": [0, 2**40]})
    assert 0 <= domain.draw(np.random.default_rng(0)) <= 2**40
    assert list(itertools.islice(Space({"finetune.seed": domain}).points(), 2)) == [
        {"finetune.seed": 0},
        {"finetune.seed": 1},
    ]
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("wanted", "value", "holds"),
    [("a", "a", True), ("a", "b", False), (["a", "b"], "b", True), (["a"], "b", False), ([["a"]], ["a"], True)],
)
def test_matching(wanted, value, holds):
    assert matching(value, wanted) is holds


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (
            {"f__a": {"choice": [1], "when": {"f.b": 1}}, "f__c": {"choice": [1]}},
            r"tune\.space\.f\.a\.when: no such field is varied \(got 'f\.b'\); valid: f\.a, f\.c",
        ),
        (
            {"f__a": {"choice": [1], "when": {"f.b": [1, 3]}}, "f__b": {"choice": [1, 2]}},
            r"tune\.space\.f\.a\.when: `f\.b` never has this value \(got 3\); valid: 1, 2",
        ),
        (
            {"f__a": {"choice": [1], "when": {"f.b": []}}, "f__b": {"choice": [1, 2]}},
            r"tune\.space\.f\.a\.when: no value of `f\.b` is listed \(got \[\]\); valid: 1, 2",
        ),
        (
            {"f__a": {"choice": [1], "when": {"f.b": 1}}, "f__b": {"randint": [1, 2]}},
            r"tune\.space\.f\.a\.when: .*listed values \(got 'f\.b'\)",
        ),
        (
            {"f__a": {"choice": [1], "when": {"f.b": 1}}, "f__b": {"choice": [1], "when": {"f.a": 1}}},
            r"tune\.space: conditions go in a circle \(got 'f\.a, f\.b'\)",
        ),
        ({"f__a": {"choice": [1], "when": {"f.a": 1}}}, "circle"),
        (
            {"f__a": {"choice": [{"b": 1}]}, "f__a__b": {"choice": [1]}},
            r"tune\.space\.f\.a\.b: varies inside `f\.a`",
        ),
        ({"f__a__b": {"choice": [1]}, "f__a": {"choice": [{"b": 1}]}}, r"tune\.space\.f\.a\.b: varies inside `f\.a`"),
    ],
)
def test_bad_spaces_are_refused(domains, message):
    with pytest.raises(ConfigError, match=message):
        space(**domains)


def test_names_that_only_begin_alike_are_apart():
    assert set(space(f__a={"choice": [1]}, f__ab={"choice": [1]}).domains) == {"f.a", "f.ab"}


NESTED = {
    "f__leaf": {"uniform": [0, 1], "when": {"f.inner": "x"}},
    "f__inner": {"choice": ["x", "y"], "when": {"f.outer": ["b", "c"]}},
    "f__outer": {"choice": ["a", "b", "c"]},
}


def test_conditions_may_be_nested_and_stand_in_any_order():
    random = np.random.default_rng(0)
    found = {tuple(sorted(space(**NESTED).draw(random))) for _ in range(100)}
    assert found == {("f.outer",), ("f.inner", "f.outer"), ("f.inner", "f.leaf", "f.outer")}


@st.composite
def domains(draw, finite=False):
    """Up to five fields, each perhaps with a condition on listed values of those before."""
    made = {}
    for number in range(draw(st.integers(1, 5))):
        kinds = ["choice", "grid", "randint"] + ([] if finite else ["uniform", "loguniform"])
        kind = draw(st.sampled_from(kinds))
        if kind in ("choice", "grid"):
            raw = {kind: draw(st.lists(st.sampled_from([*"abc", 1, 2.5, None]), min_size=1, max_size=3, unique=True))}
        elif kind == "randint":
            low = draw(st.integers(-50, 50))
            raw = {kind: [low, low + draw(st.integers(1, 3))]}
        else:
            low = draw(st.floats(1e-9, 1e6))
            raw = {kind: [low, draw(st.floats(low, 1e7, exclude_min=True))]}
        listed = [path for path, domain in made.items() if domain.options is not None]
        for other in draw(st.lists(st.sampled_from(listed), max_size=2, unique=True)) if listed else []:
            options = made[other].options
            wanted = draw(st.lists(st.sampled_from(options), min_size=1, unique=True))
            raw.setdefault("when", {})[other] = wanted if draw(st.booleans()) else wanted[0]
        made[f"f.x{number}"] = Domain.parse(raw)
    order = draw(st.permutations(list(made)))
    return {path: made[path] for path in order}


def counts(params, domain):
    """Whether the condition of a domain holds in a point; the oracle."""
    for other, wanted in domain.when.items():
        if other not in params or params[other] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


@given(domains(), st.integers(0, 2**32))
def test_points_are_in_their_domains_and_conditions_hold(made, seed):
    params = Space(made).draw(np.random.default_rng(seed))
    for path, domain in made.items():
        assert (path in params) == counts(params, domain)
        if path not in params:
            continue
        if domain.options is not None:
            assert params[path] in domain.options
        else:
            assert domain.bounds[0] <= params[path] <= domain.bounds[1]
            assert isinstance(params[path], int if domain.kind == "randint" else float)


def product(made):
    """Every point of a finite space, as a set of JSON; the oracle."""
    found = set()
    for values in itertools.product(*(domain.values for domain in made.values())):
        params = dict(zip(made, values, strict=True))
        while True:  # leaving a field out may break the conditions of others
            fewer = {path: value for path, value in params.items() if counts(params, made[path])}
            if fewer == params:
                break
            params = fewer
        found.add(json.dumps(params, sort_keys=True))
    return found


@given(domains(finite=True))
def test_points_are_the_product_with_conditions_each_once(made):
    found = [json.dumps(point, sort_keys=True) for point in Space(made).points()]
    assert len(found) == len(set(found))
    assert set(found) == product(made)


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_points_of_infinitely_many_values_are_refused(kind):
    with pytest.raises(ConfigError, match=rf"tune\.space\.f\.b: {kind} has infinitely many.*valid: choice, grid, rand"):
        space(f__a={"choice": [1]}, f__b={kind: [1, 2]}).points()


def test_combinations_list_what_is_finite_and_draw_the_rest():
    found = list(space(**NESTED).combinations(np.random.default_rng(0)))
    assert [{k: v for k, v in point.items() if k != "f.leaf"} for point in found] == [
        {"f.outer": "a"},
        *({"f.outer": outer, "f.inner": inner} for outer in "bc" for inner in "xy"),
    ]
    leaves = [point["f.leaf"] for point in found if point.get("f.inner") == "x"]
    assert len(set(leaves)) == 2
    assert all(0 <= leaf <= 1 for leaf in leaves)


def test_grids_are_the_combinations_of_the_fields_of_that_kind():
    made = space(
        f__a={"grid": [1, 2]},
        f__b={"grid": ["x", "y"], "when": {"f.a": 1}},
        f__c={"uniform": [0, 1]},
        f__d={"choice": [1, 2]},
        f__e={"grid": [3], "when": {"f.d": 1}},
    )
    assert list(made.grids()) == [
        {"f.a": 1, "f.b": "x", "f.e": 3},
        {"f.a": 1, "f.b": "y", "f.e": 3},
        {"f.a": 2, "f.e": 3},
    ]
    assert list(space(f__c={"uniform": [0, 1]}).grids()) == [{}]


def test_grids_of_very_many_combinations_can_be_begun():
    made = space(**{f"f__x{n}": {"grid": list(range(10))} for n in range(30)})
    assert next(made.grids()) == {f"f.x{n}": 0 for n in range(30)}


def test_part_keeps_the_fields_of_some_sections_and_conditions_among_them():
    whole = space(
        model={"choice": [{"name": "a"}, {"name": "b"}]},
        data__x={"choice": [1, 2]},
        data__y={"choice": [3, 4], "when": {"data.x": 1, "finetune.z": 5}},
        finetune__z={"choice": [5, 6]},
        database__n={"choice": [1]},
    )
    part = whole.part("model", "data")
    assert list(part.domains) == ["model", "data.x", "data.y"]
    assert part.domains["data.y"].when == {"data.x": 1}
    assert whole.domains["data.y"].when == {"data.x": 1, "finetune.z": 5}
    assert list(whole.part("task").points()) == [{}]


@given(domains(finite=True), st.sets(st.integers(0, 4)))
def test_part_holds_every_combination_of_the_whole(made, moved):
    """Some fields are put in a section of their own."""
    renamed = {path: path.replace("f.", "g.") if int(path[-1]) in moved else path for path in made}
    there = {
        renamed[path]: domain.model_copy(update={"when": {renamed[k]: v for k, v in domain.when.items()}})
        for path, domain in made.items()
    }
    part = list(Space(there).part("g").points())
    for point in Space(there).points():
        assert {path: value for path, value in point.items() if path.startswith("g.")} in part
