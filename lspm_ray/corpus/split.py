"""Which split a row belongs to, and its place in the pseudo-random order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.config import SPLITS

UNASSIGNED = -1
"""Split code of a row whose split no one has named."""

# Of equal or nearly equal texts, the one in the split furthest down the line stays: a published test set stays whole,
# and its copies leave the training data.
_PRECEDENCE = {"test": 0, "calibration": 1, "selection": 2, "validation": 3, "train": 4}


def unit_interval(row_id: bytes, seed: int) -> float:
    """A salted sha256 of the id as a number in [0, 1), the same on every machine."""
    digest = hashlib.sha256(b"split:%d:" % seed + row_id).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(row_id: bytes, shares: Mapping[str, float], seed: int) -> str:
    """The split of a row by the hash of its text alone: rows of equal text are always in one split.

    Args:
        row_id: sha256 of the normalised text.
        shares: split -> share; they need not sum to 1.
        seed: salt.
    """
    point = unit_interval(row_id, seed) * sum(shares.values())
    last = ""
    for name, share in shares.items():
        if share > 0:
            last = name
            if point < share:
                return name
        point -= share
    return last  # only reached by a rounding error of the last subtraction


def shares_by_hash(shares: Mapping[str, float], given: Iterable[str]) -> dict[str, float]:
    """The splits among which rows are divided by hash, when the splits in `given` are named by some rows."""
    named = set(given) - {"train"}
    return {name: share for name, share in shares.items() if name not in named and share > 0}


def precedence(split_code: int) -> int:
    """Rank of a row among equal texts; the smallest stays."""
    return 4 if split_code == UNASSIGNED else _PRECEDENCE[SPLITS[split_code]]


def order_keys(ids: NDArray[np.uint8], seed: int) -> NDArray[np.uint64]:
    """A salted hash of each id: rows sorted by it are in a pseudo-random order that depends on their texts alone.

    Args:
        ids: sha256 digests, or at least their first 8 bytes, shape [rows, bytes].
        seed: salt.

    Returns:
        Keys uniform in [0, 2**64), shape [rows].
    """
    heads = np.ascontiguousarray(ids[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
    salt = np.frombuffer(hashlib.sha256(b"order:%d" % seed).digest()[:8], dtype=">u8").astype(np.uint64)[0]
    return mix(heads ^ salt)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that scatters its input."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def partition_of(keys: NDArray[np.uint64], partitions: int) -> NDArray[np.int64]:
    """Which of `partitions` equal ranges of [0, 2**64) each key lies in; ascending keys, ascending partitions."""
    return ((keys >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)
