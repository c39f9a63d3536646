import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.errors import ConfigError, DataError

BLOCKED = Drop("blocked word")


def blocklist(**fields):
    rule = Rule.make({"rule": "blocklist", **fields})
    rule.prepare()
    return rule


@pytest.mark.parametrize(
    "text",
    [
        "a BAD day",
        "bad",
        "(bad)",
        "it's bad's",
        "a Straße here",
        "a STRASSE here",
        "very, very\nwrong",
        "so VERY-VERY wrong",
    ],
)
def test_finds_whole_words_and_phrases_without_regard_to_case(text):
    assert blocklist(words=["bad", "straße", "Very very wrong"]).apply(text) == BLOCKED


@pytest.mark.parametrize("text", ["badly", "abad", "bad_day", "very wrong", "very very", "very very wrongly"])
def test_parts_of_words_and_of_phrases_are_no_match(text):
    assert blocklist(words=["bad", "very very wrong"]).apply(text) == text


def test_a_vowel_sign_is_part_of_the_word():
    assert blocklist(words=["क"]).apply("कि") == "कि"
    assert blocklist(words=["कि"]).apply("वह कि यह") == BLOCKED


def test_compares_composed_with_decomposed_entries():
    assert blocklist(words=["cafe\u0301"]).apply("un café") == BLOCKED


def test_some_matches_may_be_allowed():
    rule = blocklist(words=["bad", "worse", "very worst"], max_matches=2)
    assert rule.apply("bad and worse") == "bad and worse"
    assert rule.apply("bad and worse and bad") == BLOCKED
    assert rule.apply("bad and worse and the very worst") == BLOCKED


def test_a_phrase_is_not_counted_for_a_longer_one_that_the_text_ends_in():
    assert blocklist(words=["bad", "very bad", "very bad idea"], max_matches=2).apply("very bad") == "very bad"


@given(
    st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3))
)
def test_counts_every_occurrence(words, entries):
    different = {tuple(entry) for entry in entries}
    expected = sum(tuple(words[i : i + len(e)]) == e for e in different for i in range(len(words)))
    if different:
        entries = [" ".join(entry) for entry in entries]
        text = " ".join(words)
        assert blocklist(words=entries, max_matches=expected).apply(text) == text
        if expected:
            assert blocklist(words=entries, max_matches=expected - 1).apply(text) == BLOCKED


def test_reads_words_from_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("# a comment\n\nBad\r\nvery worst\n", encoding="utf-8-sig")
    rule = blocklist(file=str(file), words=["ugly"])
    assert [rule.apply(text) for text in ("bad", "very worst", "ugly", "a comment")] == [BLOCKED] * 3 + ["a comment"]
    assert blocklist(file=file.as_uri()).apply("bad") == BLOCKED


def test_reads_a_compressed_file(tmp_path):
    file = tmp_path / "words.txt.gz"
    file.write_bytes(gzip.compress(b"bad\n"))
    assert blocklist(file=str(file)).apply("bad") == BLOCKED


def test_refuses_a_file_that_is_not_there_when_preparing(tmp_path):
    rule = Rule.make({"rule": "blocklist", "file": str(tmp_path / "none.txt")})
    with pytest.raises(ConfigError, match=r"file: cannot read.*none.txt"):
        rule.prepare()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no word in this file"),
        (b"# only\n", "no word"),
        (b"ok\n!!!\n", "line 2 has no letter"),
        (b"\xff\xfe\xff", "UTF-8"),
    ],
)
def test_refuses_a_useless_file(tmp_path, content, message):
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        blocklist(file=str(file))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give `words`, a `file`"),
        ({"words": ["!!"]}, "no letter or digit"),
        ({"words": ["a"], "max_matches": -1}, "max_"),
    ],
)
def test_refuses_to_do_nothing(fields, message):
    with pytest.raises(ConfigError, match=message):
        blocklist(**fields)
