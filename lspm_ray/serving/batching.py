"""Batches that form by themselves: while one runs, what arrives waits and becomes the next.

Unlike waiting a fixed time for company, this costs a lone request nothing, and the batch grows with the load.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from lspm_ray.serving.cascade import QueueFull, StageDown

T = TypeVar("T")

_WEIGHT = 0.2
"""Of the latest call in the moving average of seconds per row."""


class Rows(Protocol):
    """A result with one row per input that can be cut into pieces: list, array, `Verdicts`."""

    def __getitem__(self, rows: slice, /) -> Any:
        """The rows in the slice."""


R = TypeVar("R", bound=Rows)


@dataclass
class _Waiting(Generic[T]):
    rows: Sequence[T]
    done: "asyncio.Future[Any]"


class Batcher(Generic[T, R]):
    """Joins the rows of concurrent callers into common calls.

    Args:
        run: computes a batch; its result has one row per input.
        max_rows: rows per call. A caller with more has a call of its own.
        concurrency: calls at the same time.
        max_waiting: rows waiting for a call; None for no limit.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[R]],
        max_rows: int,
        concurrency: int = 1,
        max_waiting: int | None = None,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting[T]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self.waiting_rows = 0
        self._row_s = 0.0

    def has_room(self, rows: int) -> bool:
        """Whether this many more rows may wait; one caller may always."""
        return self._max_waiting is None or not self._queue or self.waiting_rows + rows <= self._max_waiting

    def wait_s(self) -> float:
        """Seconds that what is waiting will take, by what rows took lately; 0 before the first call has ended."""
        return self.waiting_rows * self._row_s

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is computed."""
        return not self._queue and not self._running

    async def submit(self, rows: Sequence[T]) -> R:
        """The result for `rows`, computed together with others'.

        Raises:
            QueueFull: `max_waiting` rows are waiting already.
            StageDown: the batch was cancelled.
            Exception: what `run` raised for the batch.
        """
        if not self.has_room(len(rows)):
            raise QueueFull(f"{self.waiting_rows} rows are waiting", retry_after_s=self.wait_s())
        waiting = _Waiting(rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self.waiting_rows += len(rows)
        self._start()
        result: R = await waiting.done
        return result

    def _start(self) -> None:
        while self._queue and len(self._running) < self._concurrency:
            # A context of its own: Ray Serve cancels what runs in the context of a request whose client has gone, and a
            # batch belongs to many requests.
            task = asyncio.get_running_loop().create_task(self._work(), context=contextvars.Context())
            self._running.add(task)

    async def _work(self) -> None:
        try:
            # One turn of the loop: requests that are being read at this moment come along.
            await asyncio.sleep(0)
            while batch := self._take():
                await self._compute(batch)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._running.discard(task)

    def _take(self) -> list[_Waiting[T]]:
        batch: list[_Waiting[T]] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].rows) <= self._max_rows):
            waiting = self._queue.popleft()
            self.waiting_rows -= len(waiting.rows)
            if not waiting.done.cancelled():
                batch.append(waiting)
                size += len(waiting.rows)
        return batch

    async def _compute(self, batch: list[_Waiting[T]]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            result = await self._run([row for waiting in batch for row in waiting.rows])
            self._observe(clock() - began, sum(len(waiting.rows) for waiting in batch))
            start = 0
            for waiting in batch:
                end = start + len(waiting.rows)
                if not waiting.done.done():
                    waiting.done.set_result(result[start:end])
                start = end
        except asyncio.CancelledError:
            _fail(batch, StageDown("the computation was cancelled"))
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
        except Exception as error:
            _fail(batch, error)

    def _observe(self, seconds: float, rows: int) -> None:
        # Calls that run at the same time share their duration.
        row_s = seconds / max(1, rows) / max(1, len(self._running))
        self._row_s = row_s if self._row_s == 0 else (1 - _WEIGHT) * self._row_s + _WEIGHT * row_s


def _fail(batch: Sequence[_Waiting[T]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.set_exception(error)
