"""Token ids of documents into blocks of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packed:
    """Blocks of tokens.

    Attributes:
        input_ids: shape [blocks, length], padded at the end.
        segments: lengths of the pieces of documents in each block, in order; their sum is the tokens of the block.
    """

    input_ids: NDArray[np.int32]
    segments: list[NDArray[np.int32]]

    def take(self, order: NDArray[np.int64]) -> Packed:
        """The blocks in another order."""
        return Packed(self.input_ids[order], [self.segments[place] for place in order])


def concatenate(documents: Sequence[NDArray[np.int32]], length: int, start: int | None, pad: int) -> Packed:
    """One document after the other; the blocks are cut wherever they are full. Only the last one is padded.

    A document's end may thus be the first tokens of a block, or its only token: pieces, not documents, fill blocks.

    Args:
        documents: token ids of each, with what marks the end.
        length: tokens of a block.
        start: token at the start of every block; None for none.
        pad: token that fills the last block up.
    """
    room = length - (start is not None)
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    blocks = -(-total // room)
    flat = np.full(blocks * room, pad, dtype=np.int32)
    if total:
        np.concatenate(documents, out=flat[:total])
    cuts = np.union1d(ends, np.append(np.arange(1, blocks, dtype=np.int64) * room, total)) if total else ends
    sizes = np.diff(cuts, prepend=0)
    first_of_block = np.searchsorted(cuts, np.arange(1, blocks) * room, side="left") + 1
    segments = [part.astype(np.int32) for part in np.split(sizes[sizes > 0], first_of_block)] if blocks else []
    return _with_start(flat.reshape(blocks, room), segments, start)


def best_fit(documents: Sequence[NDArray[np.int32]], length: int, start: int | None, pad: int) -> Packed:
    """Documents are cut only where they are longer than a block, then laid where the least room is left over.

    Best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3). Arguments as for
    `concatenate`; every block may be padded.
    """
    room = length - (start is not None)
    pieces = [document[at : at + room] for document in documents for at in range(0, len(document), room)]
    order = sorted(range(len(pieces)), key=lambda number: (-len(pieces[number]), number))
    bins: list[list[int]] = []
    left_in: dict[int, list[int]] = {}
    free = 0  # bit `n` is set while some block has room for just `n` more tokens
    for number in order:
        size = len(pieces[number])
        fitting = free >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            chosen = left_in[left].pop()
            if not left_in[left]:
                free &= ~(1 << left)
        else:
            left, chosen = room, len(bins)
            bins.append([])
        bins[chosen].append(number)
        if left > size:
            left_in.setdefault(left - size, []).append(chosen)
            free |= 1 << (left - size)
    rows = np.full((len(bins), room), pad, dtype=np.int32)
    segments = []
    for row, members in zip(rows, bins, strict=True):
        whole = np.concatenate([pieces[number] for number in members])
        row[: len(whole)] = whole
        segments.append(np.array([len(pieces[number]) for number in members], dtype=np.int32))
    return _with_start(rows, segments, start)


def _with_start(rows: NDArray[np.int32], segments: list[NDArray[np.int32]], start: int | None) -> Packed:
    if start is None:
        return Packed(rows, segments)
    first = np.full((len(rows), 1), start, dtype=np.int32)
    for part in segments:
        part[0] += 1
    return Packed(np.concatenate([first, rows], axis=1), segments)
