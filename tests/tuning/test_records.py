import math
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.artifact import filesystem, join
from lspm_ray.tuning.records import Epoch, Records, Trial, as_rows


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty directory, on a disk or elsewhere."""
    if request.param == "local":
        yield str(tmp_path / "sweep")
        return
    yield f"fsspec+memory://{tmp_path.name}/sweep"
    fs = fsspec.filesystem("memory")
    if fs.exists(f"/{tmp_path.name}"):
        fs.rm(f"/{tmp_path.name}", recursive=True)


def read(uri, name):
    fs, path = filesystem(join(uri, name))
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read())


def write(uri, name, data):
    fs, path = filesystem(join(uri, name))
    with fs.open_output_stream(path) as stream:
        stream.write(data)


def tear(uri, name):
    """As a machine that dies leaves it."""
    data = read(uri, name)
    write(uri, name, data[: len(data) // 2])


def opened(uri):
    lines = []
    return Records(uri, lines.append), lines


FIRST = Trial(
    number=3,
    params={"finetune.x": 0.1, "model": {"name": "ä"}, "f.l": [1, None, True], "f.i": 2},
    seed=7,
    history=[Epoch(epoch=1, metrics={"loss": 0.1 + 0.2, "accuracy": 1 / 3}, seconds=2.5)],
    began=1.25,
)
LATER = FIRST.model_copy(update={"status": "done", "values": {"validation.loss": 1e-17}, "ended": 9.5})


def test_what_was_written_down_is_read_by_number(uri):
    records, lines = opened(uri)
    assert records.load() == []
    assert records.elapsed(records.load()) == 0
    other = Trial(number=0, params={}, seed=0, status="failed", reason="line\nanother\u2028line")
    for trial in (FIRST, other, LATER):
        records.save(trial)
    again, more = opened(uri)
    assert again.load() == [other, LATER]
    assert (LATER.over, LATER.seconds) == (True, 8.25)
    assert (FIRST.over, FIRST.seconds) == (False, 0)
    assert lines + more == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1), json_values, max_size=4), st.text())
def test_points_are_the_same_after_they_were_written_down(tmp_path_factory, params, reason):
    records, _ = opened(str(tmp_path_factory.mktemp("sweep")))
    trial = Trial(number=0, params=params, seed=0, reason=reason)
    records.save(trial)
    (again,) = records.load()
    assert again == trial
    assert repr(again.params) == repr(params)  # 1 is not 1.0 is not True


def test_what_is_torn_is_as_it_was_before(uri):
    records, lines = opened(uri)
    records.save(FIRST)
    records.save(LATER)
    tear(uri, "00003.json")
    assert records.load() == [FIRST]
    (line,) = lines
    assert "trial 3 is damaged" in line
    assert line.endswith("00003.json): it is taken as it was before")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"null", b"\xff\xfe", b'{"number": "x"}', b"\0" * 50])
def test_whatever_is_in_a_file_only_the_trial_is_lost(uri, data):
    records, lines = opened(uri)
    records.save(LATER.model_copy(update={"number": 1}))
    records.save(FIRST)
    write(uri, "00003.json", data)
    assert [trial.number for trial in records.load()] == [1]
    assert len(lines) == 1
    assert "trial 3 is damaged" in lines[0]
    assert lines[0].endswith("forgotten and run again")


def test_both_torn_is_forgotten_and_said(uri):
    records, lines = opened(uri)
    records.save(FIRST)
    records.save(LATER)
    tear(uri, "00003.json")
    tear(uri, "00003.json.before")
    assert records.load() == []
    assert lines[0].endswith("forgotten and run again")
    records.save(FIRST)
    assert records.load() == [FIRST]
    assert len(lines) == 1


def test_a_torn_file_does_not_take_the_place_of_the_one_before(uri):
    records, _ = opened(uri)
    records.save(FIRST)
    records.save(LATER)
    tear(uri, "00003.json")
    records.save(LATER)  # what was before the torn one stays until the new one is there
    tear(uri, "00003.json")
    assert records.load() == [FIRST]


def test_a_file_that_was_gone_when_it_was_to_be_replaced_is_as_it_was_before(uri):
    """Some stores replace a file by removing it first."""
    records, lines = opened(uri)
    records.save(FIRST)
    records.save(LATER)
    fs, path = filesystem(join(uri, "00003.json"))
    fs.delete_file(path)
    assert records.load() == [FIRST]
    assert len(lines) == 1


def test_other_files_are_no_trials(uri):
    records, lines = opened(uri)
    records.save(FIRST)
    records.begin()
    write(uri, "notes.json", b"{}")
    write(uri, "00003.json.tmp", b"{}")
    assert records.load() == [FIRST]
    assert lines == []


def test_elapsed_is_the_last_that_was_heard(uri):
    records, _ = opened(uri)
    records.save(FIRST.model_copy(update={"number": 0}))
    assert records.elapsed(records.load()) == 2.5
    records.save(LATER)
    assert records.elapsed(records.load()) == 9.5
    records.save(FIRST.model_copy(update={"number": 1, "began": 11.0, "history": []}))
    assert records.elapsed(records.load()) == 11.0


def test_begin_counts_runs_and_keeps_the_first_time(uri):
    first = opened(uri)[0].begin()
    second = opened(uri)[0].begin()
    assert (first.runs, second.runs) == (1, 2)
    assert second.utc == first.utc
    tear(uri, "begun.json")
    assert opened(uri)[0].begin().runs == 1


def test_nothing_is_left_beside_the_records(uri):
    records, _ = opened(uri)
    records.save(FIRST)
    records.save(LATER)
    records.begin()
    fs, path = filesystem(uri)
    names = {info.base_name for info in fs.get_file_info(pafs.FileSelector(path))}
    assert names == {"00003.json", "00003.json.before", "begun.json"}


def test_rows_all_have_the_same_columns():
    failed = Trial(number=0, params={"f.a": "x"}, seed=0, status="failed", reason="died")
    done = LATER.model_copy(update={"params": {"f.a": "y", "f.b": [1]}})
    table = pa.Table.from_pylist(as_rows([failed, done]))
    assert table.num_rows == 2
    assert table["param.f.a"].to_pylist() == ['"x"', '"y"']
    assert table["param.f.b"].to_pylist() == [None, "[1]"]
    assert table["value.validation.loss"].to_pylist() == [None, 1e-17]
    assert table["seconds"].to_pylist() == [0.0, 8.25]
    assert table["epochs"].to_pylist() == [0, 1]
    assert not any(math.isnan(value) for value in table["began_s"].to_pylist())
