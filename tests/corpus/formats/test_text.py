import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from lspm_ray.corpus.check import check_files
from lspm_ray.corpus.read import Rejected
from lspm_ray.errors import DataError
from tests.corpus.formats.toy_files import make, read, reasons, texts

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
POEM = "\ufeffRoses are red,\nviolets\r\n\r\nSugar is sweet,\n \t\nStraße.\n\n\n".encode()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(COMPRESS["." + path.name.rpartition(".")[2] if path.name.count(".") > 1 else ""](content))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".text", *(f".txt{suffix}" for suffix in COMPRESS)])
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("line", ["Roses are red,", "violets", "Sugar is sweet,", "Straße."]),
        ("paragraph", ["Roses are red,\nviolets", "Sugar is sweet,", "Straße."]),
        ("file", [POEM.decode("utf-8-sig")]),
    ],
)
def test_a_document_is_a_line_a_paragraph_or_a_file(
    tmp_path: Path, suffix: str, document: str, expected: list[str]
) -> None:
    config = make(write(tmp_path / f"a{suffix}", POEM), document=document)
    assert texts(read(config)) == texts(read(config, 4)) == expected
    assert not reasons(read(config, 4))


def test_paragraphs_are_the_default_and_the_place_is_their_first_byte(tmp_path: Path) -> None:
    found = read(make(write(tmp_path / "a.txt", b"\n\none\ntwo\n\nthree")))
    assert texts(found) == ["one\ntwo", "three"]
    assert [item.place for item in found] == ["byte 2", "byte 11"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("parts", [2, 7])
def test_parts_give_every_document_once(tmp_path: Path, suffix: str, parts: int) -> None:
    content = b"".join(b"document %d\nof %d\n\n" % (index, index % 3) for index in range(5000))
    config = make(write(tmp_path / f"a.txt{suffix}", content))
    whole = read(config)
    assert len(whole) == 5000
    assert sorted(read(config, parts), key=str) == sorted(whole, key=str)


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_invalid_utf8_costs_one_document(tmp_path: Path, document: str) -> None:
    found = read(make(write(tmp_path / "a.txt", b"good\n\nb\xff\xfed\n\nfine"), document=document))
    assert texts(found) == ([] if document == "file" else ["good", "fine"])
    assert reasons(found) == ["invalid UTF-8"]


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_a_document_too_long_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str) -> None:
    monkeypatch.setattr("lspm_ray.corpus.lines.MAX_LINE_BYTES", 1000)
    found = read(make(write(tmp_path / "a.txt", b"short\n\n" + b"x" * 2000), document=document))
    assert texts(found) == ([] if document == "file" else ["short"])
    assert reasons(found) == ["document is longer than 16 MiB"]
    assert all(len(item.raw) <= 200 for item in found if isinstance(item, Rejected))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_what_comes_before_damage_is_kept(tmp_path: Path, suffix: str, document: str) -> None:
    content = b"".join(b"text %d\n\n" % (index * 7919**2) for index in range(60_000))
    stored = COMPRESS[suffix](content)
    (tmp_path / f"a.txt{suffix}").write_bytes(stored[: len(stored) * 3 // 4])
    config = make(tmp_path / f"a.txt{suffix}", document=document)
    found = read(config, 2)
    assert reasons(found) == ["compressed file is damaged or cut short"]
    kept = texts(found)
    assert not kept if document == "file" else len(kept) > 1000
    assert set(kept) <= set(content.decode().split("\n\n"))


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("kind", ["line", "paragraph", "csv", "jsonl"])
def test_a_small_file_without_its_last_byte_loses_its_last_document(
    tmp_path: Path, compression: str, kind: str
) -> None:
    form = {"line": b"text %d\n", "paragraph": b"text %d\n\n", "csv": b"text %d\n", "jsonl": b'{"text": "text %d"}\n'}
    documents = [form[kind] % number for number in range(3000)]
    head = b"text\n" if kind == "csv" else b""
    # With a frame of its own for the end: what is left of a block of Zstandard, up to 128 KiB, is no content.
    parts = [head + b"".join(documents[:-1]), documents[-1].rstrip()]
    stored = b"".join(map(COMPRESS[compression], parts if compression == ".zst" else [b"".join(parts)]))
    name = f"a.{'txt' if kind in ('line', 'paragraph') else kind}{compression}"
    (tmp_path / name).write_bytes(stored[:-1])
    config = make(tmp_path / name, **({"document": kind} if name.startswith("a.txt") else {}))
    check_files(config)
    for units in (1, 2):
        found = read(config, units)
        assert sorted(map(str, texts(found))) == sorted(f"text {number}" for number in range(2999))
        assert reasons(found) == ["compressed file is damaged or cut short"]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet", "a.arrow", "a.md", "a.html", "a.txt.gz"])
def test_an_empty_file_has_no_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert read(make(tmp_path / name), 2) == []


def test_blank_files_have_no_documents(tmp_path: Path) -> None:
    for document in ("line", "paragraph", "file"):
        assert read(make(write(tmp_path / "a.txt", b"\n \n\t\n"), document=document)) == []


def test_a_file_that_vanished_is_an_error_of_its_section(tmp_path: Path) -> None:
    config = make(write(tmp_path / "a.txt", b"text"))
    from lspm_ray.corpus.read import read_unit
    from lspm_ray.corpus.sources import Unit, resolve

    (file,) = resolve(config)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"documents.source: cannot read the file"):
        list(read_unit(Unit(0, file, 0, 1), config))
