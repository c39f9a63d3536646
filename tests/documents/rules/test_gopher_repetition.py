from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules.gopher_repetition import _characters_in, _repeated_ngrams, _top
from lspm_ray.errors import ConfigError

OFF = {
    "max_duplicate_lines": 1,
    "max_duplicate_paragraphs": 1,
    "max_duplicate_line_characters": 1,
    "max_duplicate_paragraph_characters": 1,
    "max_top_ngram_characters": {},
    "max_duplicate_ngram_characters": {},
}


def apply(text, **fields):
    return Rule.make({"rule": "gopher_repetition", **fields}).apply(text)


def lines(*words):
    return "\n".join(words)


def numbered(count, start=0):
    return " ".join(f"word{number}" for number in range(start, start + count))


def test_text_without_repetition_passes():
    assert apply(numbered(500)) == numbered(500)


def test_the_defaults_are_those_of_table_a1():
    rule = Rule.make("gopher_repetition")
    assert rule.spec() == {
        "rule": "gopher_repetition",
        "max_duplicate_lines": 0.3,
        "max_duplicate_paragraphs": 0.3,
        "max_duplicate_line_characters": 0.2,
        "max_duplicate_paragraph_characters": 0.2,
        "max_top_ngram_characters": {"2": 0.2, "3": 0.18, "4": 0.16},
        "max_duplicate_ngram_characters": {"5": 0.15, "6": 0.14, "7": 0.13, "8": 0.12, "9": 0.11, "10": 0.1},
    }


@pytest.mark.parametrize(
    ("limit", "text", "share", "reason"),
    [
        ("max_duplicate_lines", lines("a", "b", "b", "", "c", " b"), 0.4, "duplicate lines"),
        ("max_duplicate_paragraphs", "a\nb\n\nc\n\na\nb\n\nd", 0.25, "duplicate paragraphs"),
        ("max_duplicate_line_characters", lines("aaa", "aaa", "aaa", "b"), 0.6, "duplicate line characters"),
        ("max_duplicate_paragraph_characters", "aa\n\naa\n\nb", 0.4, "duplicate paragraph characters"),
    ],
)
def test_duplicate_lines_and_paragraphs(limit, text, share, reason):
    assert apply(text, **{**OFF, limit: share}) == text
    assert apply(text, **{**OFF, limit: share - 0.01}) == Drop(f"gopher: {reason}")


@pytest.mark.parametrize(
    ("kind", "n", "text", "share", "reason"),
    [
        ("top", 2, "ab cd x ab cd y", 0.8, "top 2-gram characters"),
        ("top", 2, "ab ab ab c", 6 / 7, "top 2-gram characters"),  # overlapping: each character once
        ("top", 2, "a b x cc dd a b y cc dd", 8 / 14, "top 2-gram characters"),  # of two, the longer
        ("top", 3, "ab c d x ab c d y", 0.8, "top 3-gram characters"),
        ("duplicate", 2, "ab cd x ab cd y", 0.4, "duplicate 2-gram characters"),
        ("duplicate", 5, "a b c d e f x a b c d e f", 6 / 13, "duplicate 5-gram characters"),
    ],
)
def test_ngrams(kind, n, text, share, reason):
    limit = f"max_{kind}_ngram_characters"
    assert apply(text, **{**OFF, limit: {n: share + 1e-6}}) == text
    assert apply(text, **{**OFF, limit: {n: share - 1e-6}}) == Drop(f"gopher: {reason}")


def test_short_text_is_not_its_own_repetition():
    assert apply("just four different words") == "just four different words"


def test_each_default_limit_drops():
    repeated = numbered(100, 1000)
    assert apply(f"{numbered(50)} {repeated} {repeated}") == Drop("gopher: duplicate 5-gram characters")
    assert apply(" ".join(f"same phrase {word}" for word in numbered(99).split())) == Drop(
        "gopher: top 2-gram characters"
    )
    assert apply(lines(*[*numbered(6).split(), *["menu"] * 4])) == Drop("gopher: duplicate lines")


def brute_force(words, n):
    """Shares of characters in the top n-gram and in duplicate n-grams, from the definition."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)

    def covered(starts):
        inside = {place for start in starts for place in range(start, start + n)}
        return sum(len(words[place]) for place in inside)

    repeated = [gram for gram, count in counts.items() if count > 1]
    if not repeated:
        return 0, 0
    top = max(repeated, key=lambda gram: (counts[gram], sum(map(len, gram)), -grams.index(gram)))
    again = [start for start, gram in enumerate(grams) if gram in grams[:start]]
    return covered([start for start, gram in enumerate(grams) if gram == top]), covered(again)


@given(st.lists(st.sampled_from(["a", "b", "cc", "ddd"]), max_size=40), st.integers(2, 7))
def test_ngrams_are_counted_as_defined(words, n):
    lengths = np.array([len(word) for word in words], np.int64)
    found = dict(_repeated_ngrams(words, n)).get(n)
    top, duplicate = brute_force(words, n)
    if found is None:
        assert duplicate == 0
        return
    assert _characters_in(found.duplicates, n, lengths) == duplicate
    # Several n-grams may share first place with equal lengths and cover differently where they overlap themselves.
    best = _characters_in(_top(found, lengths, n), n, lengths)
    ties = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)).most_common()
    key = max((count, sum(map(len, gram))) for gram, count in ties)
    if [(count, sum(map(len, gram))) for gram, count in ties].count(key) == 1:
        assert best == top


def test_refuses_to_do_nothing():
    with pytest.raises(ConfigError, match="every limit is 1"):
        apply("", **OFF)


@pytest.mark.parametrize("limits", [{1: 0.5}, {2: 1.5}, {51: 0.5}])
def test_refuses_sizes_and_shares_out_of_range(limits):
    with pytest.raises(ConfigError, match="max_top_ngram_characters"):
        apply("", max_top_ngram_characters=limits)
