import base64
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.corpus.check import check_files
from lspm_ray.corpus.formats.arrow import Arrow
from lspm_ray.corpus.lines import MAX_LINE_BYTES
from lspm_ray.corpus.rows import Row
from lspm_ray.errors import DataError
from tests.corpus.formats.toy_files import make, read, reasons, texts


def table(count: int = 10, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table({"id": list(numbers), "text": [f"text {number}" for number in numbers]})


def write(path: Path, content: pa.Table, *, file: bool = False, rows: int = 1000, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = pa.ipc.new_file if file else pa.ipc.new_stream
    with form(path, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as sink:
        sink.write_table(content, max_chunksize=rows)
    return path


def write_saved_dataset(directory: Path, count: int, start: int = 0) -> None:
    """Two shards and the side files, in the layout of `datasets.Dataset.save_to_disk`."""
    shards = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for number, name in enumerate(shards):
        write(directory / name, table(count, start + number * count))
    state = {"_data_files": [{"filename": name} for name in shards], "_format_type": None}
    (directory / "state.json").write_text(json.dumps(state, indent=2))
    (directory / "dataset_info.json").write_text(json.dumps({"features": {"text": {"_type": "Value"}}}, indent=2))


def test_a_saved_dataset_is_a_source(tmp_path: Path) -> None:
    write_saved_dataset(tmp_path, 5)
    write(tmp_path / "cache-0123456789abcdef.arrow", table(3, 100))
    config = make(tmp_path)
    assert [file.name for file in check_files(config)] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert texts(read(config, 2)) == [f"text {number}" for number in range(10)]
    assert texts(read(make(tmp_path, format="arrow"))) == texts(read(config))


def test_so_is_a_dictionary_of_splits(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write_saved_dataset(tmp_path / "train", 5)
    write_saved_dataset(tmp_path / "test", 2, 50)
    assert texts(read(make(tmp_path))) == [f"text {n}" for n in [*range(50, 54), *range(10)]]


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"metadata_version": pa.MetadataVersion.V4},
    {"metadata_version": pa.MetadataVersion.V4, "use_legacy_format": True}], ids=str)  # fmt: skip
def test_streams_and_files_of_all_versions(tmp_path: Path, file: bool, options: dict[str, Any]) -> None:
    path = write(tmp_path / "a.arrow", table(2500), file=file, **options)
    assert texts(read(make(path))) == [f"text {number}" for number in range(2500)]


@pytest.mark.parametrize("rows", [1, 1000, 10_000])
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_give_every_row_once(tmp_path: Path, rows: int, parts: int) -> None:
    path = write(tmp_path / "a.arrow", table(5000), rows=rows)
    whole = read(make(path))
    assert len(whole) == 5000
    assert sorted(read(make(path), parts), key=str) == sorted(whole, key=str)


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_text_types(tmp_path: Path, type_: pa.DataType) -> None:
    content = pa.table({"text": pa.array(["a", None, "ü"]).cast(type_)})
    assert texts(read(make(write(tmp_path / "a.arrow", content)))) == ["a", None, "ü"]


def test_several_text_columns_are_joined(tmp_path: Path) -> None:
    content = pa.table({"body": ["b", "c"], "id": [1, 2], "title": ["t", None]})
    assert texts(read(make(write(tmp_path / "a.arrow", content), text=["title", "body"]))) == ["t\nb", "c"]


def test_invalid_utf8_costs_one_row(tmp_path: Path) -> None:
    text = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    found = read(make(write(tmp_path / "a.arrow", pa.table({"text": text}))))
    assert (texts(found), reasons(found)) == (["ok", "fine"], ["invalid UTF-8"])


@pytest.mark.parametrize("parts", [1, 3])
def test_a_file_cut_short_keeps_what_comes_before(tmp_path: Path, parts: int) -> None:
    path = write(tmp_path / "a.arrow", table(5000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = read(make(path), parts)
    assert reasons(found) == ["Arrow file is damaged or cut short"]
    assert set(texts(found)) == {f"text {number}" for number in range(2000)}


def test_offsets_that_point_outside_cost_their_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", pa.table({"text": ["one", "two", "three"]}))
    content = path.read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 6, 11))
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:8] + (1 << 30).to_bytes(4, "little") + offsets[12:]))
    found = read(make(path))
    assert (texts(found), reasons(found)) == ([], ["damaged Arrow batch"])
    assert getattr(found[0], "rows", 0) == 3


@pytest.mark.parametrize(
    "content", [b"x", b"no arrow at all", b"ARROW1\0\0", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 99]
)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_file_that_is_no_arrow_is_rejected_once(tmp_path: Path, content: bytes, parts: int) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    assert reasons(read(make(tmp_path / "a.arrow"), parts)) == ["not a readable Arrow file"]
    with pytest.raises(DataError, match=r"documents.source: not a readable Arrow file"):
        check_files(make(tmp_path / "a.arrow"))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", table())
    with pytest.raises(DataError, match=r"documents.text: no such column in a.arrow.*'body'.*valid: id, text"):
        check_files(make(path, text="body"))


