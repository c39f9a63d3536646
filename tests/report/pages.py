"""A page taken apart, for tests to look at."""

from __future__ import annotations

import itertools
import re
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


def check_outline(root: Node) -> None:
    """One first heading, and no level left out."""
    levels = [int(node.tag[1]) for node in root.every() if re.fullmatch(r"h\d", node.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def check_tables(root: Node) -> int:
    """Captions, heads, and as many cells as heads; returns how many tables there are."""
    tables = list(root.all("table"))
    for table in tables:
        assert next(table.all("caption")).text()
        heads = list(next(table.all("thead")).all("th"))
        assert all(head.attributes["scope"] == "col" and head.text() for head in heads)
        rows = [row for body in table.all("tbody") for row in body.all("tr") if row.attributes.get("class") != "group"]
        assert rows
        assert all(len(row.children) == len(heads) for row in rows)
        assert all(next(row.all("th")).attributes["scope"] == "row" for row in rows)
    return len(tables)


def check_figures(root: Node) -> int:
    """Every drawing says what it shows; returns how many there are."""
    drawings = list(root.all("svg"))
    for drawing in drawings:
        title, description = (node for node in drawing.children[:2] if isinstance(node, Node))
        assert drawing.attributes["aria-labelledby"].split() == [title.attributes["id"], description.attributes["id"]]
        assert title.text()
        assert description.text()
    return len(drawings)


def check_references(root: Node) -> None:
    """Ids are unique, and what refers to one finds it."""
    nodes = list(root.every())
    ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    values = [value for node in nodes for value in node.attributes.values()]
    targets = {target for value in values for target in re.findall(r"url\(#([^)]+)\)", value)}
    targets |= {node.attributes["href"][1:] for node in nodes if node.attributes.get("href", "").startswith("#")}
    assert targets <= set(ids)


def check_inert(root: Node) -> None:
    """Nothing is loaded and nothing runs."""
    for node in root.every():
        assert node.tag not in {"script", "img", "iframe", "object", "embed", "image", "base"}
        assert not any(key.startswith("on") for key in node.attributes)
        for key in ("href", "src", "xlink:href"):
            assert node.attributes.get(key, "#").startswith(("#", "data:,"))
    policy = next(n for n in root.all("meta") if n.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")


def check_page(root: Node) -> None:
    """What holds for every page, whatever is on it."""
    check_outline(root)
    check_references(root)
    check_inert(root)
