import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.pack import group_shards, plan_shards

ROWS = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@given(ROWS, st.integers(1, 9))
def test_shards_hold_every_row_once_in_order_and_have_equal_sizes(rows: list[int], rows_per_shard: int) -> None:
    items = plan_shards(np.array(rows), [99] * len(rows), rows_per_shard)
    everything = [(p, row) for p, count in enumerate(rows) for row in range(count)]
    shards = [[(p, row) for p, start, stop, _ in item["spans"] for row in range(start, stop)] for item in items]
    assert [row for shard in shards for row in shard] == everything
    assert [item["number"] for item in items] == list(range(len(items)))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) <= rows_per_shard
    assert max(sizes) - min(sizes) <= 1
    assert len(items) == max(1, -(-len(everything) // rows_per_shard))


def test_limits_travel_with_the_spans() -> None:
    (item,) = plan_shards(np.array([2, 0, 3]), [7, 8, 9], 100)
    assert item == {"number": 0, "spans": [[0, 0, 2, 7], [2, 0, 3, 9]]}


def test_a_split_without_rows_has_one_empty_shard() -> None:
    (item,) = plan_shards(np.array([0, 0]), [5, 5], 100)
    assert item["spans"] == []


@given(ROWS, st.integers(1, 5), st.integers(0, 20))
def test_groups_hold_all_shards_in_order_and_few_rows(rows: list[int], rows_per_shard: int, most: int) -> None:
    shards = plan_shards(np.array(rows), [99] * len(rows), rows_per_shard)
    groups = list(group_shards(shards, most))
    assert [shard for group in groups for shard in group] == shards
    for group in groups:
        held = sum(stop - start for shard in group for _, start, stop, _ in shard["spans"])
        assert len(group) == 1 or 0 < held <= most
