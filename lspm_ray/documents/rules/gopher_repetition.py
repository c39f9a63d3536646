"""The repetition filter of MassiveText (Rae et al. 2021, arXiv:2112.11446, appendix A1.1 and table A1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lspm_ray.documents.rule import Drop, Rule

_Share = Annotated[float, Field(ge=0, le=1)]
_Size = Annotated[int, Field(ge=2, le=50)]

_Ints = NDArray[np.int64]


class GopherRepetition(Rule):
    """Drop documents that say the same again and again.

    Where the paper leaves a choice: words are runs of anything but whitespace, and only their characters count; what
    repeats something earlier is a duplicate, its first occurrence is not; an n-gram that occurs once is no repetition;
    of several n-grams that are equally frequent, the one with the most characters is the top one; no character
    counts twice.

    Attributes:
        max_duplicate_lines: largest share of lines that repeat an earlier line; empty ones do not count.
        max_duplicate_paragraphs: the same for paragraphs, which are separated by empty lines.
        max_duplicate_line_characters: largest share of the characters of all lines that duplicate lines may hold.
        max_duplicate_paragraph_characters: the same for paragraphs.
        max_top_ngram_characters: n -> largest share of characters in the most frequent sequence of n words.
        max_duplicate_ngram_characters: n -> largest share of characters in duplicate sequences of n words.
    """

    max_duplicate_lines: _Share = 0.3
    max_duplicate_paragraphs: _Share = 0.3
    max_duplicate_line_characters: _Share = 0.2
    max_duplicate_paragraph_characters: _Share = 0.2
    max_top_ngram_characters: dict[_Size, _Share] = Field({2: 0.20, 3: 0.18, 4: 0.16})
    max_duplicate_ngram_characters: dict[_Size, _Share] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        limits = [*self.max_top_ngram_characters.values(), *self.max_duplicate_ngram_characters.values()]
        limits += [self.max_duplicate_lines, self.max_duplicate_paragraphs]
        limits += [self.max_duplicate_line_characters, self.max_duplicate_paragraph_characters]
        if min(limits) == 1:
            raise ValueError("every limit is 1, so no document can be dropped: lower one or leave the rule out")
        return self

    def apply(self, text: str) -> str | Drop:
        """The text as it was, or dropped for the first limit that it breaks, in the order of the fields."""
        broken = self._broken_by_parts(text) or self._broken_by_ngrams(text.split())
        return Drop(f"gopher: {broken}") if broken else text

    def _broken_by_parts(self, text: str) -> str | None:
        lines, line_characters = _duplicates(text.split("\n"))
        if lines > self.max_duplicate_lines:
            return "duplicate lines"
        paragraphs, paragraph_characters = _duplicates(text.split("\n\n"))
        if paragraphs > self.max_duplicate_paragraphs:
            return "duplicate paragraphs"
        if line_characters > self.max_duplicate_line_characters:
            return "duplicate line characters"
        if paragraph_characters > self.max_duplicate_paragraph_characters:
            return "duplicate paragraph characters"
        return None

    def _broken_by_ngrams(self, words: Sequence[str]) -> str | None:
        longest = max([*self.max_top_ngram_characters, *self.max_duplicate_ngram_characters], default=0)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        total = int(lengths.sum())
        for n, repeated in _repeated_ngrams(words, longest):
            top = self.max_top_ngram_characters.get(n, 1)
            if top < 1 and _characters_in(_top(repeated, lengths, n), n, lengths) > top * total:
                return f"top {n}-gram characters"
            duplicate = self.max_duplicate_ngram_characters.get(n, 1)
            if duplicate < 1 and _characters_in(repeated.duplicates, n, lengths) > duplicate * total:
                return f"duplicate {n}-gram characters"
        return None


def _duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """Shares of the parts, and of their characters, that are in repetitions of an earlier part."""
    kept = [part for part in map(str.strip, parts) if part]
    different = dict.fromkeys(kept)
    if len(different) == len(kept):
        return 0.0, 0.0
    return 1 - len(different) / len(kept), 1 - sum(map(len, different)) / sum(map(len, kept))


class _Repeated(NamedTuple):
    """The n-grams of a document that occur more than once, each with a number of its own."""

    starts: _Ints
    """Where they occur, ascending: indices of words."""
    numbers: _Ints
    """Which n-gram occurs there."""
    counts: _Ints
    """How often each n-gram occurs."""
    first: _Ints
    """Where each n-gram occurs for the first time."""

    @property
    def duplicates(self) -> _Ints:
        """Where one occurs that has occurred before."""
        again: _Ints = self.starts[self.first[self.numbers] != self.starts]
        return again


def _repeated_ngrams(words: Sequence[str], longest: int) -> Iterator[tuple[int, _Repeated]]:
    """(n, n-grams that repeat) for n = 2, 3, ... `longest`, ending early when none does.

    An n-gram can repeat only where both (n-1)-grams in it do, and those two tell which n-gram it is. So each round
    looks only at what the one before has found, and ordinary prose is done after a few.
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    found = _only_repeated(np.arange(len(words)), np.fromiter(map(numbers.__getitem__, words), np.int64, len(words)))
    for n in range(2, longest + 1):
        next_to = np.flatnonzero(np.diff(found.starts) == 1)
        if not next_to.size:
            return
        pairs = found.numbers[next_to] * len(found.counts) + found.numbers[next_to + 1]
        found = _only_repeated(found.starts[next_to], pairs)
        if not found.starts.size:
            return
        yield n, found


def _only_repeated(starts: _Ints, keys: _Ints) -> _Repeated:
    _, first, numbers, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    repeats = counts > 1
    kept = repeats[numbers]
    renumbered = np.cumsum(repeats) - 1
    return _Repeated(starts[kept], renumbered[numbers[kept]], counts[repeats], starts[first[repeats]])


def _top(repeated: _Repeated, lengths: _Ints, n: int) -> _Ints:
    """Where the most frequent n-gram starts."""
    candidates = np.flatnonzero(repeated.counts == repeated.counts.max())
    before = np.concatenate([[0], np.cumsum(lengths)])
    first = repeated.first[candidates]
    best = candidates[np.argmax(before[first + n] - before[first])]
    everywhere: _Ints = repeated.starts[repeated.numbers == best]
    return everywhere


def _characters_in(starts: _Ints, n: int, lengths: _Ints) -> int:
    """Characters of the words that lie in an n-gram which begins at one of `starts`."""
    steps = np.zeros(len(lengths) + 1, np.int64)
    steps[starts] += 1
    steps[starts + n] -= 1
    return int(lengths[np.cumsum(steps[:-1]) > 0].sum())
