"""What comes out of files: rows, and what is no usable row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.labels import canonical
from lspm_ray.corpus.lines import MAX_LINE_BYTES
from lspm_ray.corpus.sources import SourceFile, Unit
from lspm_ray.errors import DataError

STRIPE_ROWS = 1024
"""Rows that can only be found by going through the whole file are dealt out to its units in runs of this many."""

TOO_LONG = f"document is longer than {MAX_LINE_BYTES >> 20} MiB"
_RAW_CHARACTERS = 200
# Bytes that are no UTF-8 come out of a surrogateescape decoder as these.
_UNDECODED = re.compile("[\udc80-\udcff]")


class Row(NamedTuple):
    """One row, or document. `place` says where it stands in its file; the rest is None where missing.

    A tuple, because short lines are read twice as fast with it as with a frozen data class.
    """

    place: str
    text: str | None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something in a file that is no usable row.

    Attributes:
        position: sorts the rejects of one file.
        place: the same for people.
        reason: short, the same for every case of its kind: rejects are counted by it.
        rows: how many rows were lost; None if it cannot be known.
        raw: the beginning of the content.
    """

    position: int
    place: str
    reason: str
    rows: int | None = 1
    raw: str = ""


class Rows:
    """Turns the values of the configured columns into rows."""

    def __init__(self, config: SourceConfig) -> None:
        self._texts = len(config.text_columns)
        self._has_label = config.label is not None
        self._has_split = config.split_column is not None

    def make(self, position: int, place: str, values: Sequence[object]) -> Row | Rejected:
        """`values` are in the order of `SourceConfig.columns`."""
        try:
            parts = [_as_text(value) for value in values[: self._texts]]
            label = canonical(_decoded(values[self._texts])) if self._has_label else None
            split = canonical(_decoded(values[-1])) if self._has_split else None
        except UnicodeError:
            return Rejected(position, place, "invalid UTF-8", raw=shown(values))
        except TypeError:
            what = "text or label" if self._has_label else "text"
            return Rejected(position, place, f"{what} is not a single value", raw=shown(values))
        text = "\n".join(part for part in parts if part is not None and part.strip())
        if len(text) > MAX_LINE_BYTES:
            return Rejected(position, place, TOO_LONG, raw=shown(text))
        return Row(place, text or None, label, split)


def check_present(config: SourceConfig, columns: Sequence[str], file: SourceFile) -> None:
    """Raise the error for a configured column that is not among `columns`.

    Raises:
        DataError: names the setting, the missing column and the columns that there are.
    """
    wanted = [("text", name) for name in config.text_columns]
    wanted += [("label", config.label)] if config.label is not None else []
    wanted += [("split_column", config.split_column)] if config.split_column is not None else []
    for setting, name in wanted:
        field = f"{config.section}.{setting}"
        if name not in columns:
            raise DataError(f"no such column in {file.name}", field=field, value=name, valid=columns)
        if columns.count(name) > 1:
            raise DataError(f"several columns of {file.name} have this name", field=field, value=name)


def owns(unit: Unit, index: int) -> bool:
    """Whether row `index` of a file belongs to the unit, where rows are dealt out in stripes."""
    return index // STRIPE_ROWS % unit.parts == unit.part


def shown(raw: object) -> str:
    """The beginning of something, for people."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * _RAW_CHARACTERS].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    return (raw if isinstance(raw, str) else repr(raw))[:_RAW_CHARACTERS]


def _as_text(value: object) -> str | None:
    value = _decoded(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(type(value).__name__)


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str) and not value.isascii() and _UNDECODED.search(value):
        value.encode()
    return value
