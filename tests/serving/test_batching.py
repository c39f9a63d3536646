import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lspm_ray.serving.batching import Batcher
from lspm_ray.serving.cascade import QueueFull, StageDown
from tests.serving.virtual_time import run


class Doubler:
    """Doubles its rows once it is let go; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def __call__(self, rows: list[int]) -> list[int]:
        self.batches.append(rows)
        await self.go.wait()
        return [2 * row for row in rows]


def scenario(body: Callable[[Doubler], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await body(Doubler())

    asyncio.run(main())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_arrives_during_a_call_shares_the_next_one() -> None:
    async def body(run: Doubler) -> None:
        batcher = Batcher[int, list[int]](run, max_rows=10)
        first = asyncio.create_task(batcher.submit([1]))
        await settle()
        others = [asyncio.create_task(batcher.submit(rows)) for rows in ([2, 3], [4])]
        await settle()
        run.go.set()
        assert await first == [2]
        assert [await task for task in others] == [[4, 6], [8]]
        assert run.batches == [[1], [2, 3, 4]]
        assert batcher.waiting_rows == 0

    scenario(body)


def test_simultaneous_requests_share_the_first_call() -> None:
    async def body(run: Doubler) -> None:
        run.go.set()
        batcher = Batcher[int, list[int]](run, max_rows=10)
        assert list(await asyncio.gather(batcher.submit([1]), batcher.submit([2]))) == [[2], [4]]
        assert run.batches == [[1, 2]]

    scenario(body)


def test_a_call_holds_at_most_max_rows_but_never_splits_a_caller() -> None:
    async def body(run: Doubler) -> None:
        run.go.set()
        batcher = Batcher[int, list[int]](run, max_rows=3)
        await asyncio.gather(*(batcher.submit(rows) for rows in ([1, 2], [3, 4], [5], [6, 7, 8, 9])))
        assert run.batches == [[1, 2], [3, 4, 5], [6, 7, 8, 9]]

    scenario(body)


def test_concurrency_bounds_the_calls() -> None:
    async def body(run: Doubler) -> None:
        batcher = Batcher[int, list[int]](run, max_rows=1, concurrency=2)
        tasks = [asyncio.create_task(batcher.submit([row])) for row in range(4)]
        await settle()
        assert run.batches == [[0], [1]]
        run.go.set()
        assert [await task for task in tasks] == [[0], [2], [4], [6]]

    scenario(body)


def test_a_full_queue_refuses_at_once() -> None:
    async def body(run: Doubler) -> None:
        batcher = Batcher[int, list[int]](run, max_rows=1, max_waiting=2)
        running = asyncio.create_task(batcher.submit([1]))
        await settle()
        waiting = asyncio.create_task(batcher.submit([2, 3]))
        await settle()
        with pytest.raises(QueueFull, match="2 rows are waiting"):
            await batcher.submit([4])
        run.go.set()
        assert await running == [2]
        assert await waiting == [4, 6]
        assert await batcher.submit([4]) == [8]

    scenario(body)


def test_a_cancelled_caller_is_not_computed() -> None:
    async def body(run: Doubler) -> None:
        batcher = Batcher[int, list[int]](run, max_rows=10)
        running = asyncio.create_task(batcher.submit([1]))
        await settle()
        gone = asyncio.create_task(batcher.submit([2]))
        stays = asyncio.create_task(batcher.submit([3]))
        await settle()
        gone.cancel()
        await settle()
        run.go.set()
        await asyncio.gather(running, stays)
        assert run.batches == [[1], [3]]

    scenario(body)


@pytest.mark.parametrize("result", [RuntimeError("broken"), None])
def test_a_failed_call_reaches_every_caller_and_the_next_one_works(result: Any) -> None:
    async def body(_: Doubler) -> None:
        outcomes = [result, [4]]

        async def run(rows: list[int]) -> Any:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        batcher = Batcher[int, Any](run, max_rows=10)
        failed = await asyncio.gather(batcher.submit([1]), batcher.submit([1]), return_exceptions=True)
        assert all(isinstance(error, RuntimeError | TypeError) for error in failed)
        assert await batcher.submit([2]) == [4]

    scenario(body)


def test_a_cancelled_computation_fails_its_callers_and_not_the_next_ones() -> None:
    calls: list[list[int]] = []

    async def run(rows: list[int]) -> list[int]:
        calls.append(rows)
        if len(calls) == 1:
            raise asyncio.CancelledError
        return rows

    async def main() -> None:
        async with asyncio.timeout(10):
            batcher = Batcher[int, list[int]](run, max_rows=10)
            lost = await asyncio.gather(batcher.submit([1]), batcher.submit([2]), return_exceptions=True)
            assert [type(error) for error in lost] == [StageDown, StageDown]
            assert await batcher.submit([3]) == [3]

    asyncio.run(main())


def test_a_batch_runs_in_no_request_s_context() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")

    async def run(rows: list[int]) -> list[str]:
        return [request.get()] * len(rows)

    async def main() -> None:
        request.set("mine")
        assert await Batcher[int, list[str]](run, max_rows=10).submit([1]) == ["none"]

    asyncio.run(main())


def test_the_wait_is_estimated_from_what_rows_took_lately() -> None:
    async def main() -> None:
        async def compute(rows: list[int]) -> list[int]:
            await asyncio.sleep(0.1 * len(rows))
            return rows

        batcher = Batcher[int, list[int]](compute, max_rows=2, max_waiting=4)
        assert batcher.wait_s() == 0.0
        await batcher.submit([1, 2])
        waiting = [asyncio.create_task(batcher.submit([0, 0]))]
        await settle()
        waiting += [asyncio.create_task(batcher.submit([n, n])) for n in (1, 2)]
        await settle()
        assert batcher.waiting_rows == 4
        assert batcher.wait_s() == pytest.approx(0.4)
        assert not batcher.has_room(1)
        with pytest.raises(QueueFull) as caught:
            await batcher.submit([9])
        assert caught.value.retry_after_s == pytest.approx(0.4)
        await asyncio.gather(*waiting)
        assert batcher.wait_s() == 0.0

    run(main())


def test_calls_at_the_same_time_share_their_duration() -> None:
    async def main() -> None:
        async def compute(rows: list[int]) -> list[int]:
            await asyncio.sleep(0.2)
            return rows

        batcher = Batcher[int, list[int]](compute, max_rows=1, concurrency=2)
        waiting = [asyncio.create_task(batcher.submit([n])) for n in range(8)]
        await asyncio.sleep(0.45)
        assert batcher.waiting_rows == 2
        # Two rows in 0.2 s: the first of them alone when the other was done already.
        assert 0.2 <= batcher.wait_s() <= 0.4
        await asyncio.gather(*waiting)

    run(main())
