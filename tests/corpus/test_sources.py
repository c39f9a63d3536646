import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import filesystem
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.sources import Layout, SourceFile, Unit, fingerprint_sources, resolve
from lspm_ray.errors import ConfigError, DataError


def make(source: object, **changes: Any) -> DataConfig:
    return DataConfig.parse({"source": source, "text": "text", "label": "label", **changes})


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(config: DataConfig) -> list[str]:
    return [file.name for file in resolve(config)]


def test_a_directory_gives_its_data_files_in_order_and_no_side_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a/c.csv.gz", "_SUCCESS.csv", ".hidden.csv", "_tmp/d.csv", "README.md"):
        touch(tmp_path / name)
    assert names(make(str(tmp_path))) == ["a/c.csv.gz", "b.csv"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "deep/er/c.csv"]),
        ("deep/**", ["er/c.csv", "er/d.jsonl"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("[!a].csv", ["b.csv"]),
        ("deep/er/[c].csv", ["c.csv"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a.csv", "b.csv", "deep/er/c.csv", "deep/er/d.jsonl"):
        touch(tmp_path / name)
    assert names(make(f"{tmp_path}/{pattern}", format="csv")) == expected


def test_relative_paths_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "data/a.csv")
    monkeypatch.chdir(tmp_path)
    assert names(make("data")) == ["a.csv"]
    assert names(make("data/*.csv")) == ["a.csv"]
    assert names(make("*/a.csv")) == ["data/a.csv"]


def test_a_name_with_wildcard_characters_is_a_name_if_it_exists(tmp_path: Path) -> None:
    touch(tmp_path / "set [v2]" / "a.csv")
    assert names(make(f"{tmp_path}/set [v2]")) == ["a.csv"]


@pytest.mark.parametrize(
    ("name", "format_", "compression"),
    [
        ("a.parquet", "parquet", None),
        ("a.parquet.brotli", "parquet", None),
        ("a.snappy.parquet", "parquet", None),
        ("a.pq.gz", "parquet", None),
        ("a.CSV", "csv", None),
        ("a.tsv.bz2", "csv", "bz2"),
        ("a.tab", "csv", None),
        ("v1.0.jsonl.gz", "jsonl", "gzip"),
        ("a.ndjson.zst", "jsonl", "zstd"),
        ("a.json", "jsonl", None),
    ],
)
def test_format_by_name(tmp_path: Path, name: str, format_: str, compression: str | None) -> None:
    (file,) = resolve(make(str(touch(tmp_path / name))))
    assert (file.format, file.compression) == (format_, compression)


def test_format_by_setting(tmp_path: Path) -> None:
    (file,) = resolve(make(str(touch(tmp_path / "data.txt")), format="csv"))
    assert file.format == "csv"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.csv", "data.source: no such file or directory"),
        ("*.parquet", "no data file is found there.*valid: a.csv, b.jsonl, c.txt"),
        ("empty", "no data file is found there"),
        ("c.txt", "format cannot be told from the file name.*valid: .parquet"),
        (".", "files of several formats.*csv, jsonl.*glob"),
    ],
)
def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.jsonl", "c.txt"):
        touch(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        resolve(make(source))


def test_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="cannot open this location"):
        resolve(make("nosuch://bucket/a.csv"))


ODD = ["a b.csv", "c#1.csv", "d 50%.csv", "e?x=1.csv", "f[1].csv", "grün.csv"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_names_may_hold_any_character(tmp_path: Path, scheme: str) -> None:
    for name in ODD:
        touch(tmp_path / "d" / name, name.encode())
    files = resolve(make(f"{scheme}{tmp_path}/d"))
    assert [file.name for file in files] == sorted(ODD)
    for file in files:
        fs, path = filesystem(file.uri)
        assert fs.open_input_stream(path).read() == file.name.encode()
    assert names(make(f"{scheme}{tmp_path}/d/[a-c]*.csv")) == ["a b.csv", "c#1.csv"]
    assert names(make(f"{scheme}{tmp_path}/d/a b.csv")) == ["a b.csv"]
    fingerprint_sources(make(f"{scheme}{tmp_path}/d"))


def test_a_uri_is_resolved_like_a_path(tmp_path: Path) -> None:
    touch(tmp_path / "d/a.csv")
    (file,) = resolve(make(f"file://{tmp_path}/d"))
    assert (file.uri, file.name) == (f"file://{tmp_path}/d/a.csv", "a.csv")
    assert names(make(f"file://{tmp_path}/*/a.csv")) == ["d/a.csv"]


def test_one_file_named_twice_is_read_once(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.csv")
    assert len(resolve(make([str(file), str(tmp_path), f"{tmp_path}/*.csv"]))) == 1


def test_a_test_source_is_held_out_and_shares_no_file(tmp_path: Path) -> None:
    train, test = touch(tmp_path / "train.csv"), touch(tmp_path / "test.csv")
    files = resolve(make(str(train), test_source=str(test)))
    assert [(file.name, file.held_out) for file in files] == [("train.csv", False), ("test.csv", True)]
    with pytest.raises(DataError, match=r"data.test_source: this file is in data.source too"):
        resolve(make(str(tmp_path), test_source=str(test)))


def test_fingerprint_is_that_of_the_content_not_of_the_place_or_time(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "one/a.csv", b"abc"), touch(tmp_path / "two/a.csv", b"abc")
    os.utime(second, (1, 1))
    same = [fingerprint_sources(make(str(file))) for file in (first, second)]
    assert same[0] == same[1]
    second.write_bytes(b"abd")
    assert fingerprint_sources(make(str(second))) != same[0]


def test_fingerprint_does_not_grow_with_the_files(tmp_path: Path) -> None:
    for number in range(100):
        touch(tmp_path / f"d/{number}.csv", b"abc")
    found = fingerprint_sources(make(f"{tmp_path}/d"))
    assert (found["files"], found["bytes"]) == (100, 300) and len(str(found)) < 200
    (tmp_path / "d/7.csv").rename(tmp_path / "d/x.csv")
    assert fingerprint_sources(make(f"{tmp_path}/d"))["digest"] != found["digest"]


@pytest.mark.parametrize("kind", ["text", "csv"])
def test_reads_of_a_shuffle_grow_as_the_corpus(kind: str) -> None:
    """Every partition reads a piece of every chunk; pieces must not become tiny."""
    layout = Layout()
    for gigabytes in (1, 100, 10_000):
        files = [source_file(1 << 27, kind)] * (8 * gigabytes)
        size = layout.text_bytes(files)
        chunks = size / min(layout.bytes_per_unit(files), layout.grown(files).chunk_characters)
        assert size / (chunks * layout.partitions(files)) >= 30_000
        assert layout.bytes_per_unit(files) <= 1 << 30


def test_fingerprint_of_what_is_not_hashed_changes_with_the_time(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.csv")
    first = fingerprint_sources(make(f"file://{file}"))
    os.utime(file, (1, 1))
    assert fingerprint_sources(make(f"file://{file}")) != first


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.csv")
    config = make(str(file))
    file.unlink()
    file.symlink_to(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"a.csv"):
        fingerprint_sources(config)


def source_file(bytes_: int, format_: Any = "jsonl", compression: Any = None) -> SourceFile:
    return SourceFile("a", "a", bytes_, None, format_, compression)


def test_layout_cuts_what_can_be_cut_finely_and_the_rest_into_few_parts() -> None:
    layout = Layout(unit_bytes=1 << 20, most_parts=4)
    assert len(layout.units([source_file(1)])) == 1
    for size, fine, coarse in ((5 << 19, 3, 3), (10 << 20, 10, 4)):
        assert len(layout.units([source_file(size)])) == fine
        assert len(layout.units([source_file(size, "parquet")])) == fine
        assert len(layout.units([source_file(size, "csv")])) == coarse
        assert len(layout.units([source_file(size, "jsonl", "gzip")])) == coarse


def test_units_grow_with_the_whole() -> None:
    layout = Layout()
    assert len(layout.units([source_file(1 << 30)])) == 128
    assert len(layout.units([source_file(1 << 30)] * 1024)) == 4096


def test_partitions_grow_with_the_text() -> None:
    layout = Layout(unit_growth=1, unit_bytes=1, partition_bytes=1000)
    assert layout.partitions([source_file(10)]) == 2
    assert layout.partitions([source_file(5000)]) == 5
    assert layout.partitions([source_file(5000, "parquet")]) == 20


def test_units_are_numbered_through_and_survive_json() -> None:
    units = Layout(unit_bytes=1 << 20).units([source_file(5 << 19), source_file(3 << 19)])
    assert [(unit.number, unit.part, unit.parts) for unit in units] == [
        (0, 0, 3), (1, 1, 3), (2, 2, 3), (3, 0, 2), (4, 1, 2),
    ]  # fmt: skip
    assert [Unit.from_dict(unit.to_dict()) for unit in units] == units


def test_gzip_of_same_content_is_other_content(tmp_path: Path) -> None:
    files = [touch(tmp_path / f"{level}.csv.gz", gzip.compress(b"a" * 999, level, mtime=0)) for level in (1, 9)]
    assert fingerprint_sources(make(str(files[0]))) != fingerprint_sources(make(str(files[1])))
