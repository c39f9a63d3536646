"""HTML that cannot be injected into: whatever is not `Html` already is escaped when it enters an element."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

_VOID = {"br", "col", "link", "meta"}
_LONG = 60
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Explicit direction marks could make one name look like another; every name is isolated by `name` instead.
_DIRECTION = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Child = str | None | Iterable["Child"]


class Html(str):
    """Text that is HTML already. Make it with `element`, never from input."""

    __slots__ = ()


def element(tag: str, *children: Child, **attributes: str | bool | None) -> Html:
    """`<tag attributes>children</tag>`.

    Args:
        tag: element name.
        children: `Html` as it is, other text escaped; None is left out; iterables are flattened.
        attributes: a trailing underscore is cut (`class_`), inner ones become hyphens; True gives a bare attribute,
            None and False none.
    """
    opening = tag + "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def join(children: Child) -> Html:
    """Children one after another, escaped where they are not `Html`."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        return Html(html.escape(plain(children)))
    return Html("".join(join(child) for child in children))


def name(text: str) -> Html:
    """A name somebody else chose: set apart from the text direction around it; long ones may be shown in part."""
    return element("bdi", text, title=text if len(text) > _LONG else None)


def plain(text: str) -> str:
    """Text without what neither HTML nor XML may hold: control characters, lone surrogates, direction overrides."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_character(c) for c in text)


def _character(character: str) -> str:
    if character in "\n\t":
        return character
    if character in _DIRECTION:
        return ""
    bad = unicodedata.category(character) in ("Cc", "Cs") or (ord(character) & 0xFFFE) == 0xFFFE
    return _REPLACEMENT if bad else character


def _attribute(key: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{html.escape(plain(value))}"'
