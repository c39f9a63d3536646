from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lspm_ray.corpus.staging import Staging, binary_array, binary_values, split_batches


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.integers(0, 9))
def test_bytes_survive_arrow_also_in_a_slice(values: np.ndarray, skip: int) -> None:
    np.testing.assert_array_equal(binary_values(binary_array(values)), values)
    np.testing.assert_array_equal(binary_values(binary_array(values).slice(skip)), values[skip:])


@given(st.lists(st.integers(0, 4), max_size=30))
def test_one_batch_per_partition_empty_ones_too(partition: list[int]) -> None:
    batch = pa.record_batch({"row": pa.array(range(len(partition)), pa.int64())})
    batches = split_batches(batch, np.array(partition, dtype=np.int64), 5)
    assert [b["row"].to_pylist() for b in batches] == [
        [row for row, p in enumerate(partition) if p == wanted] for wanted in range(5)
    ]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(str(tmp_path))


def test_a_partition_is_read_alone(staging: Staging) -> None:
    batch = pa.record_batch({"a": [1, 2, 3], "b": ["x", "y", "z"], "c": [0.5, 1.5, 2.5]})
    staging.write_batches("dir/t.arrow", split_batches(batch, np.array([2, 0, 2]), 4))
    found = [staging.read_batch("dir/t.arrow", partition, batch.schema) for partition in range(4)]
    assert [part.to_pydict() for part in found] == [
        {"a": [2], "b": ["y"], "c": [1.5]},
        {"a": [], "b": [], "c": []},
        {"a": [1, 3], "b": ["x", "z"], "c": [0.5, 2.5]},
        {"a": [], "b": [], "c": []},
    ]
    assert all(part.schema == batch.schema for part in found)


def test_a_result_that_is_missing_or_half_written_is_none(staging: Staging, tmp_path: Path) -> None:
    assert staging.read_result("done.json") is None
    assert staging.write_result("done.json", {"a": [1]}) == {"a": [1]}
    assert staging.read_result("done.json") == {"a": [1]}
    (tmp_path / "done.json").write_text('{"a": [')
    assert staging.read_result("done.json") is None
    (tmp_path / "done.json").write_bytes(b"")
    assert staging.read_result("done.json") is None
