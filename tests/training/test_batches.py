import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.training.batches import TEACHER_COLUMN, batches, batches_in, chunk_rows


def table(lengths, teacher=False):
    rows = {
        "input_ids": pa.array([[i + 1] * n for i, n in enumerate(lengths)], pa.list_(pa.int32())),
        "label": pa.array([i % 3 for i in range(len(lengths))], pa.int64()),
    }
    if teacher:
        rows[TEACHER_COLUMN] = pa.array([[float(i), 0.0] for i in range(len(lengths))], pa.list_(pa.float32(), 2))
    return pa.table(rows)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), size=st.integers(1, 9))
def test_every_row_once_with_its_label(lengths, size):
    seen = []
    for batch in batches([table(lengths)], size, pad_id=0, seed=1, epoch=2):
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert len(batch["labels"]) <= size
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            row = int(ids[0]) - 1
            assert int(mask.sum()) == lengths[row]
            assert (ids[int(mask.sum()) :] == 0).all()
            assert int(label) == row % 3
            seen.append(row)
    assert sorted(seen) == list(range(len(lengths)))


@given(rows=st.integers(0, 2000), size=st.integers(1, 40))
def test_number_of_batches_is_known_beforehand(rows, size):
    chunk = chunk_rows(size)
    parts = [min(chunk, rows - start) for start in range(0, rows, chunk)]
    assert batches_in(rows, size) == sum(-(-part // size) for part in parts)


def order(seed, epoch):
    stream = batches([table([3] * 50)], 4, 0, seed, epoch)
    return [tuple(batch["input_ids"][:, 0].tolist()) for batch in stream]


def test_order_depends_on_seed_and_epoch_alone():
    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_similar_lengths_share_a_batch():
    lengths = list(np.random.default_rng(0).integers(1, 100, 64))
    waste = sum(int((1 - b["attention_mask"]).sum()) for b in batches([table(lengths)], 8, 0, 0, 0))
    assert waste < 0.1 * sum(lengths)


def test_teacher_logits_follow_their_rows():
    for batch in batches([table([2] * 10, teacher=True)], 4, 0, 0, 0):
        rows = batch["input_ids"][:, 0] - 1
        assert batch[TEACHER_COLUMN][:, 0].tolist() == pytest.approx(rows.tolist())
