import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.corpus.check import check_files
from lspm_ray.corpus.formats import html as module
from lspm_ray.corpus.read import check_format
from lspm_ray.errors import ConfigError
from tests.corpus.formats.toy_files import make, read, reasons, texts

SENTENCE = "The harbour of the old town is quiet in winter, but in summer its cafés are full of people. "


def page(body: str, head: str = "") -> str:
    return f"<!DOCTYPE html><html><head><title>T</title>{head}</head><body>{body}</body></html>"


ARTICLE = page(
    f"<nav><a href='/'>Home</a> <a href='/b'>Menu</a></nav><article><h1>Harbour</h1><p>{SENTENCE * 3}</p>"
    f"<p>{SENTENCE} <a href='https://example.org'>Linked words</a>.</p></article><script>hidden()</script>"
)


@pytest.mark.parametrize("name", ["a.html", "a.htm"])
def test_the_main_text_of_a_page_is_its_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(ARTICLE, encoding="utf-8")
    (text,) = texts(read(make(tmp_path / name), 3))
    assert text is not None
    assert text.count("cafés are full of people") == 4
    assert "Linked words" in text
    assert not any(word in text for word in ("Menu", "hidden", "example.org", "<"))


@pytest.mark.parametrize("content", ["", "   ", page(""), page("<script>only()</script>"), page("<img src=a.png>")])
def test_a_page_without_text_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.html").write_text(content + "\n")
    assert reasons(read(make(tmp_path / "a.html"))) == ["no text in the page"]


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""),
        ("utf-8-sig", '<meta charset="latin-1">'),
        ("latin-1", '<meta charset="iso-8859-1">'),
        ("utf-8", '<meta charset="utf-16">'),
        ("utf-8", '<meta charset="nonsense">'),
        ("utf-8", '<meta charset="punycode">'),
        ("cp1251", '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">'),
        ("utf-16", ""),
        ("shift_jis", '<meta charset="Shift_JIS">'),
        ("cp1251", ""),
    ],
)
def test_the_encoding_is_declared_or_detected(encoding: str, declared: str) -> None:
    words = {
        "cp1251": "Это обычный русский текст о погоде и море, который читают дома. ",
        "shift_jis": "これは日本語の文章です。",
    }
    text = page(f"<p>{words.get(encoding, SENTENCE) * 5}</p>", declared)
    assert module.decode(text.encode(encoding)) == text


@pytest.mark.parametrize("declared", ["utf-16", "utf-16-le", "utf-32", "unicode_escape", "punycode", "rot13", "zip"])
def test_a_declaration_that_cannot_be_true_is_ignored(declared: str) -> None:
    text = page("<p>C:\\new</p>", f'<meta charset="{declared}">')
    text += " " * (-len(text) % 4)
    assert module.decode(text.encode()) == text


def test_a_page_that_cannot_be_decoded_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b"\xff\xfe<p>" + b"\x00\xd8" * 1000)
    assert reasons(read(make(tmp_path / "a.html"))) == ["the encoding of the page cannot be told"]


HOSTILE = {
    "nested": "<div>" * 100_000 + SENTENCE,
    "unclosed": "<b><i><p>" * 10_000 + SENTENCE,
    "comments": "<!--" * 100_000,
    "tags": "<" * 500_000,
    "nul": "te\0xt " * 10_000,
    "declared": '<?xml version="1.0" encoding="utf-16"?><p>' + SENTENCE,
    "surrogate": "<p>&#xD800; &#x110000; &#0;" + SENTENCE,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(60)
def test_a_hostile_page_costs_only_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.html").write_text(page(HOSTILE[name]))
    (tmp_path / "b.html").write_text(ARTICLE, encoding="utf-8")
    found = read(make(tmp_path))
    assert len(found) == 2
    assert "cafés" in (texts(found)[-1] or "")


def test_whatever_the_extractor_raises_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise RecursionError

    monkeypatch.setattr(module._page, "main_text", broken)
    (tmp_path / "a.html").write_text(ARTICLE, encoding="utf-8")
    assert reasons(read(make(tmp_path / "a.html"))) == ["the page cannot be parsed"]


def large(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    for name, value in {"_LARGE_CHARACTERS": 100, **changes}.items():
        monkeypatch.setattr(module, name, value)


def test_a_large_page_is_read_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text(ARTICLE, encoding="utf-8")
    here = texts(read(make(tmp_path / "a.html")))
    large(monkeypatch)
    monkeypatch.setattr(module, "_page_here", None)
    assert texts(read(make(tmp_path / "a.html"))) == here


def test_a_page_that_takes_too_long_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch, _LARGE_SECONDS=0.01)
    (tmp_path / "a.html").write_text(ARTICLE, encoding="utf-8")
    assert reasons(read(make(tmp_path / "a.html"))) == ["the page takes too long to parse"]


def test_a_page_that_breaks_its_process_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    (tmp_path / "a.html").write_text(ARTICLE, encoding="utf-8")
    assert reasons(read(make(tmp_path / "a.html"))) == ["the page cannot be parsed"]


def test_without_the_library_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text(ARTICLE, encoding="utf-8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for start in (
        lambda: check_format("html"),
        lambda: check_files(make(tmp_path / "a.html")),
        lambda: read(make(tmp_path / "a.html")),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'lspm-ray\[html\]'"):
            start()
    check_format("text")
