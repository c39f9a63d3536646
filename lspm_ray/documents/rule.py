"""The contract of a cleaning rule: it edits a document, or drops it with a reason."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from lspm_ray.plugin import Plugin


@dataclass(frozen=True, slots=True)
class Drop:
    """A document is not to be used. `reason` is short and the same for every case of its kind: it is counted."""

    reason: str


class Rule(Plugin):
    """One step of cleaning. Rules run in the order in which they are listed, each on what the one before left."""

    package: ClassVar[str] = "lspm_ray.documents.rules"
    kind: ClassVar[str] = "rule"

    def prepare(self) -> None:
        """Load what the rule needs beyond its fields, and fail now if that cannot be had.

        Called before any work starts, and again in every process that uses the rule.

        Raises:
            UserError: says what is missing and how to get it.
        """

    def content(self) -> str | None:
        """A digest of what the rule does beyond its fields, such as that of a file it reads; None without any.

        Documents that were cleaned with other content are made anew.
        """
        return None

    @abstractmethod
    def apply(self, text: str) -> str | Drop:
        """The document as it goes on, or why it does not.

        Args:
            text: repaired, normalised (see `corpus.clean.normalize`) and not empty.

        Returns:
            The text, edited or as it was; an empty one is dropped as "empty after cleaning".
        """
