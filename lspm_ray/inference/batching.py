"""Length-aware batching: examples of similar length share a forward pass."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

CPU_BATCH_TOKENS = 1024
"""Padded tokens per forward pass on a CPU: activations stay in cache (MiniLM, 2 cores: 13 % faster than with 4096)."""

GPU_BATCH_TOKENS = 65_536
"""The same on a GPU, which needs much work at once."""

CPU_CALL_TOKENS = 32
"""Padding that costs a small transformer on a CPU about as much as starting another forward pass."""


def micro_batches(lengths: Sequence[int], max_tokens: int, call_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each forward pass, shortest examples first; every row exactly once.

    A batch grows by the next longer row as long as it fits, and padding the rows it holds to the new length costs no
    more than a forward pass of its own would.

    Args:
        lengths: tokens of each row.
        max_tokens: of a batch, padding included; a batch of one row may have more.
        call_tokens: what starting a forward pass costs, in tokens.
    """
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order):
            rows, longest, longer = end - start, lengths[order[end - 1]], lengths[order[end]]
            if (rows + 1) * longer > max_tokens or rows * (longer - longest) > call_tokens:
                break
            end += 1
        yield order[start:end]
        start = end


def pad(examples: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask, both [rows, longest], padded on the right."""
    width = max(len(example) for example in examples)
    ids = np.full((len(examples), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(examples), width), dtype=np.int64)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example
        mask[row, : len(example)] = 1
    return ids, mask
