"""The arithmetic and the HTTP client of benchmarks/serving.py."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from tests.benchmarks import imported


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with imported("serving") as module:
        yield module


def run(rate: float, labels: dict[int, str], **more: Any) -> dict[str, Any]:
    return {"texts_per_s": rate, "labels": labels, "concurrency": 4, "statuses": {200: 10}} | more


def test_medians_agreement_and_failures(benchmark: ModuleType) -> None:
    rounds = [
        {"cascade": [run(10.0, {0: "yes", 1: "no"})]},
        {"cascade": [run(30.0, {0: "yes", 1: "yes"}, statuses={200: 9, 503: 2})]},
        {"cascade": [run(20.0, {5: "yes"})]},
    ]
    row = benchmark.summarise(rounds, {0: "yes", 1: "no"})["cascade@4"]
    assert row["texts_per_s"] == 20.0
    assert row["texts_per_s_all_rounds"] == [10.0, 30.0, 20.0]
    assert row["same_label_as_full"] == 0.75
    assert row["not_200"] == 2


def test_ratios_compare_like_with_like(benchmark: ModuleType) -> None:
    rates = {
        "cascade@20/s": 20.0,
        "full_plain@20/s": 20.0,
        "cascade@1": 10.0,
        "cascade@8": 50.0,
        "full_plain@1": 5.0,
        "full_plain@8": 10.0,
        "full_loop": 20.0,
    }
    found = benchmark.ratios({key: {"texts_per_s": rate} for key, rate in rates.items()})
    assert found == {
        "cascade@1 / full_plain@1": 2.0,
        "cascade@8 / full_plain@8": 5.0,
        "cascade@1 / full_loop": 0.5,
        "cascade@8 / full_loop": 2.5,
    }


def test_percentiles_and_cpu_per_text(benchmark: ModuleType) -> None:
    row = benchmark.figures(100, 2.0, [number / 1000 for number in range(1, 101)], 0.5)
    assert row == {
        "requests": 100,
        "texts_per_s": 50.0,
        "p50_ms": 51.0,
        "p99_ms": 100.0,
        "cpu_us_per_text": 5000,
    }


@asynccontextmanager
async def server(asked: list[bytes]) -> AsyncIterator[int]:
    """Answers every second request with 429; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
            asked.append(await reader.readexactly(size))
            status, body = (b"200 OK", b'{"label": "a\\"b"}') if len(asked) % 2 else (b"429 Busy", b"{}")
            # In two pieces, as networks do.
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:1])
            await writer.drain()
            writer.write(body[1:])

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize("loop", ["closed_loop", "open_loop"])
def test_the_client_counts_every_answer(benchmark: ModuleType, loop: str) -> None:
    asked: list[bytes] = []

    async def scenario() -> Any:
        async with server(asked) as port:
            amount = 3 if loop == "closed_loop" else 200.0
            return await getattr(benchmark, loop)(port, ["one", "two"], amount, seconds=0.2)

    load = asyncio.run(scenario())
    assert sum(load.statuses.values()) == len(load.latencies_s) == len(asked) > 3
    assert set(load.statuses) == {200, 429}
    assert set(asked) == {b'{"text": "one"}', b'{"text": "two"}'}
    assert set(load.labels.values()) == {b'a\\"b'}
    assert all(latency > 0 for latency in load.latencies_s)


def test_the_tree_of_a_process_and_its_cost(benchmark: ModuleType) -> None:
    assert os.getpid() in benchmark.tree(os.getppid())
    assert benchmark.cpu_seconds(os.getpid()) > 0
    assert benchmark.memory_mb(os.getpid()) > 10


def test_the_plan_of_a_run_is_found(benchmark: ModuleType, toy_store: ArtifactStore, toy_select: Artifact) -> None:
    assert benchmark.find_plan(toy_select.uri) == toy_select.uri
    assert Path(benchmark.find_plan(toy_store.root)).name.startswith("select-")


def test_texts_come_from_lines_or_a_column(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("id,review\n1,three\n2,\n", encoding="utf-8")
    assert benchmark.read_texts(str(tmp_path / "a.txt"), "text", 10) == ["one", "two"]
    assert benchmark.read_texts(str(tmp_path / "a.csv"), "review", 10) == ["three"]
