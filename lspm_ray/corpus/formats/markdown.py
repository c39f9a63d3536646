"""Markdown: one document per file, its text without the markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.content import utf8, whole_document
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.rows import Rejected, Row
from lspm_ray.corpus.sources import Unit

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)")
_TAG = re.compile(r"<[^<>]*>")
# Of which the content is no text.
_CODE_BLOCK = re.compile(r"\s*<(?:script|style)\b", re.IGNORECASE)


class Markdown(Format):
    """CommonMark with tables, in UTF-8."""

    suffixes: ClassVar[tuple[str, ...]] = ("md", "markdown")
    cut: ClassVar[Literal["whole"]] = "whole"

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """The document."""
        return whole_document(unit, lambda content: plain_text(utf8(content)))


def plain_text(markdown: str) -> str:
    """Headings, paragraphs, list items, table cells and code blocks, with blank lines between.

    Of a link its text is kept. Images, tags, bare URLs in angle brackets and a YAML front matter are left out.
    """
    from markdown_it import MarkdownIt

    front = _FRONT_MATTER.match(markdown)
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown[front.end() if front else 0 :])
    blocks = (_block(token).strip() for token in tokens)
    return "\n\n".join(block for block in blocks if block)


def _block(token: Token) -> str:
    if token.type == "inline":
        return _inline(token.children or [])
    if token.type in ("fence", "code_block"):
        return token.content
    return _without_tags(token.content) if token.type == "html_block" else ""


def _inline(tokens: Sequence[Token]) -> str:
    found: list[str] = []
    address = False
    for token in tokens:
        if token.type in ("link_open", "link_close"):
            address = token.type == "link_open" and token.info == "auto"
        elif token.type in ("softbreak", "hardbreak"):
            found.append("\n")
        elif token.type in ("text", "text_special", "code_inline") and not address:
            found.append(token.content)
    return "".join(found)


def _without_tags(block: str) -> str:
    if _CODE_BLOCK.match(block):
        return ""
    kept, position = [], 0
    # Not by a regular expression: many comments that never end would take quadratic time.
    while (start := block.find("<!--", position)) >= 0:
        kept.append(block[position:start])
        end = block.find("-->", start)
        position = end + 3 if end >= 0 else len(block)
    kept.append(block[position:])
    return html.unescape(_TAG.sub("", "".join(kept)))
