"""The pure parts of benchmarks/corpus.py."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import imported


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with imported("corpus") as module:
        yield module


def test_generated_documents_differ_and_have_the_size_asked_for(benchmark: ModuleType, tmp_path: Path) -> None:
    sentences = benchmark.make_sentences(500)
    assert len(set(sentences)) > 490
    texts = list(benchmark.make_documents(sentences, 200_000, seed=1))
    size = sum(len(text.encode()) for text in texts)
    assert 200_000 <= size < 300_000
    assert len(set(texts)) == len(texts) > 20
    assert texts == list(benchmark.make_documents(sentences, 200_000, seed=1))
    assert texts[0] != next(benchmark.make_documents(sentences, 200_000, seed=2))
    assert benchmark.write_text(sentences, 50_000, tmp_path / "text") == f"{tmp_path}/text/*.jsonl"
    again = benchmark.read_sentences([f"{tmp_path}/text/*.jsonl"])
    assert set(again) <= set(sentences)
    assert len(again) > 100


def test_shared_memory_is_counted_apart(benchmark: ModuleType) -> None:
    rollup = "Rss:  900 kB\nPss:  700 kB\nPss_Dirty: 10 kB\nPss_Anon: 300 kB\nPss_File: 100 kB\nPss_Shmem: 300 kB\n"
    assert benchmark.proportional(rollup) == (400, 300)


def test_ratios_are_taken_within_rounds(benchmark: ModuleType) -> None:
    def run(seconds: float) -> dict[str, float]:
        return {"tokens": 1000, "seconds": seconds, "cpu_s": 2 * seconds}

    rounds = [
        {"blocks": run(1.0), "encode_batch": run(2.0)},
        {"blocks": run(10.0), "encode_batch": run(10.0)},
        {"blocks": run(2.0), "encode_batch": run(1.0)},
    ]
    found = benchmark.summarise(rounds)
    assert found["ratio"] == {"blocks / encode_batch": {"median": 1.0, "all_rounds": [2.0, 1.0, 0.5], "target": 0.85}}
    assert found["tokens_per_s"] == {"blocks": 500, "encode_batch": 500}
    assert found["tokens_per_cpu_s"]["blocks"] == 250


def test_flatness_compares_the_ends(benchmark: ModuleType) -> None:
    sizes = [{"text_mb": mb, "peak_mb": {"documents": peak}} for mb, peak in ((8, 500), (32, 900), (128, 550))]
    assert benchmark.flatness(sizes) == {"text": 16.0, "documents": 1.1}


def test_the_peer_cuts_whole_blocks(benchmark: ModuleType) -> None:
    assert benchmark._cut(list(range(7)), 99, 3) == [[99, 0, 1, 2], [99, 3, 4, 5]]
    assert benchmark._cut([1, 2, 3], 0, 3) == [[0, 1, 2, 3]]


def test_a_python_without_the_peer_is_recognised(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_PEER_MODULES", ("json", "tokenizers"))
    assert benchmark.has_peer(sys.executable)
    monkeypatch.setattr(benchmark, "_PEER_MODULES", ("json", "there_is_no_such_module"))
    assert not benchmark.has_peer(sys.executable)
