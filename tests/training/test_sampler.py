import gc
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ArtifactError, DataError
from lspm_ray.training import sampler
from lspm_ray.training.sampler import Blocks, Order, Share, ahead, sample_keys, steps_from, steps_in
from tests.toy_blocks import toy_blocks

ROWS = [150, 64, 0, 70, 31]
shards = st.lists(st.integers(0, 40), max_size=6)
small = st.integers(0, 2**70)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    store = ArtifactStore(str(tmp_path_factory.mktemp("blocks")))
    return toy_blocks(store, {"train": ROWS, "validation": [5]}, group_rows=16)


@pytest.fixture(scope="module")
def table(artifact):
    """All training rows as they are stored, by shard."""
    return [pq.read_table(artifact.path(f"train/part-{n:05d}.parquet")).to_pylist() for n in range(len(ROWS))]


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


def flat(order: Order, group_rows: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """(shard, row of the shard) of samples, in order."""
    pieces = order.locate(start, len(order) if stop is None else stop)
    return [(p.shard, p.group * group_rows + row) for p in pieces for row in range(p.first_row, p.last_row)]


@given(shards, st.integers(1, 9), small, small)
def test_an_epoch_visits_every_row_once(rows, group_rows, seed, epoch):
    order = Order(rows, group_rows, seed, epoch)
    found = flat(order, group_rows)
    assert len(order) == sum(rows) == len(found)
    assert set(found) == {(shard, row) for shard, count in enumerate(rows) for row in range(count)}


@given(shards, st.integers(1, 9), st.data())
def test_any_stretch_is_that_part_of_the_whole(rows, group_rows, data):
    order = Order(rows, group_rows, 1, 2)
    start = data.draw(st.integers(0, len(order)))
    stop = data.draw(st.integers(start, len(order)))
    assert flat(order, group_rows, start, stop) == flat(order, group_rows)[start:stop]
    assert all(p.first_row < p.last_row for p in order.locate(start, stop))
    with pytest.raises(IndexError):
        order.locate(start, len(order) + 1)


@given(small, st.integers(0, 1000))
def test_seeds_and_epochs_have_orders_of_their_own(seed, epoch):
    orders = [flat(Order([400], 4, s, e), 4) for s, e in ((seed, epoch), (seed, epoch + 1), (seed + 1, epoch))]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
    assert orders[0] == flat(Order([400], 4, seed, epoch), 4)
    rows = [row for _, row in orders[0]]
    assert all(rows[i + 1] == rows[i] + 1 for i in range(0, 400, 2)), "rows of a group stay in file order"


def splitmix64(state: int, count: int) -> list[int]:
    """Outputs of the published generator, in whole numbers of any size."""
    word, found = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & word
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        found.append(z ^ (z >> 31))
    return found


def test_hashes_are_those_of_splitmix64():
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # the generator's published outputs
    state = 0
    for number in (2, 7, 3):
        state = splitmix64(state ^ number, 1)[0]
    assert sample_keys(7, 3, np.arange(50)).tolist() == splitmix64(state, 50)


def test_the_order_never_changes():
    """Whoever changes this breaks the resuming of every run."""
    assert [p.group for p in Order([100], 10, 7, 3).locate(0, 100)] == [2, 7, 5, 1, 6, 4, 0, 9, 3, 8]


def test_groups_end_up_anywhere():
    places = np.array([[p.group for p in Order([64], 1, seed, 0).locate(0, 64)] for seed in range(400)])
    assert abs(places[:, 0].mean() - 31.5) < 4 and len(set(places[:, 0])) == 64


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 10**6))
def test_shares_make_up_the_batch(batch, workers, first):
    shares = [Share(batch, rank, workers).of(first) for rank in range(workers)]
    assert shares[0][0] == first and shares[-1][1] == first + batch
    assert all(shares[i][1] == shares[i + 1][0] for i in range(workers - 1))
    assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


def test_memory_is_a_few_bytes_per_group():
    order = Order([64 * 100_000], 64, 0, 0)
    assert sum(value.nbytes for value in vars(order).values()) < 20 * 100_000
    began = time.perf_counter()
    for start in range(0, 1000 * 64, 64):
        order.locate(start, start + 64)
    assert time.perf_counter() - began < 1


def test_keys_differ_between_samples_epochs_seeds_and_from_the_order():
    numbers = np.arange(5000)
    keys = [sample_keys(seed, epoch, numbers) for seed in range(3) for epoch in range(3)]
    assert len(np.unique(np.concatenate(keys))) == 9 * 5000
    assert keys[0].dtype == np.uint64
    assert (sample_keys(0, 0, numbers[17:19]) == keys[0][17:19]).all()
    assert abs(keys[0].astype(float).mean() / 2**64 - 0.5) < 0.02


def test_samples_are_the_rows_they_are_said_to_be(artifact, table):
    blocks = Blocks(artifact, "train")
    order = blocks.order(3, 1)
    rows = blocks.take(order, 5, 200)
    expected = [table[shard][row] for shard, row in flat(order, 16, 5, 200)]
    assert rows.input_ids.dtype == rows.tokens.dtype == np.int64
    assert rows.input_ids.tolist() == [row["input_ids"] for row in expected]
    assert [segments.tolist() for segments in rows.segments] == [row["segments"] for row in expected]
    assert rows.tokens.tolist() == [sum(row["segments"]) for row in expected]
    assert rows.tokens.min() < 16 == rows.tokens.max()
    assert len(blocks.take(order, 7, 7)) == 0
    blocks.close()
    assert blocks.take(order, 5, 6).input_ids.tolist() == [expected[0]["input_ids"]]


