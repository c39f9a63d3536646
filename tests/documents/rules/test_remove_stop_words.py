import pytest

from lspm_ray.documents.rule import Rule
from lspm_ray.errors import ConfigError


def apply(text, **fields):
    return Rule.make({"rule": "remove_stop_words", **fields}).apply(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat.", "cat sat mat."),
        ("I don't think it’s THERE", "think"),
        ("theory, another toast, in-depth", "theory, another toast, -depth"),
        ("all of\n\n\nthe\n\nabove\ncats", "cats"),
        ("nothing removed", "nothing removed"),
        ("the", ""),
    ],
)
def test_removes_whole_english_words_and_tidies(text, expected):
    assert apply(text, language="en") == expected


def test_words_of_ones_own():
    assert apply("Der Hund und DIE Straße der Katze", words=["der", "die", "STRASSE"]) == "Hund und Katze"
    assert apply("the cat foo", words=["foo"]) == "the cat"
    assert apply("the cat foo", words=["foo"], language="en") == "cat"


def test_a_vowel_sign_is_part_of_the_word():
    assert apply("कि क किताब", words=["क"]) == "कि किताब"


def test_a_zero_width_non_joiner_is_part_of_the_word():
    assert apply("می\u200cخواهم می", words=["می"]) == "می\u200cخواهم"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give `words`, or a `language` that has a list: en"),
        ({"words": ["of course"]}, "'of course' is not one word"),
        ({"words": [""]}, "not one word"),
        ({"language": "xx"}, "language: Input should be 'en'"),
    ],
)
def test_refuses_to_do_nothing(fields, message):
    with pytest.raises(ConfigError, match=message):
        apply("", **fields)
