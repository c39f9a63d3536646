import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.documents.packing import Packed, best_fit, concatenate

PAD, START = 0, 1
Pack = Callable[..., Packed]
SIZES = st.lists(st.integers(1, 40), max_size=30)


def documents(sizes: list[int]) -> list[np.ndarray]:
    """Every token of every document is another number, from 10 on."""
    ends = np.cumsum([0, *sizes])
    return [np.arange(start, stop, dtype=np.int32) + 10 for start, stop in itertools.pairwise(ends)]


def pieces(packed: Packed, start: int | None) -> list[list[int]]:
    found = []
    for row, segments in zip(packed.input_ids.tolist(), packed.segments, strict=True):
        at = 0
        for number, size in enumerate(segments.tolist()):
            piece = row[at : at + size]
            if number == 0 and start is not None:
                assert piece.pop(0) == start
            found.append(piece)
            at += size
        assert row[at:] == [PAD] * (len(row) - at)
    return found


@pytest.mark.parametrize("pack", [concatenate, best_fit])
@given(sizes=SIZES, start=st.sampled_from([None, START]))
def test_every_token_is_in_exactly_one_piece_of_its_own_document(
    pack: Pack, sizes: list[int], start: int | None
) -> None:
    given_documents = documents(sizes)
    packed = pack(given_documents, 16, start, PAD)
    assert packed.input_ids.shape == (len(packed.segments), 16)
    owner = {int(token): number for number, some in enumerate(given_documents) for token in some}
    parts = pieces(packed, start)
    assert sorted(token for part in parts for token in part) == sorted(owner)
    for part in parts:
        assert part == list(range(part[0], part[0] + len(part)))
        assert len({owner[token] for token in part}) == 1


@given(sizes=SIZES)
def test_concatenation_keeps_the_order_and_pads_only_the_last_block(sizes: list[int]) -> None:
    packed = concatenate(documents(sizes), 16, START, PAD)
    assert [t for part in pieces(packed, START) for t in part] == list(range(10, 10 + sum(sizes)))
    assert all(segments.sum() == 16 for segments in packed.segments[:-1])


@given(sizes=SIZES)
def test_best_fit_cuts_only_documents_longer_than_a_block(sizes: list[int]) -> None:
    packed = best_fit(documents(sizes), 16, None, PAD)
    assert sorted(map(len, pieces(packed, None))) == sorted(
        size for whole in sizes for size in [16] * (whole // 16) + [whole % 16] if size
    )


def test_best_fit_takes_the_block_with_the_least_room() -> None:
    packed = best_fit(documents([10, 12, 4, 6]), 16, None, PAD)
    assert [sorted(part.tolist()) for part in packed.segments] == [[4, 12], [6, 10]]


def test_without_documents_there_is_no_block() -> None:
    for pack in (concatenate, best_fit):
        assert pack([], 8, START, PAD).input_ids.shape == (0, 8)