def test_samples_are_arrays_of_their_own(artifact):
    blocks = Blocks(artifact, "train")
    order = blocks.order(0, 0)
    blocks.take(order, 0, 4).input_ids[:] = -1
    assert blocks.take(order, 0, 4).input_ids.min() >= 0


def test_few_files_are_open_at_once(artifact, monkeypatch):
    monkeypatch.setattr(sampler, "_OPEN_FILES", 2)
    blocks = Blocks(artifact, "train")
    order = blocks.order(0, 0)
    expected = blocks.take(order, 0, len(order)).input_ids
    assert len(blocks._open) == 2
    assert (blocks.take(order, 0, len(order)).input_ids == expected).all()


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 40])
def test_workers_together_read_the_global_batches(artifact, workers):
    whole = list(steps_from(Blocks(artifact, "train"), 3, Share(32), epochs=2))
    assert [(step.epoch, step.first) for step in whole] == [(e, f) for e in (0, 1) for f in range(0, 9 * 32, 32)]
    parts = [list(steps_from(Blocks(artifact, "train"), 3, Share(32, r, workers), epochs=2)) for r in range(workers)]
    for step, *mine in zip(whole, *parts, strict=True):
        assert np.concatenate([m.rows.input_ids for m in mine]).tolist() == step.rows.input_ids.tolist()
        assert np.concatenate([m.numbers for m in mine]).tolist() == list(range(step.first, step.first + 32))


def test_starting_anywhere_is_skipping(artifact):
    blocks = Blocks(artifact, "train")
    whole = list(steps_from(blocks, 3, Share(32, 1, 2), epochs=2))
    for skip in (1, 8, 9, 10, 17, 18):
        rest = list(steps_from(blocks, 3, Share(32, 1, 2), epoch=skip // 9, first=skip % 9 * 32, epochs=2))
        assert [s.rows.input_ids.tolist() for s in rest] == [s.rows.input_ids.tolist() for s in whole[skip:]]
        assert [(s.epoch, s.first) for s in rest] == [(s.epoch, s.first) for s in whole[skip:]]


def test_starting_late_reads_nothing_of_before(artifact):
    blocks = Blocks(artifact, "train")
    read = []
    table = blocks._table
    blocks._table = lambda *place: read.append(place) or table(*place)
    list(steps_from(blocks, 3, Share(32), first=8 * 32))
    assert read == [(p.shard, p.group) for p in blocks.order(3, 0).locate(8 * 32, 9 * 32)]


def test_reading_ahead_is_bounded(artifact):
    blocks = Blocks(artifact, "train")
    taken = []
    take = blocks.take
    blocks.take = lambda *place: taken.append(place) or take(*place)
    steps = ahead(steps_from(blocks, 3, Share(8)), 3)
    assert not taken
    next(steps)
    time.sleep(0.3)
    assert len(taken) == 3
    next(steps)
    time.sleep(0.3)
    assert len(taken) == 4
    steps.close()


def test_a_dropped_stream_takes_its_thread_along(artifact):
    steps = ahead(steps_from(Blocks(artifact, "train"), 3, Share(8)), 4)
    next(steps)
    assert any(thread.name == "read-ahead" for thread in threading.enumerate())
    del steps  # the fixture looks for the thread


def test_fewer_samples_than_a_batch(artifact):
    with pytest.raises(DataError, match="5 samples are fewer than one global batch of 6"):
        steps_in(5, 6)
    assert len(list(steps_from(Blocks(artifact, "validation"), 0, Share(5)))) == steps_in(5, 5) == 1


def test_no_such_split(artifact):
    with pytest.raises(DataError, match="valid: train, validation"):
        Blocks(artifact, "test")


@pytest.fixture
def fragile(tmp_path):
    return toy_blocks(ArtifactStore(str(tmp_path)), {"train": [40, 40]}, group_rows=16)


def test_a_damaged_page_is_an_error_that_names_the_shard(fragile, tmp_path):
    file = next(tmp_path.glob("blocks-*")) / "train/part-00001.parquet"
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 2] ^= 1
    file.write_bytes(data)
    steps = ahead(steps_from(Blocks(fragile, "train"), 0, Share(4)), 4)
    with pytest.raises(ArtifactError, match=r"part-00001\.parquet: cannot read row group 1: .*CRC"):
        list(steps)


def test_other_rows_than_the_index_says(fragile, tmp_path):
    files = sorted(tmp_path.glob("blocks-*/train/*"))
    pq.write_table(pq.read_table(files[0]).slice(1), files[0], row_group_size=16)
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet: has 39 rows in 3 row groups.*40 in 3"):
        Blocks(fragile, "train").read(0, 0)
    files[0].unlink()
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet: cannot read row group 2"):
        Blocks(fragile, "train").read(0, 2)


def test_rows_of_another_length(fragile, tmp_path):
    file = next(tmp_path.glob("blocks-*/train/part-00000.parquet"))
    table = pq.read_table(file).to_pylist()
    table[20]["input_ids"].append(3)
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(file)), file, row_group_size=16)
    blocks = Blocks(fragile, "train")
    assert len(blocks.read(0, 0)) == 16
    with pytest.raises(ArtifactError, match="row group 1 does not hold 16 rows of 16 token ids"):
        blocks.read(0, 1)
