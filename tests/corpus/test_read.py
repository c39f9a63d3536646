import csv
import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.corpus import read as module
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.read import Rejected, Row, peek, read_unit
from lspm_ray.corpus.sources import SourceFile, Unit, resolve
from lspm_ray.errors import DataError


def make(path: Path, **changes: Any) -> DataConfig:
    return DataConfig.parse({"source": str(path), "text": "text", "label": "label", **changes})


def read(config: DataConfig, parts: int = 1) -> list[Row | Rejected]:
    (file,) = resolve(config)
    return [item for part in range(parts) for item in read_unit(Unit(part, file, part, parts), config)]


def rows(items: list[Row | Rejected]) -> list[tuple[str | None, str | None]]:
    return [(item.text, item.label) for item in items if isinstance(item, Row)]


def rejects(items: list[Row | Rejected]) -> list[tuple[str, str]]:
    return [(item.place, item.reason) for item in items if isinstance(item, Rejected)]


def write_jsonl(path: Path, objects: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


# Values


def test_text_columns_are_joined_and_missing_parts_left_out(tmp_path: Path) -> None:
    objects = [
        {"title": "T", "text": "b", "label": 1},
        {"title": None, "text": "b", "label": 1.0},
        {"title": " ", "text": None, "label": None},
        {"text": "b", "label": "1"},
        {"title": 2012, "text": True, "label": True},
    ]
    found = read(make(write_jsonl(tmp_path / "a.jsonl", objects), text=["title", "text"]))
    assert rows(found) == [("T\nb", "1"), ("b", "1"), (None, None), ("b", "1"), ("2012\nTrue", "true")]


@pytest.mark.parametrize("bad", [{"text": ["a"], "label": 1}, {"text": "a", "label": {"x": 1}}])
def test_a_value_that_is_no_single_value_is_rejected(tmp_path: Path, bad: dict[str, Any]) -> None:
    found = read(make(write_jsonl(tmp_path / "a.jsonl", [bad, {"text": "ok", "label": 1}])))
    assert rejects(found) == [("byte 0", "text or label is not a single value")]
    assert rows(found) == [("ok", "1")]


# JSON Lines


def test_damaged_json_lines_cost_only_themselves(tmp_path: Path) -> None:
    good = b'{"text": "ok", "label": 1}\n'
    bad = [b'{"text": "cut\n', b"[1, 2]\n", b'{"text": "\xff\xfe", "label": 1}\n', b"\n", b"[" * 100_000 + b"\n"]
    (tmp_path / "a.jsonl").write_bytes(good + b"".join(line + good for line in bad))
    found = read(make(tmp_path / "a.jsonl"))
    assert rows(found) == [("ok", "1")] * 6
    assert [reason for _, reason in rejects(found)] == [
        "invalid JSON", "line is not a JSON object", "invalid UTF-8", "invalid JSON",
    ]  # fmt: skip
    assert rejects(found)[0][0] == f"byte {len(good)}"
    assert all(isinstance(item, Row) or len(item.raw) <= 200 for item in found)


def test_a_line_too_long_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lspm_ray.corpus.lines.MAX_LINE_BYTES", 1000)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 2000, "label": 1}, {"text": "ok", "label": 1}])
    found = read(make(tmp_path / "a.jsonl"))
    assert rows(found) == [("ok", "1")]
    assert [reason.partition(" MiB")[0] for _, reason in rejects(found)] == ["line is longer than 16"]


def test_json_lines_hold_lone_surrogates(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a \\ud800 b", "label": 1}\n')
    assert rows(read(make(tmp_path / "a.jsonl"))) == [("a \ud800 b", "1")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_json_lines_in_parts_give_every_line_once(tmp_path: Path, suffix: str, parts: int) -> None:
    content = "".join(
        json.dumps({"text": f"t{i}", "label": i % 3}) + ("\n" if i % 7 else "\n{bad\n") for i in range(5000)
    )
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix else content.encode())
    whole, cut = read(make(path)), read(make(path), parts)
    assert len(whole) == 5000 + 715
    assert sorted(map(repr, cut)) == sorted(map(repr, whole))


def test_a_gzip_cut_short_keeps_what_came_before(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"text {i * 7919}", "label": 1}) + "\n" for i in range(30_000)).encode()
    stored = gzip.compress(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(stored[: len(stored) // 2])
    found = read(make(tmp_path / "a.jsonl.gz"))
    assert len(rows(found)) > 1000
    ((place, reason),) = rejects(found)
    assert reason == "compressed file is damaged or cut short"
    assert place.endswith("to the end")


# CSV


def write_csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_csv_values_can_hold_delimiters_quotes_and_lines(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", 'label,text,more\r\n1,"a, ""b""\nc",x\r\n\r\n,"",y\r\n')
    found = read(make(path))
    assert rows(found) == [('a, "b"\nc', "1"), (None, None)]
    assert [item.place for item in found] == ["lines 2 to 3", "line 5"]


def test_damaged_csv_records_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nok,1\na,b,c\n\xff\xfe,1\nalone\nok,2\n")
    found = read(make(tmp_path / "a.csv"))
    assert rows(found) == [("ok", "1"), ("ok", "2")]
    assert rejects(found) == [
        ("line 3", "wrong number of CSV fields"),
        ("line 4", "invalid UTF-8"),
        ("line 5", "wrong number of CSV fields"),
    ]


def test_an_open_quote_is_reported_with_the_lines_it_swallowed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", 'text,label\nok,1\n"open,1\nlost,1\nlost,2\n')
    found = read(make(path))
    assert rows(found) == [("ok", "1")]
    assert rejects(found) == [("lines 3 to 5", "wrong number of CSV fields")]


@pytest.mark.parametrize("name", ["a.tsv", "a.tab", "a.tsv.gz"])
def test_tabs_by_name(tmp_path: Path, name: str) -> None:
    content = b'text\tlabel\nsay "hi, there\t1\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert rows(read(make(tmp_path / name))) == [('say "hi, there', "1")]


def test_csv_dialect_by_setting(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.txt", 'text;label\nstring;class\n"not quoted;1\n')
    config = make(path, format="csv", csv={"delimiter": ";", "quote": None, "skip_rows": 1})
    assert rows(read(config)) == [('"not quoted', "1")]
    assert [item.place for item in read(config)] == ["line 3"]


def test_csv_without_header(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", "3,Title,Body\n")
    config = make(path, text=["title", "body"], csv={"columns": ["label", "title", "body"]})
    assert rows(read(config)) == [("Title\nBody", "3")]


@pytest.mark.parametrize("parts", [2, 5])
def test_csv_in_parts_gives_every_record_once(tmp_path: Path, parts: int) -> None:
    body = "".join(f'"t{i}\nx",{i % 3}\n' if i % 11 else "bad\n" for i in range(6000))
    path = write_csv(tmp_path / "a.csv", "text,label\n" + body)
    whole, cut = read(make(path)), read(make(path), parts)
    assert len(whole) == 6000
    assert sorted(map(repr, cut)) == sorted(map(repr, whole))


def test_a_csv_field_longer_than_pythons_default_is_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},1\n")
    assert rows(read(make(path))) == [("x" * 200_000, "1")]
    assert csv.field_size_limit() >= 200_000


# Parquet


def write_parquet(path: Path, count: int = 30, group: int = 10, **columns: Any) -> Path:
    table = pa.table({"text": [f"t{i}" for i in range(count)], "label": [i % 3 for i in range(count)], **columns})
    pq.write_table(table, path, row_group_size=group, compression="zstd")
    return path


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_text_types(tmp_path: Path, type_: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["a", None, "ü"]).cast(type_), "label": pa.array([1.0, None, 2.0])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows(read(make(tmp_path / "a.parquet"))) == [("a", "1"), (None, None), ("ü", "2")]


@pytest.mark.parametrize(("count", "group"), [(30, 10), (30_000, 30_000), (30_000, 9000)])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parquet_in_parts_gives_every_row_once(tmp_path: Path, count: int, group: int, parts: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", count, group)
    whole, cut = read(make(path)), read(make(path), parts)
    assert len(whole) == count
    assert sorted(map(repr, cut)) == sorted(map(repr, whole))


def test_invalid_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    text = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": text, "label": [1, 2, 3]}), tmp_path / "a.parquet")
    found = read(make(tmp_path / "a.parquet"))
    assert rows(found) == [("ok", "1"), ("fine", "3")]
    assert rejects(found) == [("row 1", "invalid UTF-8")]


def damage(path: Path, group: int, column: int = 0) -> None:
    """Overwrite a column chunk of one row group."""
    chunk = pq.read_metadata(path).row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * chunk.total_compressed_size)


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_a_damaged_row_group_costs_only_itself(tmp_path: Path, parts: int) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    damage(path, 1)
    found = read(make(path), parts)
    assert sorted(str(text) for text, _ in rows(found)) == sorted(f"t{i}" for i in [*range(10), *range(20, 30)])
    (reject,) = [item for item in found if isinstance(item, Rejected)]
    assert reject.reason == "damaged Parquet row group"
    assert (reject.place, reject.rows) == ("row group 1, rows 10 to 19", 10)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"\0" * 99 + b"PAR1"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_file_that_is_no_parquet_is_rejected_once(tmp_path: Path, content: bytes, parts: int) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    (reject,) = read(make(tmp_path / "a.parquet"), parts)
    assert isinstance(reject, Rejected)
    assert (reject.reason, reject.rows) == ("not a readable Parquet file", None)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_pickle_extension(path: Path, canary: Path, name: str) -> None:
    """A file whose text column claims an extension type with pickled values and pickled metadata."""
    payload = pickle.dumps(Canary(canary))
    field = pa.field("text", pa.binary(), metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": payload})
    table = pa.Table.from_arrays(
        [pa.array([payload, payload]), pa.array([0, 1])], schema=pa.schema([field, pa.field("label", pa.int64())])
    )
    pq.write_table(table, path)


@pytest.mark.parametrize("name", ["ray.data.arrow_pickled_object", "arrow.py_extension_type", "any.other"])
def test_an_extension_type_is_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    write_pickle_extension(tmp_path / "a.parquet", canary, name)
    for look in (lambda: read(make(tmp_path / "a.parquet")), lambda: peek_first(make(tmp_path / "a.parquet"))):
        with pytest.raises(DataError, match=r"column 'text' of a.parquet has a type that is not read"):
            look()
    assert not canary.exists()


def test_unused_columns_of_any_type_do_no_harm(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 3, 3, more=[[1], [2], [3]])
    assert len(rows(read(make(path)))) == 3


def test_a_list_column_is_no_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 3, 3, more=[["a"], ["b"], ["c"]])
    with pytest.raises(DataError, match=r"column 'more'.*not read.*list.*valid: string"):
        read(make(path, text="more"))


# Columns


def peek_first(config: DataConfig) -> tuple[list[str], list[Row]]:
    return peek(resolve(config)[0], config)


def files_of_all_formats(directory: Path) -> Iterator[Path]:
    yield write_csv(directory / "a.csv", "text,label\nt,1\n")
    yield write_jsonl(directory / "a.jsonl", [{"text": "t", "label": 1}])
    yield write_parquet(directory / "a.parquet", 1)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text": ["text", "nope"]}, "data.text"),
        ({"label": "nope"}, "data.label"),
        ({"split_column": "nope"}, "data.split_column"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(
    tmp_path: Path, index: int, changes: dict[str, Any], field: str
) -> None:
    path = list(files_of_all_formats(tmp_path))[index]
    with pytest.raises(DataError) as caught:
        peek_first(make(path, **changes))
    assert str(caught.value).startswith(f"{field}: no such column in {path.name}")
    assert caught.value.value == "nope"
    assert caught.value.valid == ["text", "label"]


def test_a_later_file_without_the_column_is_found_when_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such column in a.csv"):
        read(make(write_csv(tmp_path / "a.csv", "text,labels\nt,1\n")))


def test_a_column_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several columns of a.csv have this name"):
        read(make(write_csv(tmp_path / "a.csv", "text,label,text\nt,1,u\n")))


def test_peek_reads_only_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PEEK_ROWS", 5)
    for path in files_of_all_formats(tmp_path):
        columns, found = peek_first(make(path))
        assert columns == ["text", "label"]
        assert len(found) == 1
    assert len(peek_first(make(write_parquet(tmp_path / "b.parquet")))[1]) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[\n{"text": "a"}\n]', "holds one JSON array"),
        ("a.json", b'[{"text": "a", "label": 1}]', "one JSON array"),
        ("a.jsonl", b"hello\nworld\n", "none of its first lines is a JSON object"),
        ("a.csv", b"", "the file is empty"),
        ("a.parquet", b"hello", "not a readable Parquet file"),
    ],
)
def test_a_file_of_another_format_is_named_early(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        peek_first(make(tmp_path / name))


def test_a_file_that_vanished_is_an_error(tmp_path: Path) -> None:
    file = SourceFile(str(tmp_path / "gone.jsonl"), "gone.jsonl", 10, None, "jsonl", None)
    with pytest.raises(DataError, match="cannot read the file"):
        list(read_unit(Unit(0, file, 0, 1), make(tmp_path / "gone.jsonl")))
