"""From the values of a label column to class indices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lspm_ray.errors import DataError

MAX_LABELS = 1000
_INTEGER = re.compile(r"-?\d+")


def canonical(value: object) -> str | None:
    """A label value as text, so that 1, 1.0 and "1" from different file formats are one label.

    Returns:
        The text; `true` / `false` for booleans; None for a missing value (None, NaN, empty text).

    Raises:
        TypeError: `value` is not a single value but a list, mapping or other object.
    """
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    raise TypeError(f"{type(value).__name__} is not a label")


@dataclass(frozen=True)
class LabelSet:
    """Which values of the label column are labels, and what the labels are called.

    Attributes:
        names: value -> label name; None accepts every value under its own name.
    """

    names: Mapping[str, str] | None

    @classmethod
    def of(cls, labels: list[str] | dict[str, str] | None) -> LabelSet:
        """From the setting `data.labels`."""
        return cls({label: label for label in labels} if isinstance(labels, list) else labels)

    def name(self, value: str, where: str) -> str:
        """Label name of a column value.

        Raises:
            DataError: `value` is not in the label set; names the row (`where`) and the valid values.
        """
        if self.names is None:
            return value
        name = self.names.get(value)
        if name is None:
            raise DataError(
                f"a label that is not in data.labels, in {where}",
                field="data.labels",
                value=value,
                valid=self.names,
                hint="Add it to data.labels, or remove the row",
            )
        return name

    def ordered(self, counts: Mapping[str, int]) -> list[str]:
        """Label names in the order of the class indices, given how often each name was found.

        Raises:
            DataError: fewer than two labels have rows.
        """
        present = sorted(name for name, count in counts.items() if count)
        if len(present) < 2:
            raise DataError(
                "only one class has rows; a classifier needs two" if present else "no row has a label",
                field="data.label",
                value=present[0] if present else None,
                hint="Choose another label column, or check data.labels",
            )
        if self.names is None:
            return natural_order(present)
        return list(dict.fromkeys(self.names.values()))


def natural_order(values: Iterable[str]) -> list[str]:
    """Sorted; as numbers where all are whole numbers."""
    found = list(values)
    if all(_INTEGER.fullmatch(value) for value in found):
        return sorted(found, key=int)
    return sorted(found)


def check_count(labels: Mapping[str, int]) -> None:
    """Refuse a label column that is plainly not one.

    Raises:
        DataError: more than `MAX_LABELS` different values.
    """
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"more than {MAX_LABELS} different labels: is this a column of labels?",
            field="data.label",
            value=next(iter(labels)),
        )
