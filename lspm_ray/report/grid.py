"""What every table of a page is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lspm_ray.page.markup import Child, Html, element
from lspm_ray.report import words

TALL_FROM = 13
"""Rows from which a table scrolls inside its own frame."""


def table(anchor: str, caption: str, heads: Sequence[Html], bodies: Sequence[Html], *, tall: bool = False) -> Html:
    """A table that scrolls by itself where the page is too narrow; its id is `t-` and the anchor."""
    made = element(
        "table", element("caption", caption), element("thead", element("tr", heads)), bodies, id=f"t-{anchor}"
    )
    return element(
        "div", made, class_="scroll tall" if tall else "scroll", role="region", tabindex="0", aria_label=caption[:80]
    )


def head(content: Child, unit: str | None = None, *, text: bool = False) -> Html:
    """The head of a column, with its unit below; `text` for a column of words."""
    below = element("span", unit, class_="unit") if unit else None
    return element("th", content, below, scope="col", class_="text" if text else None)


def row(head: Child, cells: Iterable[Html], mark: str | None = None) -> Html:
    """A row and what it is about; `mark` is a class of the style sheet."""
    return element("tr", element("th", head, scope="row"), cells, class_=mark)


def cell(content: Child) -> Html:
    """A number."""
    return element("td", content)


def text_cell(content: Child) -> Html:
    """Words."""
    return element("td", content, class_="text")


def missing(why: str = "does not apply") -> Html:
    """A cell without a value."""
    return element("td", missing_text(why))


def missing_text(why: str) -> Html:
    """A dash that says why there is nothing."""
    return element("span", words.MISSING, title=why, aria_label=why)


def share_of(part: int, whole: int) -> str:
    """A share in percent, without its unit."""
    return words.percent(part / whole) if whole else words.MISSING


def bar(share: float) -> Html:
    """A share in [0, 1] as a bar, for the eye alone: the number stands beside it."""
    return element("span", element("i", style=f"width:{100 * share:.1f}%"), class_="bar", aria_hidden="true")
