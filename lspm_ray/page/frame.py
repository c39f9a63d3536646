"""What every page has: head, navigation, sections, footer, and the parts these are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lspm_ray.page.markup import Child, Html, element, join
from lspm_ray.page.theme import style_sheet

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is ever loaded and nothing ever runs, even if escaping should fail."""


@dataclass(frozen=True)
class Section:
    """A part of the page that the navigation leads to.

    Attributes:
        anchor: its id.
        title: its heading.
        content: what follows the heading.
    """

    anchor: str
    title: str
    content: Child


def numbers_in(code_version: str, data_file: str = "report.json") -> str:
    """The footer of a report.

    Args:
        code_version: that made it.
        data_file: the file beside it that has its numbers.
    """
    return f"lspm_ray {code_version}. Every number of this page is in {data_file} beside it."


def page(title: str, header: Child, sections: Sequence[Section], footer: str, *, reload_s: int | None = None) -> str:
    """The whole document, in one file that needs nothing else.

    Args:
        title: of the document.
        header: comes between title and navigation.
        sections: of the page, in order.
        footer: at its end.
        reload_s: seconds after which a browser asks for it again; None for a page that stays as it is.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        None if reload_s is None else element("meta", http_equiv="refresh", content=str(reload_s)),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(style_sheet())),
    )
    links = [element("li", element("a", section.title, href=f"#{section.anchor}")) for section in sections]
    body = element(
        "body",
        element(
            "header",
            element("h1", title),
            header,
            element("nav", element("ul", links), aria_label="Sections"),
        ),
        element("main", (element("section", element("h2", s.title), s.content, id=s.anchor) for s in sections)),
        element("footer", footer),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def figure(svg: Html, caption: Child = None) -> Html:
    """A drawing with words below it."""
    return element(
        "figure",
        element("div", svg, class_="canvas", tabindex="0"),
        element("figcaption", join(caption)) if caption else None,
    )


def tiles(entries: Iterable[tuple[str, Child, Child]]) -> Html:
    """The few numbers that matter most: what it is, the number, a note."""
    return element(
        "dl",
        (
            element("div", element("dt", term), element("dd", value), element("dd", note, class_="sub"), class_="tile")
            for term, value, note in entries
        ),
        class_="tiles",
    )


def verdict(question: str, answer: Child, *, good: bool) -> Html:
    """A question and its answer, set apart from the rest."""
    return element(
        "div", element("p", element("strong", question, " "), answer), class_="verdict" if good else "verdict warn"
    )
