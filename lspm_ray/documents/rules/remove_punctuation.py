"""Take out punctuation and symbols."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from pydantic import field_validator

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules._text import BEYOND_BASIC_PLANE, character_class, tidy

_CATEGORIES = "PS"
_APOSTROPHE_IN_WORD = {mark: re.compile(rf"(?<=\w){mark}(?=\w)") for mark in "'’"}  # noqa: RUF001


class RemovePunctuation(Rule):
    """Remove every character of Unicode's categories P (punctuation) and S (symbols).

    An apostrophe inside a word goes without a trace ("don't" becomes "dont"); anything else leaves a space, so that
    no two words become one ("and/or" becomes "and or").

    Attributes:
        keep: characters to leave alone.
    """

    keep: str = ""

    @field_validator("keep")
    @classmethod
    def _would_be_removed(cls, keep: str) -> str:
        for character in keep:
            if unicodedata.category(character)[0] not in _CATEGORIES:
                raise ValueError(f"{character!r} is neither punctuation nor a symbol: it is kept anyway")
        return keep

    def apply(self, text: str) -> str | Drop:
        """The text without them, with its whitespace tidied."""
        for mark, inside_word in _APOSTROPHE_IN_WORD.items():
            if mark in text and mark not in self.keep:
                text = inside_word.sub("", text)
        text = _removed(self.keep, True).sub(" ", text)
        if BEYOND_BASIC_PLANE.search(text):
            text = _removed(self.keep, False).sub(" ", text)
        return tidy(text)


@cache
def _removed(keep: str, basic_plane: bool) -> re.Pattern[str]:
    return re.compile(f"[{character_class(_CATEGORIES, keep, basic_plane=basic_plane)}]+")
