"""Take out numbers."""

from __future__ import annotations

import re

from pydantic import Field

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules._text import tidy

_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,]\d+)*(?!\w)")


class RemoveNumbers(Rule):
    """Remove numbers that stand alone, with their decimal point and thousands separators.

    Digits in a word stay ("B2B", "1990s"), and so does what is around a number ("$5" becomes "$").

    Attributes:
        with_: what to write instead, such as `<number>`.
    """

    with_: str = Field("", max_length=100)

    def apply(self, text: str) -> str | Drop:
        """The text without them, with its whitespace tidied; as it was if there are none."""
        edited, count = _NUMBER.subn(self.with_.replace("\\", r"\\"), text)
        return tidy(edited) if count else text
