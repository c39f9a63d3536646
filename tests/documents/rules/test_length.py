import pytest

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.errors import ConfigError


def length(**fields):
    return Rule.make({"rule": "length", **fields})


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"min_characters": 4}, "abc", "too short"),
        ({"min_characters": 3}, "abc", None),
        ({"max_characters": 2}, "abc", "too long"),
        ({"max_characters": 3}, "abc", None),
        ({"min_words": 3}, "one two", "too short"),
        ({"min_words": 2}, "one\ntwo", None),
        ({"max_words": 1}, "one two", "too long"),
        ({"max_words": 2}, "one two", None),
        ({"min_characters": 3, "max_words": 1}, "one two", "too long"),
    ],
)
def test_limits_are_inclusive(fields, text, reason):
    assert length(**fields).apply(text) == (text if reason is None else Drop(reason))


def test_refuses_to_do_nothing():
    with pytest.raises(ConfigError, match="at least one of min_characters, max_characters, min_words, max_words"):
        length()


@pytest.mark.parametrize("what", ["characters", "words"])
def test_refuses_limits_that_nothing_meets(what):
    with pytest.raises(ConfigError, match=f"min_{what} .5. is above max_{what} .4."):
        length(**{f"min_{what}": 5, f"max_{what}": 4})
    length(**{f"min_{what}": 4, f"max_{what}": 4})


@pytest.mark.parametrize("name", ["min_characters", "max_characters", "min_words", "max_words"])
def test_refuses_limits_below_one(name):
    with pytest.raises(ConfigError, match=name):
        length(**{name: 0})
