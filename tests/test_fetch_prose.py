"""The decoders of benchmarks/fetch_prose.py, on small inputs made here; no network, no apt."""

import gzip
import importlib.util
import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.sources import resolve
from lspm_ray.errors import ConfigError, DataError
from lspm_ray.settings import Settings

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "prose").glob("*.yaml"))


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_prose", ROOT / "benchmarks" / "fetch_prose.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


fetch_prose = load()


# What R writes


def chars(text: str | None) -> bytes:
    content = (text or "").encode()
    return struct.pack(">ii", 0x40009, -1 if text is None else len(content)) + content


def strings(values: list[str | None]) -> bytes:
    return struct.pack(">ii", 16, len(values)) + b"".join(map(chars, values))


def ints(values: list[int]) -> bytes:
    return struct.pack(f">ii{len(values)}i", 13, len(values), *values)


def named(values: dict[str, bytes], symbol: bytes) -> bytes:
    names = struct.pack(">i", 0x402) + symbol + strings([*values]) + struct.pack(">i", 254)
    return struct.pack(">ii", 0x213, len(values)) + b"".join(values.values()) + names


def whole(item: bytes) -> bytes:
    return b"X\n" + struct.pack(">iiii", 3, 0x40203, 0x30500, 5) + b"UTF-8" + item


NAMES = struct.pack(">i", 1) + chars("names")
NAMES_AGAIN = struct.pack(">i", (1 << 8) | 255)


@given(st.lists(st.none() | st.text()))
def test_r_strings_are_read(values: list[str | None]) -> None:
    assert fetch_prose.RReader(whole(strings(values))).read() == values


@given(st.integers(0, 60))
def test_r_data_that_are_cut_short_are_an_error(cut: int) -> None:
    content = whole(named({"a": strings(["one"]), "b": ints([1, 2])}, NAMES))
    assert cut < len(content)
    with pytest.raises(DataError):
        fetch_prose.RReader(content[:cut]).read()


def test_r_parts_that_are_not_read_are_an_error() -> None:
    with pytest.raises(DataError, match="not read"):
        fetch_prose.RReader(whole(struct.pack(">ii", 24, 0))).read()


NOVEL = ["A NOVEL", "", "by Somebody", "", "CHAPTER I", "", "It was _very_ well-", "known, she said--", "oh yes.", ""]
NOVEL += ["“No!”", "", "CHAPTER II", "", "The end."]


@pytest.fixture
def novels() -> dict[str, bytes]:
    stored = zlib.compress(whole(strings([*NOVEL])))
    entry = struct.pack(">i", len(whole(strings([*NOVEL])))) + stored
    # R writes a symbol once, where it comes first, and refers to it afterwards.
    variables = named({"emma": ints([3, len(entry)])}, NAMES)
    index = named({"variables": variables, "compressed": ints([1])}, NAMES_AGAIN)
    return {"./data/Rdata.rdx": gzip.compress(whole(index)), "./data/Rdata.rdb": b"xyz" + entry}


def test_novels_are_cut_at_chapters(novels: dict[str, bytes]) -> None:
    (item,) = fetch_prose.read_novels(novels)
    assert item.name == "emma.txt.gz"
    assert item.raw.decode().split("\n")[:-1] == NOVEL
    assert item.documents == [
        ("emma/1", "It was very well-known, she said--oh yes.\n\n“No!”"),
        ("emma/2", "The end."),
    ]


def test_a_damaged_database_is_an_error(novels: dict[str, bytes]) -> None:
    novels["./data/Rdata.rdb"] = novels["./data/Rdata.rdb"][:-9]
    with pytest.raises(DataError, match="emma"):
        list(fetch_prose.read_novels(novels))


# SWORD


OSIS = """<milestone type="x-importer"/>skipped<div canonical="true" osisID="Col" sID="g1" type="book"/>
<title level="1" type="main">To the Colossians</title> <div sID="g2" type="x-p"/>
<chapter n="1" osisID="Col.1" sID="Col.1"/><w lemma="strong:G1">Christ</w><note placement="foot">Not <b>this</b>.
</note><w>Jesus</w> &amp; Timothy<note>nor this</note>, <div type="x-milestone" sID="pv1"/>brothers.
<div eID="g2" type="x-p"/> <div sID="g3" type="x-p"/>Second.<div eID="g3" type="x-p"/><chapter eID="Col.1"/>
<chapter n="2" osisID="Col.2" sID="Col.2"/><title type="x-s2">Chapter 2</title><hi type="bold">Verses 1-3</hi>
<table><row><cell>Outline</cell><cell>(1-3)</cell></row></table><lg sID="g4"/> <l sID="g5" level="1"/>One line
<l eID="g5"/> <l sID="g6"/>and another.<l eID="g6"/> <lg eID="g4"/> <div sID="g7"/>(4-5)<div eID="g7"/>"""


