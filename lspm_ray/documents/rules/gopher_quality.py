"""The quality filter of MassiveText (Rae et al. 2021, "Scaling Language Models", arXiv:2112.11446, appendix A1.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from lspm_ray.documents.rule import Drop, Rule

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_ELLIPSES = ("...", "…")
# The paper does not say what a bullet is. A dash, a plus or a star is one only before a space: "-5" is a number.
_BULLET = re.compile(r"[•‣⁃◦▪▫■□●○▶◀▸►]|[-–*+]\s")  # noqa: RUF001
_AROUND_WORD = "\"'“”‘’()[]{}<>.,;:!?…*_-–—"  # noqa: RUF001


class GopherQuality(Rule):
    """Drop what does not look like prose. Words are runs of anything but whitespace, empty lines do not count.

    The stop words are English: for another language set `min_stop_words` to 0.

    Attributes:
        min_words: fewest words.
        max_words: most words.
        min_mean_word_length: least mean length of a word, in characters.
        max_mean_word_length: greatest mean length of a word, in characters.
        max_symbol_ratio: most hash signs per word, and most ellipses per word.
        max_bullet_lines: largest share of lines that start with a bullet.
        max_ellipsis_lines: largest share of lines that end in an ellipsis.
        min_alphabetic_words: least share of words with at least one alphabetic character.
        min_stop_words: how many different ones of "the be to of and that have with" there must be.
    """

    min_words: int = Field(50, ge=0)
    max_words: int = Field(100_000, ge=1)
    min_mean_word_length: float = Field(3, ge=0)
    max_mean_word_length: float = Field(10, gt=0)
    max_symbol_ratio: float = Field(0.1, ge=0)
    max_bullet_lines: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1)
    min_alphabetic_words: float = Field(0.8, ge=0, le=1)
    min_stop_words: int = Field(2, ge=0, le=len(_STOP_WORDS))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for what in ("words", "mean_word_length"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least > most:
                raise ValueError(f"min_{what} ({least}) is above max_{what} ({most}): every document would be dropped")
        return self

    def apply(self, text: str) -> str | Drop:
        """The text as it was, or dropped for the first limit that it breaks, in the order of the fields."""
        words = text.split()
        broken = self._broken_by_words(words) or self._broken_by_lines(text, len(words)) or self._unlike_prose(words)
        return Drop(f"gopher: {broken}") if broken else text

    def _broken_by_words(self, words: Sequence[str]) -> str | None:
        if len(words) < self.min_words:
            return "too few words"
        if len(words) > self.max_words:
            return "too many words"
        # A text without a word is here only if `min_words` is 0.
        mean = sum(map(len, words)) / max(1, len(words))
        if not self.min_mean_word_length <= mean <= self.max_mean_word_length:
            return "mean word length"
        return None

    def _broken_by_lines(self, text: str, words: int) -> str | None:
        if text.count("#") > self.max_symbol_ratio * words:
            return "hash signs"
        if sum(map(text.count, _ELLIPSES)) > self.max_symbol_ratio * words:
            return "ellipses"
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        if sum(_BULLET.match(line) is not None for line in lines) > self.max_bullet_lines * len(lines):
            return "bullet lines"
        if sum(line.endswith(_ELLIPSES) for line in lines) > self.max_ellipsis_lines * len(lines):
            return "ellipsis lines"
        return None

    def _unlike_prose(self, words: Sequence[str]) -> str | None:
        if _count_alphabetic(words) < self.min_alphabetic_words * len(words):
            return "alphabetic words"
        if _count_stop_words(frozenset(words), self.min_stop_words) < self.min_stop_words:
            return "stop words"
        return None


def _count_alphabetic(words: Sequence[str]) -> int:
    return sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)


def _count_stop_words(words: frozenset[str], enough: int) -> int:
    found = len(_STOP_WORDS & words)
    # Most prose has enough of them just as they are, without a capital or a comma.
    if found >= enough:
        return found
    return len(_STOP_WORDS & {word.strip(_AROUND_WORD).lower() for word in words})
