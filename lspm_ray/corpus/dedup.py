"""Near-duplicate texts by MinHash with locality-sensitive hashing, vectorised.

Broder, "On the resemblance and containment of documents" (1997): the share of equal MinHash values of two sets
estimates their Jaccard similarity. Indyk and Motwani (1998): texts that agree in all values of some band become
candidates. Candidates are then checked against a 128-bit sketch of the signature (one bit per value: Li and König,
"b-bit minwise hashing", 2010), so that the similarity asked for is about the similarity got.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lspm_ray.corpus.split import mix

PERMUTATIONS = 128
SKETCH_BYTES = PERMUTATIONS // 8
NODE = np.dtype([("rank", "u1"), ("id", "S16")])
"""A text in the comparison: `rank` decides which of several near-equal texts stays (the smallest), then `id`, the
first 16 bytes of the sha256 of the text."""

_SHINGLE_WORDS = 3
_RECALL = 0.95
# Two standard deviations of the sketch's estimate at a similarity of 0.8: 2 * 2 * sqrt(0.9 * 0.1 / 128).
_SKETCH_MARGIN = 0.1
_WINDOW = 32
_BLOCK_SHINGLES = 1 << 15
_PAIRS_AT_ONCE = 1 << 20
# Scripts without spaces between words: a character is taken as a word.
_WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
# From a hash, because numpy does not promise that its random generators stay the same.
_NUMBERS = np.frombuffer(hashlib.shake_256(b"lspm minhash").digest(16 * PERMUTATIONS), dtype="<u8").astype(np.uint64)
_FACTORS = _NUMBERS[:PERMUTATIONS] | np.uint64(1)
_OFFSETS = _NUMBERS[PERMUTATIONS:]


@dataclass(frozen=True)
class Bands:
    """How a signature is cut: `count` bands of `rows` values each."""

    count: int
    rows: int

    @classmethod
    def for_similarity(cls, similarity: float) -> Bands:
        """The most selective bands that still make 95 % of the pairs of just this similarity candidates."""
        for rows in range(PERMUTATIONS, 0, -1):
            bands = cls(PERMUTATIONS // rows, rows)
            if bands.recall(similarity) >= _RECALL:
                return bands
        raise AssertionError("one value per band finds every similarity above 0.03")

    def recall(self, similarity: float) -> float:
        """Probability that two texts of this Jaccard similarity become candidates."""
        return float(1 - (1 - similarity**self.rows) ** self.count)


def words(text: str) -> list[str]:
    """The words of a text, case-folded, without punctuation."""
    return _WORD.findall(text.casefold())


def shingles(text: str, size: int = _SHINGLE_WORDS) -> NDArray[np.uint64]:
    """Hashes of the runs of `size` words of a text, case and punctuation aside, shape [shingles].

    A shorter text is one run, so there is always at least one.
    """
    found = words(text)
    if not found:
        return np.array([_word_hash(text)], dtype=np.uint64)
    hashes = np.array([_word_hash(word) for word in found], dtype=np.uint64)
    size = min(size, len(hashes))
    combined = np.zeros(len(hashes) - size + 1, dtype=np.uint64)
    for position in range(size):
        combined = mix(combined + hashes[position : len(hashes) - size + 1 + position])
    return combined


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signature of each text, shape [texts, PERMUTATIONS]."""
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    sets = [shingles(text) for text in texts]
    begin, size = 0, 0
    for end in range(len(sets)):
        size += len(sets[end])
        # Blocks that fit the processor's cache: three times as fast as all at once.
        if size >= _BLOCK_SHINGLES or end == len(sets) - 1:
            _minima(sets[begin : end + 1], result[begin : end + 1])
            begin, size = end + 1, 0
    return result


def _minima(sets: list[NDArray[np.uint64]], out: NDArray[np.uint32]) -> None:
    values = np.concatenate(sets)
    starts = np.concatenate(([0], np.cumsum([len(s) for s in sets])[:-1]))
    for index in range(PERMUTATIONS):
        hashed = values * _FACTORS[index] + _OFFSETS[index]
        out[:, index] = np.minimum.reduceat(hashed, starts) >> np.uint64(32)


def band_keys(signature: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint64]:
    """One hash per band; equal hashes make candidates. Shape [texts, bands.count]."""
    keys = np.empty((len(signature), bands.count), dtype=np.uint64)
    for band in range(bands.count):
        key = np.full(len(signature), band + 1, dtype=np.uint64)
        for column in range(band * bands.rows, (band + 1) * bands.rows):
            key = mix(key * np.uint64(0x9E3779B97F4A7C15) + signature[:, column].astype(np.uint64))
        keys[:, band] = key
    return keys


