"""How much may be sent to a later model: a token bucket, room in its queue, and time before a deadline. Pure."""

import math
import time
from collections.abc import Callable
from typing import Protocol

from lspm_ray.serving.cascade import QueueFull

Clock = Callable[[], float]
"""Seconds since any fixed moment."""


class Budget:
    """A token bucket: one token per row, `rate` tokens flow in per second until there are `burst`.

    Over any t seconds at most `burst + rate * t` rows pass. The number of tokens is never negative.

    Args:
        rate: tokens per second, above 0.
        burst: tokens that a quiet time leaves, at least 1; more rows than this never pass together.
        clock: what counts as time.
    """

    def __init__(self, rate: float, burst: int, clock: Clock = time.monotonic) -> None:
        if not (0 < rate < math.inf and burst >= 1):
            raise ValueError(f"rate must be a number above 0 and burst at least 1, not {rate} and {burst}")
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._tokens = float(burst)
        self._seen = clock()

    @property
    def tokens(self) -> float:
        """What is there now."""
        now = self._clock()
        # A clock that was set back takes nothing away.
        self._tokens = min(float(self.burst), self._tokens + self.rate * max(0.0, now - self._seen))
        self._seen = now
        return self._tokens

    def take(self, rows: int) -> bool:
        """Take a token for each row, or none at all and say False."""
        if self.tokens < rows:
            return False
        self._tokens -= rows
        return True

    def give_back(self, rows: int) -> None:
        """Return tokens of rows that were not sent after all."""
        self._tokens = min(float(self.burst), self.tokens + rows)

    def wait_s(self, rows: int) -> float:
        """Seconds until there are tokens for this many rows, if nobody else takes any."""
        return max(0.0, min(rows, self.burst) - self.tokens) / self.rate


class Queue(Protocol):
    """The part of a `Batcher` that matters here."""

    waiting_rows: int

    def has_room(self, rows: int) -> bool:
        """Whether this many more rows may wait."""

    def wait_s(self) -> float:
        """Seconds that what is waiting will take, estimated."""


class Gate:
    """What rows have to pass on their way to the last model, or to one in the middle.

    Args:
        queue: of that model.
        budget: None for no limit.
        clock: of deadlines.
        name: of that model, for messages.
    """

    def __init__(self, queue: Queue, budget: Budget | None, clock: Clock, name: str = "the last model") -> None:
        self._queue, self._budget, self._clock, self._name = queue, budget, clock, name

    def enter(self, rows: int, deadline: float | None = None) -> None:
        """Let rows through, which costs them their tokens.

        Args:
            rows: how many.
            deadline: on the clock; None if the answer may come late.

        Raises:
            QueueFull: the queue is full, the budget is used up, or what is waiting takes until after the deadline.
        """
        wait_s = self._queue.wait_s()
        if not self._queue.has_room(rows):
            raise QueueFull(f"{self._queue.waiting_rows} rows are waiting for {self._name}", retry_after_s=wait_s)
        check_deadline(wait_s, self._queue.waiting_rows, deadline, self._clock)
        if self._budget is not None and not self._budget.take(rows):
            raise QueueFull(
                f"{rows} more would exceed the {self._budget.rate:.3g} rows per second that the last model may be sent",
                retry_after_s=self._budget.wait_s(rows),
                cause="budget",
            )

    def give_back(self, rows: int) -> None:
        """These rows were not sent after all."""
        if self._budget is not None:
            self._budget.give_back(rows)


def check_deadline(wait_s: float, waiting_rows: int, deadline: float | None, clock: Clock) -> None:
    """Refuse what cannot be answered in time.

    Args:
        wait_s: seconds that what is waiting will take.
        waiting_rows: how much that is.
        deadline: on the clock; None for none.
        clock: what counts as time.

    Raises:
        QueueFull: the deadline lies within the waiting time.
    """
    if deadline is not None and wait_s > (left_s := deadline - clock()):
        raise QueueFull(
            f"{waiting_rows} rows are waiting, which takes about {1e3 * wait_s:.0f} ms; "
            f"{1e3 * max(0.0, left_s):.0f} ms are left of deadline_ms",
            retry_after_s=wait_s,
            cause="deadline",
        )