def module(texts: list[str]) -> tuple[bytes, bytes]:
    index, data = struct.pack("<III", 0, 0, 0), b""
    for text in texts:
        block = zlib.compress(text.encode())
        index += struct.pack("<III", len(data), len(block), len(text))
        data += block
    return index, data


def test_osis_becomes_paragraphs_and_lines() -> None:
    assert list(fetch_prose.osis_documents(OSIS)) == [
        ("Col", "To the Colossians"),
        ("Col.1", "Christ Jesus & Timothy, brothers.\n\nSecond."),
        ("Col.2", "One line\nand another."),
    ]


def test_sword_books_are_files_in_biblical_order() -> None:
    members = {}
    old = '<chapter osisID="Gen.1" sID="Gen.1"/>In the beginning.'
    for testament, texts in {"nt": [OSIS[:700], OSIS[700:]], "ot": [old]}.items():
        members[f"./x/{testament}.bzs"], members[f"./x/{testament}.bzz"] = module(texts)
    first, second = fetch_prose.read_sword(members)
    assert (first.name, first.raw, first.documents) == (
        "Gen.txt.zst",
        b"In the beginning.\n",
        [("Gen.1", "In the beginning.")],
    )
    assert second.name == "Col.txt.zst"
    assert [name for name, _ in second.documents] == ["Col", "Col.1", "Col.2"]


def test_markup_without_a_chapter_has_no_document() -> None:
    assert list(fetch_prose.osis_documents('<milestone type="x-importer"/> text')) == []
    assert list(fetch_prose.chapters("letters", ["No chapter."])) == []


def test_a_damaged_module_is_an_error() -> None:
    index, data = module(["text"])
    with pytest.raises(DataError, match="SWORD"):
        list(fetch_prose.sword_blocks(index, data[:-3]))


# Descriptions and pages


def test_description_paragraphs_keep_lists() -> None:
    field = " One sentence that is\n wrapped.\n .\n It has:\n  * speed, and\n    more of it\n  * size\n"
    assert fetch_prose.description_paragraphs(field) == [
        "One sentence that is wrapped.",
        "It has:\n* speed, and more of it\n* size",
    ]


def test_packages_whose_descriptions_begin_alike_are_one_document() -> None:
    long = "It is a library for people who write long descriptions. " * 8
    # A beginning that is short says nothing; what is short altogether is left out.
    stanzas = [("liba", long, "The library."), ("liba-dev", long, "The headers."), ("short", "Few words.", "x")]
    stanzas += [(name, "Documentation.", f"{name} {long}".strip()) for name in ("b", "c")]
    index = "\n\n".join(
        f"Package: {name}\nDescription-md5: 0\nDescription-en: nothing\n {first}\n .\n {second}"
        for name, first, second in stanzas
    )
    assert fetch_prose.descriptions(index) == {
        "liba": f"{long.strip()}\n\nThe library.\n\nThe headers.",
        "b": f"Documentation.\n\nb {long.strip()}",
        "c": f"Documentation.\n\nc {long.strip()}",
    }


def test_paragraphs_that_many_packages_have_are_left_out() -> None:
    index = "\n\n".join(
        f"Package: p{number}\nDescription-en: nothing\n {f'Sentence number {number} is this. ' * 20}\n .\n Boilerplate."
        for number in range(20)
    )
    found = fetch_prose.descriptions(index)
    assert len(found) == 20
    assert not any("Boilerplate" in text for text in found.values())


PAGE = """<html><head><title>No</title><meta charset=utf-8></head><body><div class="navheader"><div>Up</div> Next</div>
<h1>A <code>title</code><a class="headerlink" href="#x">¶</a></h1><P>First
   paragraph<sup>[1]</sup> &amp; more.<P>Second.<pre class="x">code <pre>in code</pre> too</pre><ul class="simple">
<li>an item</li></ul><hr/>tail<table><tr><td>cell</table><p>***</p></body></html>"""


