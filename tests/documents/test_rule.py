"""What holds of every cleaning rule."""

import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.clean import normalize
from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.errors import ConfigError

SPECS = {
    "blocklist": {"words": ["bad", "very bad idea"]},
    "c4": {},
    "gopher_quality": {},
    "gopher_repetition": {},
    "language": {"languages": ["en", "de"]},
    "length": {"min_characters": 3, "max_words": 400_000},
    "lowercase": {},
    "mask_private": {},
    "remove_numbers": {"with_": "<number>"},
    "remove_punctuation": {"keep": "#"},
    "remove_stop_words": {"language": "en"},
}
RULES = [Rule.make({"rule": name, **fields}) for name, fields in SPECS.items()]
LENGTH = 250_000
"""Characters: for what grows with their square that would be minutes, not seconds."""
HOSTILE = {
    **{f"one character {c!r}": c * LENGTH for c in "a1.@-(#{'…•é字\n\u0301\U0001f600 "},
    "line ends": "\n" * 25_000,
    "one-letter lines": "a\n" * 25_000,
    "same word": "bad " * 62_000,
    "two words": "very bad " * 27_000,
    "different words": " ".join(map(str, range(40_000))),
    "addresses without an end": "a@a." * 62_000,
    "addresses without a start": "@a.bc" * 50_000,
    "dotted numbers": "1.1" * 83_000 + "a",
    "long dotted numbers": ("1" * 1000 + ".") * 250 + "a",
    "spaced numbers": "1 " * 125_000 + "a",
    "phones without an end": "+1 (" * 62_000,
    "zeros": "01 " * 83_000,
    "quoted dots": '."' * 125_000,
    "apostrophes": "a'" * 125_000,
    "brackets": "()[]" * 62_000,
}

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def test_every_rule_is_found_by_its_name_and_has_a_spec_here():
    assert Rule.names() == sorted(SPECS)


@every_rule
def test_spec_gives_the_rule_back(rule):
    assert Rule.make(rule.spec()) == rule
    rule.prepare()
    assert Rule.make(rule.spec()) == rule
    assert pickle.loads(pickle.dumps(rule)).apply("Some text.") == rule.apply("Some text.")


@every_rule
def test_unknown_fields_are_refused(rule):
    with pytest.raises(ConfigError, match="no_such_field"):
        Rule.make({**rule.spec(), "no_such_field": 1})


# Whole words among the characters: most random text never comes near what a rule looks for.
texts = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from(["the ", "bad ", "a@b.de", "1.1.1.1", "\n", ". ", "'"]))
)


@every_rule
@given(parts=texts)
def test_gives_text_or_drop_twice_the_same_for_any_text(rule, parts):
    for text in ("".join(parts), normalize("".join(parts))):
        first = rule.apply(text)
        assert isinstance(first, str | Drop)
        assert rule.apply(text) == first
        assert not isinstance(first, Drop) or 0 < len(first.reason) <= 40


@every_rule
def test_hostile_text_takes_no_longer_than_its_length(rule):
    rule.apply("a")
    for what, text in HOSTILE.items():
        start = time.process_time()
        result = rule.apply(text)
        assert isinstance(result, str | Drop)
        assert time.process_time() - start < 2, what
