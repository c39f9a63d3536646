"""Files between the steps of `prepare`, in the stage's work directory: they outlive a kill, and are found again.

A table file holds one Arrow record batch per partition behind a list of their offsets, so that a later task finds and
reads its partition alone with two small reads, however many partitions there are. (The Arrow file format would make it
read the whole list.) A step's result is a JSON file written last: it is there if and only if the step is done.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from lspm_ray.artifact import filesystem

_OFFSET_BYTES = 8


@dataclass(frozen=True)
class Staging:
    """A directory for the intermediate files of one run."""

    uri: str

    @cached_property
    def _location(self) -> tuple[pafs.FileSystem, str]:
        return filesystem(self.uri)

    def open_output(self, name: str) -> Any:
        """A stream to a new file; its directory is made."""
        fs, base = self._location
        fs.create_dir(f"{base}/{name}".rpartition("/")[0], recursive=True)
        return fs.open_output_stream(f"{base}/{name}", compression=None)

    def open_input(self, name: str) -> Any:
        """A random-access stream."""
        fs, base = self._location
        return fs.open_input_file(f"{base}/{name}")

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        fs, base = self._location
        return bool(fs.get_file_info(f"{base}/{name}").type == pafs.FileType.File)

    def write_batches(self, name: str, batches: Sequence[pa.RecordBatch]) -> None:
        """Write a table file; batch `p` belongs to partition `p`."""
        payload = [_serialized(batch) for batch in batches]
        sizes = [len(content) for content in payload]
        offsets = _OFFSET_BYTES * (len(sizes) + 1) + np.concatenate(([0], np.cumsum(sizes)))
        with self.open_output(name) as sink:
            sink.write(offsets.astype("<u8").tobytes())
            for content in payload:
                sink.write(content)

    def read_batch(self, name: str, partition: int, schema: pa.Schema) -> pa.RecordBatch:
        """One partition of a table file."""
        with self.open_input(name) as source:
            bounds = np.frombuffer(source.read_at(2 * _OFFSET_BYTES, partition * _OFFSET_BYTES), dtype="<u8")
            start, stop = (int(bound) for bound in bounds)
            if start == stop:
                return pa.RecordBatch.from_pylist([], schema=schema)
            return pa.ipc.open_stream(pa.py_buffer(source.read_at(stop - start, start))).read_next_batch()

    def write_result(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Mark a step as done, with its result (JSON types), which is returned."""
        with self.open_output(name) as sink:
            sink.write(json.dumps(result).encode())
        return result

    def read_result(self, name: str) -> dict[str, Any] | None:
        """The result of a step that is done, else None."""
        if self.exists(name):
            # A kill can leave half a file, which is no result.
            with suppress(ValueError), self.open_input(name) as source:
                result: dict[str, Any] = json.loads(source.read())
                return result
        return None


def _serialized(batch: pa.RecordBatch) -> bytes:
    if not len(batch):
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def binary_array(values: NDArray[np.uint8]) -> pa.Array:
    """Rows of bytes, shape [rows, width], as a fixed-size binary array without a copy."""
    width = values.shape[1]
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, buffer])


def binary_values(array: pa.Array) -> NDArray[np.uint8]:
    """Inverse of `binary_array`."""
    width = array.type.byte_width
    values = np.frombuffer(array.buffers()[1], dtype=np.uint8) if len(array) else np.empty(0, dtype=np.uint8)
    return values[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def split_batches(table: pa.RecordBatch, partition: NDArray[np.int64], partitions: int) -> list[pa.RecordBatch]:
    """Sort rows by partition and cut the batch: one batch per partition, empty ones included."""
    order = np.argsort(partition, kind="stable")
    ordered = table.take(pa.array(order))
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    return [ordered.slice(start, stop - start) for start, stop in pairwise(bounds)]
