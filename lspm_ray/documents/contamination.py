"""Keeps the texts of evaluation sets out of the training data.

A document that shares a run of `words` words with an evaluation text is dropped (Brown et al. 2020, GPT-3, appendix C:
runs of 13 words). Case and punctuation do not count. A shorter evaluation text matches a document that is nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.clean import normalize
from lspm_ray.corpus.dedup import shingles
from lspm_ray.corpus.read import Row, read_unit
from lspm_ray.corpus.sources import Unit
from lspm_ray.corpus.staging import Staging
from lspm_ray.documents.config import EvaluationSet


@dataclass(frozen=True)
class CollectRuns:
    """Hashes the runs of words of one unit of an evaluation set (an item is `{"set", "number", "unit"}`)."""

    sets: dict[str, EvaluationSet]
    staging: Staging
    words: int

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the sorted, different hashes; returns the number of texts."""
        done = f"evaluation/{item['number']:06d}.json"
        return self.staging.read_result(done) or self.staging.write_result(done, self._collect(item))

    def _collect(self, item: dict[str, Any]) -> dict[str, Any]:
        texts, runs = 0, [np.empty(0, dtype=np.uint64)]
        for row in read_unit(Unit.from_dict(item["unit"]), self.sets[item["set"]]):
            if isinstance(row, Row) and row.text and (text := normalize(row.text)):
                texts += 1
                runs.append(shingles(text, self.words))
        with self.staging.open_output(_name(item["number"])) as sink:
            sink.write(np.unique(np.concatenate(runs)).astype("<u8").tobytes())
        return {"texts": texts}


@dataclass(frozen=True)
class Contamination:
    """Tells which evaluation set a document shares a run of words with.

    Attributes:
        staging: where `CollectRuns` wrote.
        numbers: evaluation set -> numbers of its items.
        words: of a run.
    """

    staging: Staging
    numbers: dict[str, list[int]]
    words: int

    def find(self, text: str) -> str | None:
        """The first set that the normalised text shares a run with, or None."""
        mine = shingles(text, self.words)
        for name, numbers in self.numbers.items():
            runs = _runs(self.staging, tuple(numbers))
            if len(runs):
                place = np.minimum(np.searchsorted(runs, mine), len(runs) - 1)
                if (runs[place] == mine).any():
                    return name
        return None


@lru_cache(maxsize=16)
def _runs(staging: Staging, numbers: tuple[int, ...]) -> NDArray[np.uint64]:
    """All runs of a set, sorted; once per process."""
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *(_read(staging, number) for number in numbers)]))


def _read(staging: Staging, number: int) -> NDArray[np.uint64]:
    with staging.open_input(_name(number)) as source:
        return np.frombuffer(source.read(), dtype="<u8").astype(np.uint64)


def _name(number: int) -> str:
    return f"evaluation/{number:06d}.u8"


def items(sets: dict[str, Iterable[Unit]]) -> list[dict[str, Any]]:
    """Work items for `CollectRuns`."""
    pairs = [(name, unit) for name, units in sets.items() for unit in units]
    return [{"set": name, "number": number, "unit": unit.to_dict()} for number, (name, unit) in enumerate(pairs)]
