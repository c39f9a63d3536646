import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.corpus.check import check_files
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.read import peek
from lspm_ray.corpus.sources import Layout, SourceFile, resolve
from lspm_ray.errors import DataError
from tests.corpus.formats.toy_files import make, read, reasons, texts


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("x")


def names(path: Path, **changes: Any) -> list[str]:
    return [file.name for file in resolve(make(path, **changes))]


@pytest.mark.parametrize(
    ("name", "format_", "compression"),
    [
        ("a.txt", "text", None),
        ("a.TEXT.zst", "text", "zstd"),
        ("a.md.gz", "markdown", "gzip"),
        ("a.markdown", "markdown", None),
        ("a.html.bz2", "html", "bz2"),
        ("a.htm", "html", None),
        ("a.arrow", "arrow", None),
        ("a.jsonl.zst", "jsonl", "zstd"),
        ("a.csv", "csv", None),
        ("a.parquet", "parquet", None),
    ],
)
def test_format_by_name(tmp_path: Path, name: str, format_: str, compression: str | None) -> None:
    touch(tmp_path, name)
    (file,) = resolve(make(tmp_path))
    assert (file.format, file.compression, file.section) == (format_, compression, "documents")


def test_every_format_can_be_configured() -> None:
    for name in Format.names():
        assert make(Path("x"), format=name).format == name


def test_labelled_data_are_tables_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "notes.txt", "README.md", "page.html", "b.arrow")
    config = DataConfig.parse({"source": str(tmp_path), "text": "text", "label": "label"})
    assert [file.name for file in resolve(config)] == ["a.csv"]


def test_what_a_directory_says_about_its_tables_is_no_document(tmp_path: Path) -> None:
    touch(tmp_path, "README.md", "LICENSE.txt", "data/a.parquet", "data/README.md")
    assert names(tmp_path) == ["data/a.parquet"]


def test_in_a_directory_of_markdown_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "README.md", "more.md")
    assert names(tmp_path) == ["README.md", "more.md"]


def test_side_files_of_datasets_are_left_out_only_there(tmp_path: Path) -> None:
    touch(
        tmp_path, "a/state.json", "a/dataset_info.json", "a/data.arrow", "a/cache-1.arrow", "b/state.json", "b/c.json"
    )
    assert names(tmp_path / "a") == names(tmp_path / "a", format="arrow") == ["data.arrow"]
    assert names(tmp_path / "b") == ["c.json", "state.json"]


def test_files_of_several_formats_are_read_each_in_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Heading\n\nof *Markdown*")
    (tmp_path / "b.txt").write_text("plain *text*")
    (tmp_path / "c.jsonl").write_text('{"text": "of a table"}\n')
    assert [file.format for file in check_files(make(tmp_path))] == ["markdown", "text", "jsonl"]
    assert [text.split()[-1] for text in texts(read(make(tmp_path)))] == ["Markdown", "*text*", "table"]


def test_the_first_file_of_each_format_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.jsonl").write_text('{"body": "of a table"}\n')
    with pytest.raises(DataError, match=r"documents.text: no such column in b.jsonl.*valid: body"):
        check_files(make(tmp_path))


def test_a_first_file_that_is_cut_short_at_its_beginning_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "some text"}\n' * 100_000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:12])
    with pytest.raises(DataError, match=r"nothing can be read: .*cut short"):
        check_files(make(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("b.csv.gz", gzip.compress(b""), []),
        ("b.csv", b"\n", []),
        ("b.csv", b"\n\n\r\n", []),
        ("b.csv.gz", gzip.compress(b"id,text\n1,one\n")[:14], ["compressed file is damaged or cut short"]),
        ("b.csv.gz", b"plain text", ["compressed file is damaged or cut short"]),
    ],
    ids=["empty gz", "newline", "newlines", "cut", "foreign"],
)
def test_a_later_csv_without_a_header_costs_only_itself(
    tmp_path: Path, name: str, content: bytes, expected: list[str]
) -> None:
    for other in ("a.csv", "c.csv"):
        (tmp_path / other).write_text("id,text\n1,good\n")
    (tmp_path / name).write_bytes(content)
    config = make(tmp_path)
    assert len(check_files(config)) == 3
    for units in (1, 3):
        assert texts(read(config, units)) == ["good", "good"]
        assert reasons(read(config, units)) == expected
    with pytest.raises(DataError, match=r"the file is empty|the header cannot be read: compressed file is damaged"):
        read(DataConfig.parse({"source": str(tmp_path / name), "text": "text", "label": "id"}))


def test_a_directory_without_readable_files_says_what_there_is(tmp_path: Path) -> None:
    touch(tmp_path, "picture.png", "paper.pdf")
    with pytest.raises(DataError) as caught:
        resolve(make(tmp_path))
    assert caught.value.field == "documents.source"
    assert caught.value.valid == ["paper.pdf", "picture.png"]
    assert all(suffix in str(caught.value.hint) for suffix in (".txt", ".md", ".html", ".arrow", ".parquet"))


def test_an_empty_directory_names_the_suffixes(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve(make(tmp_path))
    assert {".txt", ".jsonl"} <= set(caught.value.valid)


def test_only_empty_files_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(DataError, match=r"documents.source: the data set is empty"):
        check_files(make(tmp_path))
    (tmp_path / "b.txt").write_text("text")
    assert len(check_files(make(tmp_path))) == 2
    assert texts(read(make(tmp_path))) == ["text"]


def test_tables_without_labels(tmp_path: Path) -> None:
    rows = [{"text": "a", "title": "t"}, {"text": None, "title": None}, {"text": ["list"], "title": "t"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("id,title,text\n1,t,a\n2,,\n")
    pq.write_table(pa.table({"title": ["t", None], "text": ["a", None]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        config = make(tmp_path / name, text=["title", "text"])
        assert texts(read(config)) == ["t\na", None]
        assert reasons(read(config)) == (["text is not a single value"] if name == "a.jsonl" else [])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_missing_text_column_is_named_with_those_there_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "b"}\n')
    (tmp_path / "a.csv").write_text("body\nb\n")
    pq.write_table(pa.table({"body": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"documents.text: no such column in {name} \(got 'text'\); valid: body"):
        check_files(make(tmp_path / name))


def test_a_peek_at_text_needs_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    config = make(tmp_path / "a.txt")
    columns, rows = peek(resolve(config)[0], config)
    assert (columns, [row.text for row in rows]) == ([], ["one", "two"])


@pytest.mark.parametrize(
    ("format_", "compression", "parts"),
    [("text", None, 10), ("text", "gzip", 4), ("arrow", None, 4), ("markdown", None, 1), ("html", "gzip", 1)],
)
def test_layout_cuts_a_file_as_its_format_allows(format_: str, compression: Any, parts: int) -> None:
    file = SourceFile("a", "a", 10 << 20, None, format_, compression)
    assert len(Layout(unit_bytes=1 << 20, most_parts=4).units([file])) == parts
