"""A page taken apart, for tests to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "col", "link", "meta"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, tag: str) -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag:
                    yield child
                yield from child.all(tag)

    def every(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.every()

    def by_id(self, wanted: str) -> Node:
        return next(node for node in self.every() if node.attributes.get("id") == wanted)

    def rows(self) -> list[list[str]]:
        """Cells of a table's body rows; an interval is set apart by a bar."""
        bodies = [row for body in self.all("tbody") for row in body.all("tr")]
        return [[_cell(cell) for cell in row.children if isinstance(cell, Node)] for row in bodies]


def _cell(cell: Node) -> str:
    parts = [child.text() if isinstance(child, Node) else child for child in cell.children]
    return "|".join(part for part in parts if part)


class _Parser(HTMLParser):
    """Fails on anything that is not properly nested and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), f"an attribute occurs twice in <{tag}>"
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Node:
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.open == [parser.root], f"<{parser.open[-1].tag}> is not closed"
    return parser.root
