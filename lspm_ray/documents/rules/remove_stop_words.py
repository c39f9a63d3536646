"""Take out words that say little."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Self

from pydantic import field_validator, model_validator

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules._text import WORD_WITH_APOSTROPHES, tidy

_EN = """
a about above after again against all also am an and any are aren't as at be because been before being below
between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few
for from further had hadn't has hasn't have haven't having he he'd he'll he's her here here's hers herself him
himself his how how's i i'd i'll i'm i've if in into is isn't it it'd it'll it's its itself just let's me more
most mustn't my myself no nor not of off on once only or other ought our ours ourselves out over own same shall
shan't she she'd she'll she's should shouldn't so some such than that that's the their theirs them themselves
then there there's these they they'd they'll they're they've this those through to too under until up us very
was wasn't we we'd we'll we're we've were weren't what what's when when's where where's which while who who's
whom why why's will with won't would wouldn't you you'd you'll you're you've your yours yourself yourselves
"""
_LISTS = {"en": frozenset(_EN.split())}


class RemoveStopWords(Rule):
    """Remove whole words, compared without regard to case. Punctuation around them stays.

    Attributes:
        language: use the built-in list of this language: articles, pronouns, prepositions, auxiliary verbs.
        words: words of your own, instead of that list or besides it.
    """

    language: Literal["en"] | None = None
    words: tuple[str, ...] = ()

    @field_validator("words")
    @classmethod
    def _are_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if not WORD_WITH_APOSTROPHES.fullmatch(word):
                raise ValueError(f"{word!r} is not one word, so it is never found")
        return words

    @model_validator(mode="after")
    def _removes_something(self) -> Self:
        if not self.words and self.language is None:
            raise ValueError(f"give `words`, or a `language` that has a list: {', '.join(_LISTS)}")
        return self

    @cached_property
    def _stop_words(self) -> frozenset[str]:
        own = frozenset(map(_fold, self.words))
        return own if self.language is None else own | _LISTS[self.language]

    def apply(self, text: str) -> str | Drop:
        """The text without them, with its whitespace tidied; as it was if there are none."""
        pieces = WORD_WITH_APOSTROPHES.split(text)
        words = pieces[1::2]
        found = {word for word in set(words) if _fold(word) in self._stop_words}
        if not found:
            return text
        pieces[1::2] = ["" if word in found else word for word in words]
        return tidy("".join(pieces))


def _fold(word: str) -> str:
    return word.casefold().replace("’", "'")  # noqa: RUF001
