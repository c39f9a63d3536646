"""Texts in other languages."""

from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.documents.rule import Drop
from lspm_ray.documents.rules.language import Language as Rule
from lspm_ray.library import Library
from lspm_ray.validators.contract import Check, Examples, Outputs, State


class Language(Check):
    """Refuses what is not known to be in one of `languages`, as the cleaning rule `language` does.

    Of a line of a few words the language is often unclear. Takes up to a millisecond per text.

    Attributes:
        languages: ISO 639-1 codes, such as `en`.
        min_confidence: least probability that the text is in one of them.
    """

    needs: ClassVar[Library | None] = Library(module="lingua", extra="language")
    languages: tuple[str, ...] = Field(("en",), min_length=1)
    min_confidence: float = Field(0.5, gt=0, le=1)

    @property
    def reads_texts(self) -> bool:
        """Yes."""
        return True

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """Learns nothing.

        Raises:
            ConfigError: one of `languages` is unknown.
        """
        self._rule.prepare()
        return {}

    def verdict(self, outputs: Outputs, state: State) -> list[str | None]:
        """`language`."""
        if outputs.texts is None:
            raise ValueError("there are no texts")
        return ["language" if isinstance(self._rule.apply(text), Drop) else None for text in outputs.texts]

    @property
    def _rule(self) -> Rule:
        return Rule(languages=self.languages, min_confidence=self.min_confidence)
