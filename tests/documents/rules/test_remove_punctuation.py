import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.documents.rule import Rule
from lspm_ray.errors import ConfigError


def apply(text, **fields):
    return Rule.make({"rule": "remove_punctuation", **fields}).apply(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", "Hello world"),
        ("don't and don’t", "dont and dont"),
        ("'quoted' and/or well-known — it's", "quoted and or well known its"),
        ("a_b $5 + 3 €", "a b 5 3"),
        ("one,\n---\n\ntwo…\n\n\n«three»", "one\n\ntwo\n\nthree"),
        ("smile 😀 now", "smile now"),
        ("किताब, नमस्ते।", "किताब नमस्ते"),
        ("!?", ""),
    ],
)
def test_removes_punctuation_and_tidies(text, expected):
    assert apply(text) == expected


def test_keeps_what_is_asked_for():
    assert apply("don't stop, 50% #now 😀 😁", keep="'#%😀") == "don't stop 50% #now 😀"
    assert apply("a-b]c^d\\e", keep="-]^\\") == "a-b]c^d\\e"


@given(st.text())
def test_leaves_every_other_character(text):
    kept = [c for c in text if unicodedata.category(c)[0] not in "PS" and not c.isspace()]
    assert "".join(apply(text).split()) == "".join(kept)


def test_refuses_to_keep_what_stays_anyway():
    with pytest.raises(ConfigError, match="keep: 'a' is neither"):
        apply("", keep="!a")
