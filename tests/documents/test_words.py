from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.corpus.staging import Staging
from lspm_ray.documents.words import MergeCounts, count_words, coverage, most_frequent, stage_counts

TEXTS = st.lists(
    st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "é", "中"]), max_size=20).map(" ".join), max_size=8
)


def test_words_are_counted_without_case_and_punctuation() -> None:
    assert count_words(["The cat, the CAT.", "straße STRASSE"]) == {"the": 2, "cat": 2, "strasse": 2}


def merged(folder: Path, parts: list[list[str]], partitions: int, top: int) -> tuple[list[tuple[str, int]], int, int]:
    staging = Staging(str(folder))
    for number, texts in enumerate(parts):
        stage_counts(staging, f"{number}.arrow", count_words(texts), partitions)
    step = MergeCounts(staging, [f"{number}.arrow" for number in range(len(parts))], top)
    results = [step({"partition": partition}) for partition in range(partitions)]
    found = most_frequent(staging, partitions, top)
    return found, sum(r["different"] for r in results), sum(r["occurrences"] for r in results)


def test_distributed_counts_equal_one_counter(tmp_path: Path) -> None:
    @given(TEXTS, TEXTS, st.integers(1, 5))
    def check(left: list[str], right: list[str], partitions: int) -> None:
        oracle = Counter(word for text in left + right for word in text.split())
        found, different, occurrences = merged(tmp_path, [left, right], partitions, 3)
        assert found == sorted(oracle.items(), key=lambda entry: (-entry[1], entry[0]))[:3]
        assert (different, occurrences) == (len(oracle), oracle.total())

    check()


def test_coverage_is_a_share_of_all_occurrences() -> None:
    frequent = [("a", 50), *((str(number), 1) for number in range(149))]
    assert coverage(frequent, 298) == {"100": 0.5}
