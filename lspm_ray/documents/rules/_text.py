"""What several rules need: classes of characters, words, and tidy whitespace."""

from __future__ import annotations

import re
import sys
import unicodedata
from itertools import groupby

_MANY_LINE_ENDS = re.compile(r"\n{3,}")


BEYOND_BASIC_PLANE = re.compile("[\U00010000-\U0010ffff]")


def character_class(categories: str, without: str = "", *, basic_plane: bool = True) -> str:
    """The inside of a `[...]` that holds the characters of some general categories of Unicode.

    It holds either those of the basic plane (below U+10000) or all others: `re` finds the former in a table, and
    compares with the latter one range after the other, at a tenth of the speed.

    Args:
        categories: first letters of general categories, such as "PS" for punctuation and symbols.
        without: characters to leave out.
        basic_plane: which of the two.
    """
    codes = range(0x10000) if basic_plane else range(0x10000, sys.maxunicode + 1)
    left_out = frozenset(map(ord, without))
    inside = [code for code in codes if unicodedata.category(chr(code))[0] in categories and code not in left_out]
    # Neighbours have the same difference to their place in the list.
    runs = [list(run) for _, run in groupby(enumerate(inside), lambda place: place[1] - place[0])]
    return "".join(f"\\U{run[0][1]:08x}-\\U{run[-1][1]:08x}" for run in runs)


# Without the marks a word of an Indic script would fall to pieces at each vowel sign, and without the zero-width
# (non-)joiners one of Persian or Hindi would.
_IN_WORD = rf"[\w\u200c\u200d{character_class('M')}]"

WORD = re.compile(rf"{_IN_WORD}+")
"""A run of letters, digits, underscores and the marks on them (those of the basic plane)."""

WORD_WITH_APOSTROPHES = re.compile(rf"({_IN_WORD}+(?:['’]{_IN_WORD}+)*)")  # noqa: RUF001
"""The same, with the apostrophes inside: "don't" is one word. It is a group, so that `split` gives words, too."""


def tidy(text: str) -> str:
    """One space between words, none at either end of a line, at most one empty line in a row.

    This is how `corpus.clean.normalize` leaves whitespace, so a normalised text is returned as it was.
    """
    lines = "\n".join([" ".join(line.split()) for line in text.split("\n")])
    return _MANY_LINE_ENDS.sub("\n\n", lines).strip()
