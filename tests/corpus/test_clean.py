import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.clean import normalize, reason_to_drop, text_id

MESSY = st.text(
    st.one_of(st.characters(codec=None), st.sampled_from("&;#ampltg<> \t\r\n\x00\u200b\u0301Ã©â€™\u2028\ud800\udc00")),
    max_size=60,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a \t b\u00a0c  ", "a b c"),
        ("a\r\nb\rc\n\n\n\nd", "a\nb\nc\n\nd"),
        ("a\x00b\x1bc\ufeffd\u200be", "abcde"),
        ("Itâ€™s lÃ¡grima", "It's lágrima"),
        ("fish &amp; chips", "fish & chips"),
        ("e\u0301", "\u00e9"),
        ("\ud83d\ude00 \ud800", "\U0001f600 \ufffd"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("plain ASCII, already clean.", "plain ASCII, already clean."),
        (" \n\t ", ""),
    ],
)
def test_repairs(raw: str, clean: str) -> None:
    assert normalize(raw) == clean


@given(MESSY)
def test_is_idempotent(raw: str) -> None:
    assert normalize(normalize(raw)) == normalize(raw)


@given(MESSY, st.integers(1, 20))
def test_is_idempotent_when_cut(raw: str, limit: int) -> None:
    once = normalize(raw, limit)
    assert len(once) <= limit
    assert normalize(once, limit) == once


@given(MESSY)
def test_result_is_stripped_nfc_without_controls_and_can_be_stored(raw: str) -> None:
    text = normalize(raw)
    assert text == text.strip()
    assert unicodedata.is_normalized("NFC", text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c != "\n" for c in text)
    assert text.encode().decode() == text


def test_id_is_the_sha256_of_the_text() -> None:
    assert text_id("é").hex() == hashlib.sha256("é".encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("", "a", "no text"),
        ("", None, "no text"),
        ("ok", None, "no label"),
        ("o", "a", "shorter than min_characters"),
        ("ok", "a", None),
    ],
)
def test_every_dropped_row_has_a_reason(text: str, label: str | None, reason: str | None) -> None:
    assert reason_to_drop(text, label, min_characters=2) == reason
