from pathlib import Path

import pytest

from lspm_ray.corpus.formats.markdown import plain_text
from tests.corpus.formats.toy_files import make, read, reasons, texts

PAGE = """---
title: hidden
tags: [a, b]
---

# A *heading*

Two lines with [a link](https://example.org/x "title"), `code`
and an ![image](picture.png) <b>bold</b> &amp; <https://example.org>.

- first
- second
  1. nested

| name | value |
|------|-------|
| one  | **1** |

```python
print("kept")
```

> quoted

<div align="center">
<!-- hidden -->
<p>shown &lt;</p>
</div>

<script>
hidden()
</script>
"""

TEXT = [
    "A heading",
    "Two lines with a link, code\nand an  bold & .",
    "first",
    "second",
    "nested",
    "name",
    "value",
    "one",
    "1",
    'print("kept")',
    "quoted",
    "shown <",
]


@pytest.mark.parametrize("name", ["a.md", "a.markdown"])
def test_a_file_is_a_document_without_its_markup(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\ufeff" + PAGE, encoding="utf-8")
    assert texts(read(make(tmp_path / name), 3)) == ["\n\n".join(TEXT)]


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("---\n\ntext", "text"),
        ("---\nnot closed", "not closed"),
        ("text\n---\n", "text"),
        ("---\r\na: 1\r\n---\r\ntext", "text"),
        ("a  \nb\\\nc", "a\nb\nc"),
        ("\\*no emphasis\\*", "*no emphasis*"),
        ("<!-- open\n\ntext", ""),
        ("![only](image.png)", ""),
        ("[ref]\n\n[ref]: https://example.org", "ref"),
    ],
)
def test_corners(markdown: str, text: str) -> None:
    assert plain_text(markdown) == text


@pytest.mark.parametrize(
    "hostile",
    [
        ">" * 50_000,
        "[" * 50_000,
        "- " * 20_000 + "x",
        "*a " * 20_000,
        "`" * 50_000,
        "<" * 50_000,
        "---\n" + "a\n" * 50_000,
    ],
    ids=["quotes", "brackets", "lists", "emphasis", "backticks", "tags", "front matter"],
)
@pytest.mark.timeout(60)
def test_hostile_markdown_is_read_in_bounded_time_and_depth(hostile: str) -> None:
    assert isinstance(plain_text(hostile), str)


def test_invalid_utf8_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"# Title\n\n\xff\xfe")
    assert reasons(read(make(tmp_path / "a.md"))) == ["invalid UTF-8"]
