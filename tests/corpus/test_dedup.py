import random
from itertools import combinations

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.clean import text_id
from lspm_ray.corpus.dedup import (
    NODE,
    PERMUTATIONS,
    Bands,
    band_keys,
    clusters,
    match,
    shingles,
    signatures,
    similarity_of,
    sketches,
    superfluous,
)

WORDS = [f"w{i}" for i in range(400)]


def text_of(length: int, generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=length))


def edited(text: str, changes: int, generator: random.Random) -> str:
    words = text.split()
    for index in generator.sample(range(len(words)), changes):
        words[index] = generator.choice(WORDS)
    return " ".join(words)


def jaccard(left: str, right: str) -> float:
    a, b = set(shingles(left).tolist()), set(shingles(right).tolist())
    return len(a & b) / len(a | b)


def nodes_of(texts: list[str], ranks: list[int] | None = None) -> np.ndarray:
    nodes = np.empty(len(texts), dtype=NODE)
    nodes["rank"] = ranks or 4
    nodes["id"] = [text_id(text)[:16] for text in texts]
    return nodes


def near(texts: list[str], similarity: float = 0.8, ranks: list[int] | None = None) -> set[bytes]:
    """Ids of the superfluous texts, found as `prepare` finds them."""
    signature = signatures(texts)
    bands = Bands.for_similarity(similarity)
    keys = band_keys(signature, bands)
    nodes = nodes_of(texts, ranks).repeat(bands.count)
    left, right = match(keys.ravel(), nodes, sketches(signature).repeat(bands.count, axis=0), similarity)
    return {row.ljust(16, b"\0") for row in superfluous([(left, right)])[0].tolist()}


def test_case_and_punctuation_do_not_count() -> None:
    np.testing.assert_array_equal(shingles("Great dress, love it!"), shingles("great DRESS love it"))


@pytest.mark.parametrize(
    ("text", "count"), [("one", 1), ("one two", 1), ("one two three four", 2), ("!?", 1), ("連衣裙很好", 3)]
)
def test_number_of_shingles(text: str, count: int) -> None:
    assert len(shingles(text)) == count


def test_texts_without_words_are_different_unless_equal() -> None:
    assert shingles("!!!") != shingles("???")
    assert near(["!!!", "???", "..."]) == set()


def test_signature_of_a_text_does_not_depend_on_its_neighbours() -> None:
    generator = random.Random(1)
    texts = [text_of(generator.randint(1, 3000), generator) for _ in range(40)]
    whole = signatures(texts)
    assert whole.shape == (40, PERMUTATIONS)
    np.testing.assert_array_equal(whole, np.concatenate([signatures([text]) for text in texts]))


def test_signatures_never_change() -> None:
    # Digests of existing corpora depend on them.
    assert signatures(["the quick brown fox jumps"])[0, :4].tolist() == GOLDEN


GOLDEN = [620578624, 2524440496, 584906928, 552727030]


@pytest.mark.parametrize("changes", [0, 2, 6, 15, 60])
def test_estimates_agree_with_the_true_similarity(changes: int) -> None:
    generator = random.Random(changes)
    pairs = [(text, edited(text, changes, generator)) for text in (text_of(120, generator) for _ in range(60))]
    left, right = (signatures([pair[side] for pair in pairs]) for side in (0, 1))
    true = np.array([jaccard(*pair) for pair in pairs])
    # Means of 60 pairs: standard errors of about 0.006 (128 values) and 0.01 (128 bits).
    assert (left == right).mean() == pytest.approx(true.mean(), abs=0.03)
    assert similarity_of(sketches(left), sketches(right)).mean() == pytest.approx(true.mean(), abs=0.05)


