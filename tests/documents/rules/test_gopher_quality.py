import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules.gopher_quality import _count_alphabetic
from lspm_ray.errors import ConfigError

PROSE = "We went to the sea and had lunch with a view of the boats that came home. "


def apply(text, **fields):
    return Rule.make({"rule": "gopher_quality", **fields}).apply(text)


def test_prose_passes():
    assert apply(PROSE * 4) == PROSE * 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE * 2, "too few words"),
        ("the and " + "word " * 99_999, "too many words"),
        ("the and " + "ab " * 60, "mean word length"),
        ("the and " + "abcdefghijkl " * 60, "mean word length"),
        ("the and " + "house " * 50 + "# " * 6, "hash signs"),
        ("the and " + "house " * 50 + "well... " * 3 + "well… " * 3, "ellipses"),
        ("• the house and seven trees\n" * 20, "bullet lines"),
        ("the house and one more tree with a bench stands on a hill\n" * 6 + "and so on...\n" * 3, "ellipsis lines"),
        ("the and " + "house " * 60 + "12345 " * 20, "alphabetic words"),
        ("the " + "house " * 60, "stop words"),
    ],
)
def test_each_violation_has_its_reason(text, reason):
    assert apply(text) == Drop(f"gopher: {reason}")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (PROSE * 2, {"min_words": 34}),
        ("the and " + "ab " * 60, {"min_mean_word_length": 2}),
        ("the and " + "abcdefghijkl " * 60, {"max_mean_word_length": 12}),
        ("the and " + "house " * 50 + "# " * 6, {"max_symbol_ratio": 0.2}),
        ("• the house and seven trees\n" * 20, {"max_bullet_lines": 1}),
        ("the house and one more tree and so on...\n" * 10, {"max_ellipsis_lines": 1, "max_symbol_ratio": 0.2}),
        ("the and " + "house " * 60 + "12345 " * 20, {"min_alphabetic_words": 0.7}),
        ("the " + "house " * 60, {"min_stop_words": 1}),
        ("house " * 60, {"min_stop_words": 0}),
    ],
)
def test_each_limit_can_be_moved(text, fields):
    assert apply(text, **fields) == text


def test_limits_are_inclusive():
    limits = {
        "min_stop_words": 0,
        "min_words": 10,
        "max_words": 10,
        "min_mean_word_length": 5,
        "max_mean_word_length": 5,
    }
    text = "house " * 8 + "12345 " + "hous# "
    assert apply(text, **limits, min_alphabetic_words=0.9) == text
    assert apply(text, **limits, min_alphabetic_words=0.91) == Drop("gopher: alphabetic words")


def test_stop_words_count_once_each_with_a_capital_or_a_comma_too():
    body = "house " * 60
    assert apply("the the The " + body) == Drop("gopher: stop words")
    assert apply("The of, " + body) == "The of, " + body
    assert apply("theory offer " + body) == Drop("gopher: stop words")


def test_a_dash_is_a_bullet_only_before_a_space():
    items, numbers = "- the house and seven trees\n" * 20, "-5 the house and seven trees\n" * 20
    assert apply(items) == Drop("gopher: bullet lines")
    assert apply(numbers) == numbers


def test_empty_lines_do_not_count():
    text = "• the house and seven trees\n\n" * 20
    assert apply(text) == Drop("gopher: bullet lines")


@given(st.lists(st.text(min_size=1, max_size=5)))
def test_alphabetic_words_have_at_least_one_letter(words):
    assert _count_alphabetic(words) == sum(any(c.isalpha() for c in word) for word in words)


@pytest.mark.parametrize("what", ["words", "mean_word_length"])
def test_refuses_limits_that_nothing_meets(what):
    with pytest.raises(ConfigError, match=f"min_{what} .9.*. is above max_{what} .8"):
        apply("", **{f"min_{what}": 9, f"max_{what}": 8})