def sketches(signature: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The lowest bit of every MinHash value, packed, shape [texts, SKETCH_BYTES]."""
    return np.packbits((signature & np.uint32(1)).astype(np.uint8), axis=1)


def similarity_of(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of pairs of sketches, shape [pairs]. Standard error about 0.05 at 0.8."""
    differing = np.bitwise_count(left ^ right).sum(axis=1, dtype=np.int64)
    estimate: NDArray[np.float64] = 1 - 2 * differing / PERMUTATIONS
    return estimate


def match(
    keys: NDArray[np.uint64], nodes: NDArray[np.void], sketch: NDArray[np.uint8], similarity: float
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Pairs of near-equal texts among entries of band tables.

    Within a bucket every text is compared with the next `_WINDOW` ones in order of id, so a bucket costs linear time
    however large it is.

    Args:
        keys: band key of each entry, shape [entries].
        nodes: the entry's text, dtype `NODE`, shape [entries].
        sketch: its sketch, shape [entries, SKETCH_BYTES].
        similarity: threshold.

    Returns:
        Two arrays of nodes: a spanning forest of the pairs found, so fewer pairs than texts.
    """
    order = np.lexsort((nodes["rank"], nodes["id"], keys))
    keys, nodes, sketch = keys[order], nodes[order], sketch[order]
    # Exact copies share every band; only the first, of the smallest rank, takes part.
    fresh = np.ones(len(keys), dtype=bool)
    fresh[1:] = (keys[1:] != keys[:-1]) | (nodes["id"][1:] != nodes["id"][:-1])
    keys, nodes, sketch = keys[fresh], nodes[fresh], sketch[fresh]
    lefts, rights = [nodes[:0]], [nodes[:0]]
    for step in range(1, min(_WINDOW, len(keys) - 1) + 1):
        left = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(left):
            break
        near = similarity_of(sketch[left], sketch[left + step]) >= similarity - _SKETCH_MARGIN
        lefts.append(nodes[left[near]])
        rights.append(nodes[left[near] + step])
    return _forest(np.concatenate(lefts), np.concatenate(rights))


def clusters(left: NDArray[np.void], right: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Connected components of pairs of nodes.

    Returns:
        The distinct nodes, ascending by (rank, id), and for each the position of the smallest node of its component.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    both = np.concatenate((left, right))
    order = np.lexsort((both["id"], both["rank"]))
    fresh = np.ones(len(both), dtype=bool)
    ordered = both[order]
    fresh[1:] = ordered[1:] != ordered[:-1]
    nodes = ordered[fresh]
    position = np.empty(len(both), dtype=np.int64)
    position[order] = np.cumsum(fresh) - 1
    links = (np.ones(len(left), dtype=bool), (position[: len(left)], position[len(left) :]))
    _, component = connected_components(coo_matrix(links, shape=(len(nodes), len(nodes))), directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return nodes, first[inverse].astype(np.int64)


def superfluous(
    pairs: Iterable[tuple[NDArray[np.void], NDArray[np.void]]],
) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
    """Texts that go because of a near-equal one that stays.

    Args:
        pairs: what `match` found in each partition. The same pair may come up in many of them; memory is that of the
            different texts in pairs (about 300 bytes each while they are connected), not of all pairs.

    Returns:
        Ids (16 bytes) of every text that has a smaller near-equal one, directly or through others; and for each the id
        of the smallest text of its cluster, which stays.
    """
    left = right = np.empty(0, dtype=NODE)
    lefts, rights, waiting = [left], [right], 0
    for some_left, some_right in pairs:
        lefts.append(some_left)
        rights.append(some_right)
        waiting += len(some_left)
        if waiting > len(lefts[0]) + _PAIRS_AT_ONCE:
            left, right = _forest(np.concatenate(lefts), np.concatenate(rights))
            lefts, rights, waiting = [left], [right], 0
    root, linked = _forest(np.concatenate(lefts), np.concatenate(rights))
    return linked["id"], root["id"]


def _forest(left: NDArray[np.void], right: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.void]]:
    if not len(left):
        return left, right
    nodes, root = clusters(left, right)
    linked = root != np.arange(len(nodes))
    return nodes[root[linked]], nodes[linked]


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
