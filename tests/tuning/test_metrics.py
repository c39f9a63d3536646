import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.metrics import Needs, higher_is_better, needs, valid_names


@pytest.mark.parametrize(
    ("names", "expected", "variants", "measured"),
    [
        (["validation.accuracy", "validation.loss"], Needs(), False, False),
        (["profile.full.macro_f1"], Needs(quality=frozenset({"full"})), False, False),
        (["profile.small.loss"], Needs(quality=frozenset({"small"})), True, False),
        (["profile.full.p50_ms"], Needs(speed=frozenset({"full"})), False, True),
        (["profile.small.cost", "profile.big.loss"], Needs(frozenset({"big"}), frozenset({"small"})), True, True),
        (["certified.cost"], Needs(certified=True), True, True),
    ],
)
def test_what_must_be_done_to_know_a_metric(names, expected, variants, measured):
    found = needs(names, ["big", "small"])
    assert found == expected
    assert (found.variants, found.measured) == (variants, measured)


@pytest.mark.parametrize("variants", [[], ["small"], ["a", "b", "c", "d"]])
def test_every_valid_name_is_one(variants):
    names = valid_names(variants)
    assert len(names) == len(set(names))
    for name in names:
        assert needs([name], variants) == Needs() or not name.startswith("validation.")
    assert any(name.startswith("certified.") for name in names) == bool(variants)


@pytest.mark.parametrize(
    ("name", "variants", "message"),
    [
        ("accuracy", [], r"no trial reports such a metric \(got 'accuracy'\); valid: validation\.accuracy, .*size_mb"),
        ("validation.f1", [], "validation.macro_f1"),
        ("profile.tiny.cost", ["small"], r"got 'profile\.tiny\.cost'.*profile\.small\.cost"),
        ("certified.cost", [], r"a cascade needs compress\.variants \(got 'certified\.cost'\)"),
        ("certified.price", ["a", "b", "c", "d"], r"certified\.cost.*\.\.\.$"),
        ("test.accuracy", [], r"got 'test\.accuracy'"),
    ],
)
def test_names_that_no_trial_reports_are_refused(name, variants, message):
    with pytest.raises(ConfigError, match=message) as caught:
        needs(["validation.loss", name], variants)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("accuracy", True),
        ("validation.macro_f1", True),
        ("profile.small.rows_per_s", True),
        ("profile.small.p99_ms", False),
        ("profile.small.loss", False),
        ("certified.cost", False),
        ("certified.escalation_rate", False),
        ("certified.accuracy_drop", False),
    ],
)
def test_which_way_is_better(metric, higher):
    assert higher_is_better(metric) is higher
