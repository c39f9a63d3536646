"""The order of training samples, and reading them in that order from any place.

The order is a function of seed and epoch alone: the same for every number of workers and on every machine, and any
stretch of it can be had without what comes before. So training resumes at any step without reading anything twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, filesystem
from lspm_ray.corpus.split import mix
from lspm_ray.errors import ArtifactError, DataError

INDEX_FILE = "index.json"

Item = TypeVar("Item")

_COLUMNS = ["input_ids", "segments"]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_FOR_GROUPS, _FOR_KEYS = 1, 2
_OPEN_FILES = 32
"""Shards kept open. To open one again costs its footer, a few hundred bytes for each of its row groups."""

_REMAKE = "Delete the directory of the artifact and run its stage again"


class Piece(NamedTuple):
    """Rows [first_row, last_row) of one row group."""

    shard: int
    group: int
    first_row: int
    last_row: int


class Order:
    """The samples of one epoch: row groups of all shards in pseudo-random order, the rows of each as they are stored.

    Rows were shuffled when they were written, and a row group is the least that can be read; its rows stay together.

    Args:
        rows_per_shard: rows of each shard.
        group_rows: rows of each row group; the last one of a shard may have fewer.
        seed: of the run.
        epoch: number of the pass over the data.
    """

    def __init__(self, rows_per_shard: Sequence[int], group_rows: int, seed: int, epoch: int) -> None:
        rows = np.asarray(rows_per_shard, dtype=np.int64).reshape(-1)
        groups = -(-rows // group_rows)
        self._first_group = np.concatenate([[0], np.cumsum(groups)])
        sizes = np.full(int(self._first_group[-1]), group_rows, dtype=np.int64)
        sizes[self._first_group[1:][groups > 0] - 1] -= (groups * group_rows - rows)[groups > 0]
        hashes = _splitmix(_salt(_FOR_GROUPS, seed, epoch), np.arange(len(sizes), dtype=np.uint64))
        self._groups = np.argsort(hashes)
        self._ends = np.cumsum(sizes[self._groups])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, start: int, stop: int) -> list[Piece]:
        """Where samples [start, stop) of the epoch are stored, in order.

        Raises:
            IndexError: the epoch has no such samples.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"samples [{start}, {stop}) of an epoch of {len(self)}")
        if start == stop:
            return []
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        places = np.arange(first, last + 1)
        begins = np.where(places > 0, self._ends[places - 1], 0)
        groups = self._groups[places]
        shards = np.searchsorted(self._first_group, groups, side="right") - 1
        columns = (
            shards,
            groups - self._first_group[shards],
            np.maximum(start - begins, 0),
            np.minimum(stop, self._ends[places]) - begins,
        )
        return [Piece(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def sample_keys(seed: int, epoch: int, sample_numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One pseudo-random number for each sample of an epoch, from its place in the epoch's order.

    Args:
        seed: of the run.
        epoch: number of the pass over the data.
        sample_numbers: places in the epoch, shape [samples].

    Returns:
        Shape [samples]. No two samples of an epoch have the same.
    """
    return _splitmix(_salt(_FOR_KEYS, seed, epoch), sample_numbers.astype(np.uint64))


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a split.

    Attributes:
        input_ids: token ids, int64, shape [rows, length]; padding only at the end.
        tokens: how many of each are no padding, int64, shape [rows].
        segments: lengths of the pieces of documents in each row, in order: int64 arrays that sum to `tokens`.
    """

    input_ids: NDArray[np.int64]
    tokens: NDArray[np.int64]
    segments: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.tokens)


class Blocks:
    """One split of a `blocks` artifact, for reading row groups by ranged reads. Threads may share it.

    Pages are checked against their checksums as they are read; digests of whole files are not.

    Args:
        artifact: with `index.json` and `<split>/part-*.parquet`.
        split: `train` or `validation`.

    Attributes:
        length: token ids per row.
        group_rows: rows per row group.
        rows_per_shard: rows of each shard.

    Raises:
        DataError: there is no such split.
        ArtifactError: a file is missing or damaged.
    """

    def __init__(self, artifact: Artifact, split: str) -> None:
        index = artifact.read_json(INDEX_FILE)
        if split not in index["rows"]:
            raise DataError("no such split", field="split", value=split, valid=sorted(index["rows"]))
        self.length, self.group_rows = int(index["length"]), int(index["group_rows"])
        self.rows_per_shard = [int(rows) for rows in index["rows"][split]]
        self._uris = [artifact.path(name) for name in index["names"][split]]
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._last: tuple[tuple[int, int], Rows] | None = None
        self._lock = threading.Lock()

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch over this split."""
        return Order(self.rows_per_shard, self.group_rows, seed, epoch)

    def read(self, shard: int, group: int) -> Rows:
        """All rows of a row group. The one read last is kept, for samples that need the rest of it.

        Raises:
            ArtifactError: the shard is missing or damaged; names it.
        """
        with self._lock:
            if self._last is None or self._last[0] != (shard, group):
                self._last = (shard, group), self._decode(shard, group, self._table(shard, group))
            return self._last[1]

    def take(self, order: Order, start: int, stop: int) -> Rows:
        """Samples [start, stop) of an epoch, in order; arrays of their own.

        Raises:
            ArtifactError: a shard is missing or damaged; names it.
        """
        parts: list[Rows] = []
        for shard, group, first, last in order.locate(start, stop):
            rows = self.read(shard, group)
            parts.append(Rows(rows.input_ids[first:last], rows.tokens[first:last], rows.segments[first:last]))
        return Rows(
            np.concatenate([np.empty((0, self.length), np.int64), *(part.input_ids for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.tokens for part in parts)]),
            [segments for part in parts for segments in part.segments],
        )

    def close(self) -> None:
        """Close the files. They are opened again when needed."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close(force=True)
            self._last = None

    def _table(self, shard: int, group: int) -> pa.Table:
        try:
            return self._file(shard).read_row_group(group, columns=_COLUMNS, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(
                f"cannot read row group {group}: {error}", field=self._uris[shard], hint=_REMAKE
            ) from None

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._open:
            fs, path = filesystem(self._uris[shard])
            file = pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True, pre_buffer=True)
            self._check_size(shard, file)
            self._open[shard] = file
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close(force=True)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _check_size(self, shard: int, file: pq.ParquetFile) -> None:
        rows, groups = self.rows_per_shard[shard], -(-self.rows_per_shard[shard] // self.group_rows)
        if (file.metadata.num_rows, file.metadata.num_row_groups) != (rows, groups):
            raise ArtifactError(
                f"has {file.metadata.num_rows} rows in {file.metadata.num_row_groups} row groups, "
                f"but {INDEX_FILE} says {rows} in {groups}",
                field=self._uris[shard],
                hint=_REMAKE,
            )

    def _decode(self, shard: int, group: int, table: pa.Table) -> Rows:
        ids, widths = _lists(table["input_ids"])
        pieces, counts = _lists(table["segments"])
        ends = np.cumsum(counts)
        sums = np.concatenate([[0], np.cumsum(pieces)])
        tokens = sums[ends] - sums[ends - counts]
        expected = min(self.group_rows, self.rows_per_shard[shard] - group * self.group_rows)
        if len(widths) != expected or (widths != self.length).any() or (tokens > self.length).any():
            raise ArtifactError(
                f"row group {group} does not hold {expected} rows of {self.length} token ids with segments within them",
                field=self._uris[shard],
                hint=_REMAKE,
            )
        return Rows(ids.reshape(-1, self.length), tokens, np.split(pieces, ends[:-1]))


@dataclass(frozen=True)
class Share:
    """Which samples of each global batch a worker takes: a contiguous part, the parts of all workers make the whole.

    Attributes:
        batch: samples of a global batch.
        rank: of the worker.
        workers: how many there are.
    """

    batch: int
    rank: int = 0
    workers: int = 1

    def of(self, first: int) -> tuple[int, int]:
        """The worker's samples [start, stop) of the global batch that begins with sample `first`."""
        return (
            first + self.batch * self.rank // self.workers,
            first + self.batch * (self.rank + 1) // self.workers,
        )


@dataclass(frozen=True, eq=False)
class Step:
    """A worker's share of one global batch.

    Attributes:
        epoch: number of the pass over the data.
        first: number of the first sample of the whole global batch in its epoch.
        numbers: of the worker's samples in the epoch, int64, shape [rows]: see `sample_keys`.
        rows: the samples.
    """

    epoch: int
    first: int
    numbers: NDArray[np.int64]
    rows: Rows


def steps_in(samples: int, batch: int) -> int:
    """Steps of an epoch. What is left over is not used in it; the next epoch has another order.

    Raises:
        DataError: there is not even one batch.
    """
    if samples < batch:
        raise DataError(
            f"{samples} samples are fewer than one global batch of {batch}",
            field="batch_size",
            value=batch,
            hint=f"Take a batch size of at most {samples}, or more data",
        )
    return samples // batch


def steps_from(
    blocks: Blocks, seed: int, share: Share, *, epoch: int = 0, first: int = 0, epochs: int = 1
) -> Iterator[Step]:
    """A worker's part of every global batch from some place on.

    Args:
        blocks: the training split.
        seed: decides the order of every epoch.
        share: the worker's part.
        epoch: where to start.
        first: sample of that epoch to start with: the steps done in it times the batch size.
        epochs: number of epochs of the whole run: the stream ends before the one of this number.

    Raises:
        ArtifactError: while iterating: a shard is missing or damaged; names it.
    """
    for number in range(epoch, epochs):
        order = blocks.order(seed, number)
        begin = first if number == epoch else 0
        for sample in range(begin, len(order) - share.batch + 1, share.batch):
            start, stop = share.of(sample)
            yield Step(number, sample, np.arange(start, stop), blocks.take(order, start, stop))


class _Failure(NamedTuple):
    error: BaseException


def ahead(items: Iterator[Item], limit: int) -> Generator[Item, None, None]:
    """The same items, made by a thread that is at most `limit` of them ahead; what it raises is raised here."""
    ready: SimpleQueue[Item | _Failure | None] = SimpleQueue()
    room = threading.Semaphore(limit)
    closed = threading.Event()

    def work() -> None:
        try:
            while room.acquire() and not closed.is_set() and (item := next(items, None)) is not None:
                ready.put(item)
            ready.put(None)
        except BaseException as error:  # whatever it is: without it the consumer would wait for ever
            ready.put(_Failure(error))

    # A daemon, as an interpreter that exits with an unfinished stream must not wait for it.
    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
            room.release()
    finally:
        closed.set()
        room.release()
        thread.join()


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values of a list column one after another, and how many each row has."""
    lists = column.combine_chunks()
    widths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64), widths


def _salt(*numbers: int) -> NDArray[np.uint64]:
    """One 64-bit number from several, shape [1]."""
    salt = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        salt = mix((salt ^ np.uint64(number & _MASK)) + _GOLDEN)
    return salt


def _splitmix(salt: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The given outputs of the generator splitmix64 (Steele, Lea, Flood 2014) whose state begins as `salt`."""
    return mix(salt + (numbers + np.uint64(1)) * _GOLDEN)
