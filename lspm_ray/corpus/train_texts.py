"""The texts of the training split before there is a tokenizer, for those who train one: no other split is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.clean import cut, reason_to_drop, text_id
from lspm_ray.corpus.config import SPLITS, DataConfig
from lspm_ray.corpus.read import Rejected, read_unit
from lspm_ray.corpus.scan import split_code
from lspm_ray.corpus.sources import Layout, Unit, fingerprint_sources, resolve
from lspm_ray.corpus.split import UNASSIGNED, order_keys, shares_by_hash, split_of

_READ_ROWS = 1024
_TRAIN = SPLITS.index("train")
_LAST_KEY = (1 << 64) - 1


class _Batch(NamedTuple):
    """Some usable rows: their texts, sha256 [rows, 32] and split codes [rows]."""

    texts: list[str]
    ids: NDArray[np.uint8]
    splits: NDArray[np.int8]


@dataclass(frozen=True)
class _Survey:
    """What only all rows together tell.

    Attributes:
        shares: the splits that rows are divided among by hash, with their shares.
        elsewhere: order keys of texts that some row gives to another split.
        last: order key of the last row that `max_rows` leaves.
    """

    shares: dict[str, float]
    elsewhere: NDArray[np.uint64]
    last: int = _LAST_KEY


@dataclass(frozen=True)
class TrainTexts:
    """The different texts that `prepare` puts into the training split, and their near duplicates, cleaned as there.

    Files are read anew by every iteration, piece by piece in a pseudo-random order: whoever stops early has a sample.
    Where rows name their split, or `max_rows` cuts, everything is read once before.

    Attributes:
        config: what the user says about the data.
    """

    config: DataConfig

    def key(self) -> dict[str, Any]:
        """What decides the texts. Reads the source files."""
        beside = {"source", "test_source", "labels", "near_duplicates", "similarity", "rows_per_shard"}
        return {
            "data": self.config.model_dump(mode="json", exclude=beside),
            "sources": fingerprint_sources(self.config),
        }

    def __iter__(self) -> Iterator[str]:
        units = sorted(Layout().units(resolve(self.config)), key=self._place)
        survey = self._survey(units)
        seen: set[int] = set()
        for batch in self._read(unit for unit in units if not unit.file.held_out):
            keys = order_keys(batch.ids, self.config.seed)
            free = (batch.splits == UNASSIGNED) | (batch.splits == _TRAIN)
            free &= ~np.isin(keys, survey.elsewhere) & (keys <= np.uint64(survey.last))
            for index in np.flatnonzero(free):
                key, row_id = int(keys[index]), batch.ids[index].tobytes()
                if key not in seen and split_of(row_id, survey.shares, self.config.seed) == "train":
                    seen.add(key)
                    yield batch.texts[index]

    def _place(self, unit: Unit) -> bytes:
        return hashlib.sha256(f"{self.config.seed} {unit.part} {unit.file.name}".encode()).digest()

    def _survey(self, units: list[Unit]) -> _Survey:
        """Read what has to be read before the first text: nothing, the test source, or all."""
        limit = self.config.max_rows
        everything = limit is not None or self.config.split_column is not None
        given: set[int] = set()
        keys, elsewhere = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)]
        for batch in self._read(unit for unit in units if everything or unit.file.held_out):
            found = order_keys(batch.ids, self.config.seed)
            named = (batch.splits != UNASSIGNED) & (batch.splits != _TRAIN)
            given.update(batch.splits[named].tolist())
            elsewhere.append(found[named])
            if limit is not None:
                keys.append(found)
        shares = shares_by_hash(self.config.splits.shares(), (SPLITS[code] for code in given))
        first = np.unique(np.concatenate(keys))[:limit]
        cuts = limit is not None and len(first) == limit
        return _Survey(shares, np.unique(np.concatenate(elsewhere)), int(first[-1]) if cuts else _LAST_KEY)

    def _read(self, units: Iterable[Unit]) -> Iterator[_Batch]:
        for unit in units:
            texts: list[str] = []
            splits: list[int] = []
            for row in read_unit(unit, self.config):
                if isinstance(row, Rejected):
                    continue
                text, _ = cut(row.text or "", self.config.max_characters)
                if reason_to_drop(text, row.label, self.config.min_characters) is not None:
                    continue
                texts.append(text)
                splits.append(split_code(row, unit.file))
                if len(texts) == _READ_ROWS:
                    yield _batch(texts, splits)
                    texts, splits = [], []
            if texts:
                yield _batch(texts, splits)


def _batch(texts: list[str], splits: list[int]) -> _Batch:
    ids = np.frombuffer(b"".join(text_id(text) for text in texts), dtype=np.uint8).reshape(-1, 32)
    return _Batch(texts, ids, np.array(splits, dtype=np.int8))
