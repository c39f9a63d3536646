"""Keep documents of a certain length."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lspm_ray.documents.rule import Drop, Rule


class Length(Rule):
    """Drop what is too short or too long; a limit that is not given is not checked, but one must be.

    Attributes:
        min_characters: fewest characters (code points).
        max_characters: most characters.
        min_words: fewest words, that is, runs of anything but whitespace.
        max_words: most words.
    """

    min_characters: int | None = Field(None, ge=1)
    max_characters: int | None = Field(None, ge=1)
    min_words: int | None = Field(None, ge=1)
    max_words: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _limits_make_sense(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        _check_order("characters", self.min_characters, self.max_characters)
        _check_order("words", self.min_words, self.max_words)
        return self

    def apply(self, text: str) -> str | Drop:
        """The text as it was, or dropped as "too short" or "too long"."""
        drop = _compare(len(text), self.min_characters, self.max_characters)
        if drop is None and (self.min_words is not None or self.max_words is not None):
            drop = _compare(len(text.split()), self.min_words, self.max_words)
        return text if drop is None else drop


def _compare(length: int, least: int | None, most: int | None) -> Drop | None:
    if least is not None and length < least:
        return Drop("too short")
    if most is not None and length > most:
        return Drop("too long")
    return None


def _check_order(what: str, least: int | None, most: int | None) -> None:
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_{what} ({least}) is above max_{what} ({most}): every document would be dropped")