def test_pages_lose_navigation_listings_and_tables() -> None:
    assert fetch_prose.page_text(PAGE) == "A title\n\nFirst paragraph & more.\n\nSecond.\n\nan item\n\ntail"


def test_pages_are_files_below_their_common_folder() -> None:
    latin = '<meta charset="iso-8859-1"><p>Caf\xe9</p>'.encode("latin-1")
    empty = b"<p></p>"
    first, second = fetch_prose.read_pages({"./usr/doc/a/x.html": latin, "./usr/doc/b.html": empty})
    assert (first.name, first.raw, first.documents) == ("a/x.html", latin, [("a/x.html", "Café")])
    assert (second.name, second.documents) == ("b.html", [])


# Writing


@pytest.fixture
def fetched(tmp_path: Path) -> Iterator[Path]:
    pages = [("a", "One “text”."), ("b", "Two.\n\nParagraphs.")]
    items = [fetch_prose.Item("x/raw.txt.gz", b"raw", pages), fetch_prose.Item("y.html", b"<p>", [])]
    about = {"package": "p", "version": "1", "licence": "free"}
    fetch_prose.write_source("austen", iter(items), about, tmp_path)
    yield tmp_path


def test_a_source_is_written(fetched: Path) -> None:
    folder = fetched / "austen"
    assert gzip.decompress((folder / "raw/x/raw.txt.gz").read_bytes()) == b"raw"
    counts = {"raw_files": 2, "raw_bytes": 6, "documents": 2, "text_bytes": 15 + 17}
    about = {"package": "p", "version": "1", "licence": "free"}
    assert json.loads((folder / "source.json").read_text()) == about | counts
    # It is there already: neither apt nor the network is needed.
    found = fetch_prose.fetch_all(["austen"], fetched)
    assert "all" in fetch_prose.table(found).splitlines()[-1]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_read_it(fetched: Path, file: Path) -> None:
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert raw["documents"]["source"].startswith("runs/prose/data/")
    raw["documents"]["source"] = raw["documents"]["source"].replace("runs/prose/data", str(fetched))
    settings = Settings.parse(raw)
    assert settings.documents is not None
    (found,) = resolve(settings.documents)
    assert (found.format, found.compression) == ("jsonl", "zstd")
    assert settings.stages == ("documents", "tokenizer", "blocks", "pretrain", "text_report")


def test_the_examples_share_their_documents() -> None:
    masked, causal = (yaml.safe_load(file.read_text(encoding="utf-8"))["documents"] for file in EXAMPLES)
    assert masked == causal


def test_nothing_is_left_of_a_source_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        fetch_prose.write_source("bible", iter([fetch_prose.Item("a.html", b"", [])]), {}, tmp_path)
    assert not (tmp_path / "bible").exists()


def test_only_what_matches_is_taken_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("./usr/a.html", "./usr/b.png"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("./usr/link.html")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "data.tar").write_bytes(archive.getvalue())
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real(["cat", command[-1]], **options))
    assert fetch_prose.package_members(tmp_path / "data.tar", r".*\.html") == {"./usr/a.html": b"text"}
    with pytest.raises(DataError, match="does not have the files"):
        fetch_prose.package_members(tmp_path / "data.tar", r".*\.txt")


def test_a_package_that_is_not_what_the_list_says_is_refused(tmp_path: Path) -> None:
    apt = fetch_prose.Apt.__new__(fetch_prose.Apt)
    apt._folder = tmp_path

    def run(*command: str, folder: Path) -> SimpleNamespace:
        (folder / "p_1_all.deb").write_bytes(b"something")
        return SimpleNamespace(returncode=0, stderr=b"")

    apt._run = run
    with pytest.raises(DataError, match="SHA-256"):
        apt.download({"Package": "p", "Version": "1", "SHA256": "0" * 64})


def test_without_apt_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get"):
        fetch_prose.Apt(tmp_path)
    assert fetch_prose.main(["--out", str(tmp_path / "out"), "--sources", "austen"]) == 2
    assert capsys.readouterr().err.startswith("error: this needs Debian's package tools")