def test_arrow_is_not_for_labelled_data() -> None:
    assert not Arrow.labelled


# Extension types


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Pickled(pa.ExtensionType):
    """A type that unpickles its parameters, as some libraries' types do."""

    def __init__(self, payload: bytes = b"") -> None:
        self._payload = payload
        super().__init__(pa.binary(), "lspm.test.pickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return self._payload

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Pickled":
        pickle.loads(serialized)
        return cls(serialized)


@pytest.fixture
def known() -> Iterator[None]:
    """A process in which the type is registered: Arrow brings it to life in every schema it reads."""
    pa.register_extension_type(Pickled())
    yield
    pa.unregister_extension_type("lspm.test.pickled")


def write_extension(path: Path, canary: Path, name: str, *, nested: bool) -> Path:
    payload = pickle.dumps(Canary(canary))
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": payload}
    field, values = pa.field("odd", pa.binary(), metadata=metadata), pa.array([payload, payload])
    if nested:
        field, values = pa.field("odd", pa.struct([field])), pa.StructArray.from_arrays([values], fields=[field])
    content = pa.Table.from_arrays(
        [values, pa.array(["a", "b"])], schema=pa.schema([field, pa.field("text", pa.string())])
    )
    if path.suffix == ".parquet":
        pq.write_table(content, path)
        return path
    return write(path, content, file="file" in path.name)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("name", ["lspm.test.pickled", "ray.data.arrow_pickled_object", "arrow.py_extension_type"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("file", ["a.parquet", "a.stream.arrow", "a.file.arrow"])
def test_an_extension_type_is_never_brought_to_life(tmp_path: Path, name: str, nested: bool, file: str) -> None:
    canary = tmp_path / "canary"
    path = write_extension(tmp_path / file, canary, name, nested=nested)
    for look in (lambda config: check_files(config), lambda config: read(config, 2)):
        with pytest.raises(DataError, match=rf"column 'odd' of {file} has a type that is not read"):
            look(make(path, text=["text", "odd"]))
        look(make(path))
    assert texts(read(make(path))) == ["a", "b"]
    assert not canary.exists()


@pytest.mark.usefixtures("known")
def test_the_canary_would_sing(tmp_path: Path) -> None:
    path = write_extension(tmp_path / "a.parquet", tmp_path / "canary", "lspm.test.pickled", nested=False)
    pq.ParquetFile(path).close()
    assert (tmp_path / "canary").exists()


def encoded_schema(canary: Path, name: str) -> bytes:
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Canary(canary))}
    fields = [pa.field("odd", pa.binary(), metadata=metadata), pa.field("text", pa.string())]
    return base64.b64encode(pa.schema(fields).serialize())


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("trick", ["none", "first", "second", "line end", "after the end", "last bits"])
def test_a_schema_that_can_be_understood_in_two_ways_is_not_used(tmp_path: Path, trick: str) -> None:
    canary = tmp_path / "canary"
    hostile, harmless = encoded_schema(canary, "lspm.test.pickled"), encoded_schema(canary, "lspm.test.harmless")
    values = {
        "none": [hostile],
        "first": [hostile, harmless],
        "second": [harmless, hostile],
        "line end": [hostile[:100] + b"\n" + hostile[100:]],
        "after the end": [hostile + b"=" + hostile],
        "last bits": [re.sub(rb"A(=+)$", rb"B\1", hostile)],
    }[trick]
    # Other keys of the same length, so that the writer does not see what they become.
    content = pa.table({"odd": [b"x", b"y"], "text": ["a", "b"]})
    with pq.ParquetWriter(tmp_path / "a.parquet", content.schema, store_schema=False) as writer:
        writer.write_table(content)
        writer.add_key_value_metadata({f"ARROW:schem{number}": value for number, value in enumerate(values)})
    stored = (tmp_path / "a.parquet").read_bytes()
    assert stored.count(b"ARROW:schem") == len(values)
    (tmp_path / "a.parquet").write_bytes(re.sub(rb"ARROW:schem\d", b"ARROW:schema", stored))
    assert texts(read(make(tmp_path / "a.parquet"))) == ["a", "b"]
    assert not canary.exists()


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_cell_is_no_longer_than_a_line_may_be(tmp_path: Path, suffix: str) -> None:
    content = pa.table({"text": ["fine", "x" * (MAX_LINE_BYTES + 1), "fine too"]})
    if suffix == "arrow":
        write(tmp_path / "a.arrow", content)
    else:
        pq.write_table(content, tmp_path / "a.parquet")
    items = read(make(tmp_path))
    assert texts(items) == ["fine", "fine too"]
    (rejected,) = (item for item in items if not isinstance(item, Row))
    assert rejected.reason == "document is longer than 16 MiB" and len(rejected.raw) < 1000
