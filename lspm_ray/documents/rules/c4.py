"""The cleaning of C4 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", JMLR 21:140, section 2.2)."""

from __future__ import annotations

import re

from pydantic import Field

from lspm_ray.documents.rule import Drop, Rule

_ENDS = (".", "!", "?", '"', "”", "»", "。", "！", "？")  # noqa: RUF001
_ELLIPSES = ("...", "…")
# No quantifier before the space: a megabyte of dots must not be looked at from each of its dots again.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]{0,3}(?!\S)|[。！？]|\w$", re.MULTILINE)  # noqa: RUF001
_MANY_LINE_ENDS = re.compile(r"\n{3,}")


class C4(Rule):
    """Keep the lines that are sentences, and the pages that have some.

    The defaults are those of the paper as it appeared in the journal (5 words, 3 sentences; the first preprint had it
    the other way round). As in the released data set, an ellipsis does not end a line properly: it is cut off there.
    A sentence ends at a full stop, question or exclamation mark before a space, or at the end of a line, which counts
    "Mr. Smith" as two; the authors used a trained splitter. Empty lines between kept ones stay. What else the paper
    does is left to other rules or stages (`blocklist`, `language`, deduplication) or left out (policy notices).

    Attributes:
        terminal_punctuation: keep only lines that end in a full stop, question, exclamation or closing quotation mark.
        min_words_per_line: keep only lines of at least so many words.
        curly_brackets: keep documents with a `{`, which is more often code than text.
        min_sentences: drop documents with fewer sentences in the lines that are kept.
    """

    terminal_punctuation: bool = True
    min_words_per_line: int = Field(5, ge=0)
    curly_brackets: bool = False
    min_sentences: int = Field(3, ge=0)

    def apply(self, text: str) -> str | Drop:
        """The lines that are kept, or why none is."""
        lower = text.lower()
        if "lorem ipsum" in lower:
            return Drop("c4: lorem ipsum")
        if not self.curly_brackets and "{" in text:
            return Drop("c4: curly bracket")
        script = "javascript" in lower
        kept = [line for line in text.split("\n") if not line or self._keeps(line, script)]
        text = _MANY_LINE_ENDS.sub("\n\n", "\n".join(kept)).strip()
        return text if self._has_sentences(text) else Drop("c4: too few sentences")

    def _keeps(self, line: str, script: bool) -> bool:
        if self.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith(_ELLIPSES)):
            return False
        # Splitting off the first few words is enough to know that there are that many.
        if len(line.split(None, self.min_words_per_line)) < self.min_words_per_line:
            return False
        return not (script and "javascript" in line.lower())

    def _has_sentences(self, text: str) -> bool:
        ends = _SENTENCE_END.finditer(text)
        return all(next(ends, None) is not None for _ in range(self.min_sentences))
