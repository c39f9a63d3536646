"""Drop documents with words from a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from pydantic import Field, field_validator, model_validator

from lspm_ray.config import digest_of
from lspm_ray.corpus.clean import normalize
from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules._text import WORD
from lspm_ray.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class _Entries:
    """What is looked for, case-folded and cut into words."""

    words: frozenset[str]
    phrases: frozenset[tuple[str, ...]]
    lengths: dict[str, tuple[int, ...]]
    """First word of a phrase -> lengths in words of the phrases that it begins."""

    def count(self, words: Sequence[str]) -> int:
        found = sum(map(self.words.__contains__, words))
        if not self.phrases or self.lengths.keys().isdisjoint(words):
            return found
        return found + sum(
            start + length <= len(words) and tuple(words[start : start + length]) in self.phrases
            for start, word in enumerate(words)
            for length in self.lengths.get(word, ())
        )


class Blocklist(Rule):
    """Drop documents in which words or phrases of a list occur, compared without regard to case.

    Only whole words count, so "ass" is not found in "class". Words of a phrase may be apart by whatever is no letter,
    digit or underscore: "bad word" is found in "bad-word". Scripts without spaces between words (Chinese, Japanese,
    Thai) cannot be searched like this.

    Attributes:
        words: words and phrases.
        file: text file (UTF-8, may be compressed) with more of them, one a line; a path or URI. Empty lines and lines
            that begin with # do not count.
        max_matches: how many occurrences a document may have.
    """

    words: tuple[str, ...] = ()
    file: str | None = Field(None, min_length=1)
    max_matches: int = Field(0, ge=0)

    @field_validator("words")
    @classmethod
    def _have_letters(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if not _fold(word):
                raise ValueError(f"{word!r} has no letter or digit, so it is never found")
        return words

    @model_validator(mode="after")
    def _looks_for_something(self) -> Self:
        if not self.words and self.file is None:
            raise ValueError("give `words`, a `file` of words, or both")
        return self

    def prepare(self) -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be opened.
            DataError: it is not UTF-8, holds no word, or has a line without a letter or digit.
        """
        self._entries.count(())

    def content(self) -> str | None:
        """A digest of the words of the file."""
        return None if self.file is None else digest_of(sorted(map(list, _read(self.file))))

    @cached_property
    def _entries(self) -> _Entries:
        return _index([*map(_fold, self.words), *(_read(self.file) if self.file is not None else ())])

    def apply(self, text: str) -> str | Drop:
        """The text as it was, or dropped as "blocked word"."""
        if self._entries.count(WORD.findall(text.casefold())) > self.max_matches:
            return Drop("blocked word")
        return text


def _fold(entry: str) -> tuple[str, ...]:
    return tuple(WORD.findall(normalize(entry).casefold()))


def _index(entries: Iterable[tuple[str, ...]]) -> _Entries:
    different = frozenset(entries)
    phrases = frozenset(entry for entry in different if len(entry) > 1)
    lengths: dict[str, set[int]] = {}
    for phrase in phrases:
        lengths.setdefault(phrase[0], set()).add(len(phrase))
    words = frozenset(entry[0] for entry in different if len(entry) == 1)
    return _Entries(words, phrases, {word: tuple(sorted(found)) for word, found in lengths.items()})


def _read(file: str) -> list[tuple[str, ...]]:
    entries = []
    for number, line in enumerate(_text_of(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _fold(line)
        if not entry:
            raise DataError(f"line {number} has no letter or digit, so it is never found", field="file", value=line)
        entries.append(entry)
    if not entries:
        raise DataError("there is no word in this file", field="file", value=file)
    return entries


def _text_of(file: str) -> str:
    from lspm_ray.artifact import filesystem

    fs, path = filesystem(file)
    try:
        with fs.open_input_stream(path) as stream:
            return bytes(stream.read()).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the list of words: {error}", field="file", value=file) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", field="file", value=file) from None
