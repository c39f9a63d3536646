"""From raw text to the text that is hashed, compared, tokenised and stored."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import ftfy

_ROUNDS = 8
# C0 and C1 controls apart from tab and line feed, zero-width space, word joiner, byte order mark, soft hyphen. The
# zero-width (non-)joiners stay: Persian, Indic scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]")
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n]+")
_AROUND_LINE_END = re.compile(r" ?\n ?")
_MANY_LINE_ENDS = re.compile(r"\n{3,}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def normalize(text: str, max_characters: int | None = None) -> str:
    """Repair and normalise a text; `normalize(normalize(t)) == normalize(t)`.

    Mojibake and HTML entities are repaired (ftfy), Unicode is brought to NFC, control and invisible characters go,
    runs of spaces become one space, more than two line ends become two, and the ends are stripped.

    Args:
        text: any string, lone surrogates included.
        max_characters: cut to this many code points.
    """
    for _ in range(_ROUNDS):
        before, text = text, _once(text)[:max_characters].rstrip()
        if text == before:
            break
    return text


def cut(raw: str, max_characters: int) -> tuple[str, bool]:
    """A raw text normalised, at most `max_characters` of it; and whether there was more."""
    # Far more than is kept need not be cleaned either: a text of many MiB would take minutes.
    text = normalize(raw[: 8 * max_characters])
    if len(text) > max_characters or len(raw) > 8 * max_characters:
        return normalize(text, max_characters), True
    return text, False


def _once(text: str) -> str:
    if not text.isascii():
        if _SURROGATE.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = unicodedata.normalize("NFC", text)
    text = _LINE_END.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    if not text.isascii() or "&" in text:
        text = ftfy.fix_text(text, normalization="NFC")
    text = _SPACES.sub(" ", text)
    text = _AROUND_LINE_END.sub("\n", text)
    return _MANY_LINE_ENDS.sub("\n\n", text).strip()


def text_id(text: str) -> bytes:
    """The 32 bytes of the sha256 of a normalised text: its identity everywhere in the project."""
    return hashlib.sha256(text.encode()).digest()


def reason_to_drop(text: str, label: str | None, min_characters: int) -> str | None:
    """Why a row with this normalised text is not used, or None.

    The reason is a key under which dropped rows are counted.
    """
    if not text:
        return "no text"
    if label is None:
        return "no label"
    if len(text) < min_characters:
        return "shorter than min_characters"
    return None