def test_agrees_with_datasketch() -> None:
    generator = random.Random(7)
    texts = [text_of(60, generator) for _ in range(40)]
    texts += [edited(text, 1, generator) for text in texts[:15]]  # similarity about 0.9
    texts += [edited(text, 30, generator) for text in texts[15:30]]  # about 0.1
    oracle = MinHashLSH(threshold=0.7, num_perm=PERMUTATIONS)
    hashes = []
    for index, text in enumerate(texts):
        minhash = MinHash(num_perm=PERMUTATIONS, seed=3)
        minhash.update_batch([int(value).to_bytes(8, "big") for value in shingles(text)])
        oracle.insert(index, minhash)
        hashes.append(minhash)
    expected = set()
    for index, minhash in enumerate(hashes):
        cluster = [other for other in oracle.query(minhash) if hashes[other].jaccard(minhash) >= 0.7]
        smallest = min(text_id(texts[other]) for other in cluster)
        if text_id(texts[index]) != smallest:
            expected.add(text_id(texts[index])[:16])
    assert near(texts, 0.8) == expected
    assert len(expected) == 15


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_what_is_asked_for_and_little_else(similarity: float) -> None:
    bands = Bands.for_similarity(similarity)
    assert bands.count * bands.rows <= PERMUTATIONS
    assert bands.recall(similarity) >= 0.95
    assert bands.recall(similarity - 0.4) < 0.25


def test_what_is_less_similar_than_asked_stays() -> None:
    generator = random.Random(3)
    texts = [text_of(80, generator) for _ in range(150)]
    # Similarity about 0.5: often candidates by a band, but not similar by the sketch.
    others = [edited(text, 9, generator) for text in texts]
    true = [jaccard(a, b) for a, b in zip(texts, others, strict=True)]
    assert 0.45 < np.mean(true) < 0.65
    assert len(near(texts + others)) <= 6


def test_the_smallest_rank_stays_then_the_smallest_id() -> None:
    generator = random.Random(5)
    first = text_of(100, generator)
    texts = sorted((first, edited(first, 1, generator)), key=text_id)
    assert near(texts) == {text_id(texts[1])[:16]}
    assert near(texts, ranks=[4, 0]) == {text_id(texts[0])[:16]}


def test_a_huge_bucket_is_matched_as_a_whole_in_few_pairs() -> None:
    generator = random.Random(6)
    template = text_of(300, generator)
    texts = list({edited(template, 1, generator) for _ in range(400)})
    signature = signatures(texts)
    bands = Bands.for_similarity(0.8)
    left, right = match(
        band_keys(signature, bands).ravel(),
        nodes_of(texts).repeat(bands.count),
        sketches(signature).repeat(bands.count, axis=0),
        0.8,
    )
    assert len(left) < len(texts)
    assert len(superfluous([(left, right)])[0]) == len(texts) - 1


PAIRS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=40)


@given(PAIRS)
def test_clusters_equal_a_naive_union_find(pairs: list[tuple[int, int]]) -> None:
    parent = {n: n for pair in pairs for n in pair}

    def find(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    nodes, root = clusters(*(numbered([pair[side] for pair in pairs]) for side in (0, 1)))
    found = {int(n["id"]): int(nodes[r]["id"]) for n, r in zip(nodes, root, strict=True)}
    assert found == {n: find(n) for n in parent}


@given(PAIRS, st.randoms(), st.integers(1, 40), st.integers(0, 5))
def test_what_is_superfluous_does_not_depend_on_how_the_pairs_come(
    pairs: list[tuple[int, int]], random_: random.Random, size: int, at_once: int
) -> None:
    def found(some: list[tuple[int, int]], size: int) -> list[tuple[bytes, bytes]]:
        parts = [some[start : start + size] for start in range(0, len(some), size)]
        gone, stays = superfluous((numbered([a for a, _ in part]), numbered([b for _, b in part])) for part in parts)
        return list(zip(gone.tolist(), stays.tolist(), strict=True))

    shuffled = [pair[::-1] if random_.random() < 0.5 else pair for pair in random_.sample(pairs, len(pairs))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lspm_ray.corpus.dedup._PAIRS_AT_ONCE", at_once)
        assert found(shuffled, size) == found(pairs, 1000)


def numbered(values: list[int]) -> np.ndarray:
    nodes = np.empty(len(values), dtype=NODE)
    nodes["rank"] = 0
    nodes["id"] = [f"{value:016d}".encode() for value in values]
    return nodes


@given(st.lists(st.sampled_from(["a b c d", "a b c d!", "A b c d", "x y z", "", "q"]), max_size=12))
def test_survivors_are_pairwise_different_and_every_cluster_keeps_one(texts: list[str]) -> None:
    gone = near(texts) if texts else set()
    left = {text for text in texts if text_id(text)[:16] not in gone}
    for a, b in combinations(left, 2):
        assert jaccard(a, b) < 1
    assert {tuple(shingles(text)) for text in left} == {tuple(shingles(text)) for text in texts}
