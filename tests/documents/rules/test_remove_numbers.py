import pytest

from lspm_ray.documents.rule import Rule
from lspm_ray.errors import ConfigError


def apply(text, **fields):
    return Rule.make({"rule": "remove_numbers", **fields}).apply(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in 1990 there were 1,234,567.89 of them", "in there were of them"),
        ("page 7.\n42\n\nnext", "page .\n\nnext"),
        ("B2B in the 1990s, covid19", "B2B in the 1990s, covid19"),
        ("$5 (3) -2", "$ () -"),
        ("١٢٣ hello", "hello"),
        ("12", ""),
        ("1.5.7a 5th", ".7a 5th"),
    ],
)
def test_removes_numbers_that_stand_alone(text, expected):
    assert apply(text) == expected


def test_replaces_them():
    assert apply("from 1990 to 2,000", with_="<n>") == "from <n> to <n>"
    assert apply("in 1990", with_=r"\1\g<0>") == r"in \1\g<0>"


def test_leaves_text_without_numbers_as_it_is():
    assert apply("no  number") == "no  number"


def test_refuses_a_replacement_that_is_a_text():
    with pytest.raises(ConfigError, match="with_"):
        apply("", with_="x" * 101)
