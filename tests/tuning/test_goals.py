import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.goals import Goals, Limit

TWO = Goals(objectives={"a": "max", "b": "min"}, constraints={"c": Limit(max=2), "a": Limit(min=0.5)})


def test_names_are_those_of_objectives_and_constraints_each_once():
    assert TWO.names == ["a", "b", "c"]
    assert (TWO.first, TWO.first_is_higher) == ("a", True)
    assert not Goals(objectives={"b": "min", "a": "max"}).first_is_higher


@pytest.mark.parametrize(
    ("limit", "value", "excess"),
    [
        (Limit(max=2), 2, 0),
        (Limit(max=2), -9, 0),
        (Limit(max=2), 3, 0.5),
        (Limit(max=-2), -1, 0.5),
        (Limit(max=0), 0.25, 0.25),
        (Limit(min=0.5), 0.5, 0),
        (Limit(min=0.5), 0.4, 0.2),
        (Limit(min=0), -3, 3),
        (Limit(min=0.5, max=100), 0.25, 0.5),
        (Limit(min=0.5, max=100), 150, 0.5),
        (Limit(min=0.5, max=100), 7, 0),
    ],
)
def test_excess_is_relative_to_the_bound_that_is_broken(limit, value, excess):
    assert limit.excess(value) == pytest.approx(excess)


def test_violations_add_up():
    assert TWO.violation({"a": 0.5, "b": 9, "c": 2}) == 0
    assert TWO.violation({"a": 0.25, "b": 9, "c": 3}) == pytest.approx(1.0)
    assert Goals(objectives={"a": "max"}).violation({}) == 0


def test_order_puts_kept_constraints_before_objectives_and_the_first_before_the_second():
    trials = {
        "best": {"a": 0.9, "b": 2, "c": 1},
        "second": {"a": 0.9, "b": 3, "c": 1},
        "third": {"a": 0.8, "b": 1, "c": 2},
        "breaks a little": {"a": 0.99, "b": 0, "c": 2.1},
        "breaks more": {"a": 0.99, "b": 0, "c": 4},
    }
    assert sorted(trials, key=lambda name: (TWO.order(trials[name]), name)) == list(trials)
    assert TWO.gains(trials["best"]) == (0.9, -2)


values = st.fixed_dictionaries({name: st.integers(0, 3) for name in "abc"})


@given(
    st.dictionaries(st.integers(0, 99), values, max_size=9),
    st.dictionaries(st.sampled_from("ab"), st.sampled_from(["max", "min"]), min_size=1),
    st.booleans(),
)
def test_front_is_what_no_other_dominates(trials, objectives, constrained):
    goals = Goals(objectives=objectives, constraints={"c": Limit(max=1)} if constrained else {})
    kept = {number for number, value in trials.items() if not constrained or value["c"] <= 1}

    def dominates(first, second):
        pairs = [(first[n], second[n]) if mode == "max" else (second[n], first[n]) for n, mode in objectives.items()]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    expected = [n for n in sorted(kept) if not any(dominates(trials[other], trials[n]) for other in kept)]
    assert goals.front(trials) == expected
    if kept:
        assert min(kept, key=lambda number: goals.order(trials[number])) in expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"objectives": {}}, "objectives: .*at least 1"),
        ({"objectives": {"a": "most"}}, r"objectives\.a: .*'max' or 'min'.*'most'"),
        ({"objectives": {"a": "max"}, "constraints": {"b": {}}}, r"constraints\.b: give min, max or both"),
        (
            {"objectives": {"a": "max"}, "constraints": {"b": {"min": 2, "max": 1}}},
            r"constraints\.b: nothing is at least 2 and at most 1",
        ),
        ({"objectives": {"a": "max"}, "constraints": {"b": {"most": 2}}}, r"b\.most: unknown key.*max, min"),
    ],
)
def test_bad_goals_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        Goals.parse(raw)
