"""Keep documents in certain languages."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.errors import ConfigError

if TYPE_CHECKING:
    from lingua import LanguageDetector

_CHARACTERS = 2000


class Language(Rule):
    """Drop what is not in one of `languages`, by its first 2,000 characters.

    Probabilities are those of lingua (n-grams, naive Bayes) in its low accuracy mode, in which a process takes 80 MB
    instead of 1 GB. It is meant for documents: of a line of a few words it is often unsure.

    Attributes:
        languages: ISO 639-1 codes, such as `en`; Norwegian is `nb` or `nn`.
        min_confidence: least probability that the document is in one of them.
    """

    languages: tuple[str, ...] = Field(min_length=1)
    min_confidence: float = Field(0.5, gt=0, le=1)

    def prepare(self) -> None:
        """Make the detector; it loads its n-grams of a script when it first sees that script.

        Raises:
            ConfigError: lingua is not installed, or it does not know one of the languages; lists those it does.
        """
        try:
            _detector()
        except ImportError:
            raise ConfigError(
                "this rule needs the library lingua-language-detector, which is not installed",
                field="rule",
                value=self.name,
                hint="pip install 'lspm-ray[language]'",
            ) from None
        for code in self.languages:
            if code not in _codes():
                raise ConfigError("unknown language", field="languages", value=code, valid=_codes())

    def apply(self, text: str) -> str | Drop:
        """The text as it was, or why not.

        Dropped as "other language" if one that is not listed reaches `min_confidence`, else as "language unclear".
        """
        wanted, other = 0.0, 0.0
        for found in _detector().compute_language_confidence_values(text[:_CHARACTERS]):
            if found.language.iso_code_639_1.name.lower() in self.languages:
                wanted += found.value
            else:
                other = max(other, found.value)
        # The last digits differ from call to call.
        if round(wanted, 9) >= self.min_confidence:
            return text
        return Drop("other language" if round(other, 9) >= self.min_confidence else "language unclear")


@cache
def _detector() -> LanguageDetector:
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()


@cache
def _codes() -> list[str]:
    from lingua import Language as Known

    return sorted(language.iso_code_639_1.name.lower() for language in Known.all())
