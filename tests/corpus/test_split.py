from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.config import SPLITS, Splits
from lspm_ray.corpus.split import (
    UNASSIGNED,
    order_keys,
    partition_of,
    precedence,
    shares_by_hash,
    split_of,
    unit_interval,
)

SHARES = Splits().shares()
IDS = [i.to_bytes(32, "big") for i in range(4000)]


def test_shares_are_met() -> None:
    counts = Counter(split_of(row, SHARES, 0) for row in IDS)
    for name, share in SHARES.items():
        # Five standard deviations of the binomial.
        assert counts[name] / len(IDS) == pytest.approx(share, abs=5 * (share * (1 - share) / len(IDS)) ** 0.5)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 9))
def test_depends_on_the_id_and_the_seed_alone(row: bytes, seed: int) -> None:
    assert split_of(row, SHARES, seed) == split_of(row, dict(SHARES), seed)
    assert 0 <= unit_interval(row, seed) < 1


def test_another_seed_gives_another_division() -> None:
    assert [split_of(row, SHARES, 0) for row in IDS[:50]] != [split_of(row, SHARES, 1) for row in IDS[:50]]


def test_a_split_of_this_id_never_changes() -> None:
    # A change here would move rows between splits of existing users, and tests into training sets.
    assert [split_of(row, SHARES, 0) for row in IDS[:8]] == GOLDEN


GOLDEN = ["test", "train", "validation", "train", "train", "train", "train", "train"]


@given(st.binary(min_size=32, max_size=32))
def test_shares_need_not_sum_to_one_and_empty_ones_get_nothing(row: bytes) -> None:
    assert split_of(row, {"train": 2.0, "test": 0.0, "validation": 2.0}, 0) in ("train", "validation")
    assert split_of(row, {"train": 0.3}, 0) == "train"


def test_splits_named_by_rows_are_not_filled_by_hash() -> None:
    assert shares_by_hash(SHARES, []) == SHARES
    assert shares_by_hash(SHARES, ["test"]) == {name: SHARES[name] for name in SPLITS if name != "test"}
    assert shares_by_hash(SHARES, ["train", "test", "validation"]).keys() == {"train", "selection", "calibration"}
    assert shares_by_hash(SHARES, SPLITS) == {"train": SHARES["train"]}


def test_of_equal_texts_the_test_row_stays() -> None:
    ranks = {name: precedence(SPLITS.index(name)) for name in SPLITS}
    assert sorted(ranks, key=ranks.__getitem__) == ["test", "calibration", "selection", "validation", "train"]
    assert precedence(UNASSIGNED) == ranks["train"]


def test_order_is_a_permutation_that_looks_random() -> None:
    ids = np.frombuffer(b"".join(IDS), dtype=np.uint8).reshape(-1, 32)[:, ::-1]
    keys = order_keys(ids, 0)
    assert len(np.unique(keys)) == len(keys)
    ranks = keys.argsort().argsort()
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.08
    assert (order_keys(ids, 1) != keys).all()
    np.testing.assert_array_equal(order_keys(ids[:, :16], 0), keys)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(1, 5000))
def test_partitions_are_ranges_of_keys(values: list[int], partitions: int) -> None:
    keys = np.sort(np.array(values, dtype=np.uint64))
    found = partition_of(keys, partitions)
    assert found.min() >= 0
    assert found.max() < partitions
    assert (np.diff(found) >= 0).all()


def test_partitions_are_balanced() -> None:
    keys = order_keys(np.random.default_rng(0).integers(0, 256, (10_000, 32), dtype=np.uint8), 0)
    counts = np.bincount(partition_of(keys, 7), minlength=7)
    assert counts.min() > 1200
