import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.clean import text_id
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.consolidate import count_classes, unique_rows
from lspm_ray.corpus.split import UNASSIGNED

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")
ROW = st.tuples(st.sampled_from("abcde"), st.integers(0, 2), st.sampled_from([UNASSIGNED, *range(5)]))


def unique(rows: list[tuple[str, int, int]]) -> tuple[dict[str, tuple[int, int]], int]:
    """Text -> (label, split), and the number of conflicts."""
    ids = np.frombuffer(b"".join(text_id(text) for text, _, _ in rows), dtype=np.uint8).reshape(-1, 32)
    labels = np.array([label for _, label, _ in rows], dtype=np.int32)
    splits = np.array([split for _, _, split in rows], dtype=np.int8)
    first, labels, splits, conflicts = unique_rows(ids, labels, splits)
    found = {rows[i][0]: (int(k), int(s)) for i, k, s in zip(first, labels, splits, strict=True)}
    assert len(found) == len(first)
    return found, conflicts


def test_equal_texts_become_one_row_with_the_label_of_the_majority() -> None:
    rows = [("a", 1, UNASSIGNED), ("b", 0, UNASSIGNED), ("a", 0, UNASSIGNED), ("a", 1, UNASSIGNED)]
    assert unique(rows) == ({"a": (1, UNASSIGNED), "b": (0, UNASSIGNED)}, 1)


def test_a_tie_goes_to_the_first_label() -> None:
    assert unique([("a", 2, TRAIN), ("a", 1, TRAIN)]) == ({"a": (1, TRAIN)}, 1)


def test_a_copy_of_a_test_row_leaves_the_training_data_and_takes_its_label_along() -> None:
    rows = [("a", 0, TRAIN), ("a", 0, UNASSIGNED), ("a", 1, TEST)]
    assert unique(rows) == ({"a": (1, TEST)}, 1)


@given(st.lists(ROW, min_size=1, max_size=25), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_rows(
    rows: list[tuple[str, int, int]], random_: random.Random
) -> None:
    shuffled = random_.sample(rows, len(rows))
    assert unique(shuffled) == unique(rows)
    assert unique(rows)[0].keys() == {text for text, _, _ in rows}


def test_ids_that_end_in_zero_bytes_are_told_apart() -> None:
    ids = np.zeros((3, 32), dtype=np.uint8)
    ids[1, 31] = 1
    first, _, _, _ = unique_rows(ids, np.zeros(3, dtype=np.int32), np.zeros(3, dtype=np.int8))
    assert len(first) == 2


def test_no_rows() -> None:
    empty = unique_rows(np.empty((0, 32), np.uint8), np.empty(0, np.int32), np.empty(0, np.int8))
    assert [len(part) for part in empty[:3]] == [0, 0, 0]


def test_counts_by_split_and_class() -> None:
    counts = count_classes(np.array([0, 0, 4, 0], dtype=np.int8), np.array([1, 1, 0, 2], dtype=np.int32), 3)
    assert counts.tolist() == [[0, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
