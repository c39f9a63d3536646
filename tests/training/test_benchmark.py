"""The arithmetic of benchmarks/training.py, and its bare loop against ours."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import imported


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with imported("training") as module:
        yield module


def entry(step: int, seconds: float, wait: float = 0.0, stall: float = 0.0) -> dict[str, float]:
    shares = {"data_wait_share": wait, "checkpoint_share": stall, "mfu": 0.1 * step}
    return {"tokens": 100.0 * step, "seconds": seconds, **shares}


def test_the_steps_before_the_first_entry_do_not_count(benchmark: ModuleType) -> None:
    found = benchmark.counted([entry(1, 50.0, wait=0.9), entry(2, 52.0, wait=0.5), entry(3, 60.0, stall=0.25)])
    assert found["tokens"] == 200
    assert found["seconds"] == 10
    assert found["waited_s"] == pytest.approx(1.0)
    assert found["stalled_s"] == pytest.approx(2.0)
    assert found["mfu"] == pytest.approx((0.2 * 2 + 0.3 * 8) / 10)


def test_the_ratio_leaves_out_the_stall_and_is_taken_within_rounds(benchmark: ModuleType) -> None:
    def one(ours: float, bare: float) -> dict[str, Any]:
        mine = {"tokens": 1000.0, "seconds": ours + 1, "stalled_s": 1.0, "waited_s": 0.0, "mfu": 0.5}
        return {"1": {"ours": mine | {"tokens_per_step": 10}, "bare": {"tokens": 1000.0, "seconds": bare}}}

    found = benchmark.summarise([one(10.0, 10.0), one(40.0, 20.0), one(20.0, 40.0)])["1"]
    assert found["ratio"] == {"ours / bare": {"median": 1.0, "all_rounds": [1.0, 0.5, 2.0]}}
    assert found["tokens_per_s"] == {"ours": 50, "bare": 50}
    assert found["checkpoint_stall_s"] == 1.0
    assert found["checkpoint_share_every_100_steps"] == pytest.approx(1 / 21, abs=1e-5)


def test_both_loops_see_the_same_batches_and_count_the_same_tokens(benchmark: ModuleType, tmp_path: Path) -> None:
    import torch

    from lspm_ray.artifact import ArtifactStore, Draft
    from tests.toy_blocks import toy_blocks
    from tests.toys import toy_tokenizer

    store = ArtifactStore(str(tmp_path / "store"))

    def build(draft: Draft) -> None:
        toy_tokenizer().save_pretrained(draft.path)

    blocks = toy_blocks(store, {"train": [60], "validation": [8]}, vocabulary=len(toy_tokenizer()))
    options = {"warmup": 2, "steps": 4, "size": "toy", "batch_size": 8, "micro_batch_size": 3, "precision": "fp32"}
    section = benchmark.settings(benchmark.argparse.Namespace(device="cpu", **options), 1)
    job = {"blocks": blocks.uri, "tokenizer": store.make("tokenizer", {}, {}, build).uri, "settings": section}
    job |= {"work": str(tmp_path / "work"), "workers": 1, "threads": torch.get_num_threads(), "device": "cpu"}
    job |= {"length": 16, "warmup": 2, "no_ray": True}
    ours = benchmark.counted(benchmark.child_ours(job)["history"])
    bare = benchmark.child_bare(job)
    assert ours["tokens"] == bare["tokens"] == 4 * 8 * 16
    assert ours["stalled_s"] > 0
    assert ours["seconds"] > 0 < bare["seconds"]
    for rank in (0, 1):
        steps = benchmark._batches(job | {"workers": 2}, rank, torch.device("cpu"))
        assert [[len(ids) for ids, _ in micros] for micros in steps] == [[3, 1]] * 6
        ids, following = steps[0][0]
        assert (ids[:, 1:] == following[:, :-1]).all()
        assert (following[:, -1] == -100).all()
