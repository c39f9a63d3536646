"""Write everything in small letters."""

from __future__ import annotations

from lspm_ray.documents.rule import Drop, Rule


class Lowercase(Rule):
    """Lower-case the text, by Unicode's rules and for no language in particular."""

    def apply(self, text: str) -> str | Drop:
        """The text in small letters."""
        return text.lower()
