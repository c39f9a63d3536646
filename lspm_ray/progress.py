"""Progress from worker processes to the one view that the user watches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Report = Callable[[str], None]
"""Takes one line that says what is going on now. A line that starts with `!` is kept in view as a warning."""

_POLL_S = 0.5


class _Mailbox:
    """Holds the lines that workers sent and the driver has not fetched yet."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def channel(report: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """A function that can be sent to Ray workers; what they call it with arrives at `report` in this process."""
    import ray
    from ray.exceptions import RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside this process, if that is on a node: a worker's node may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    mailbox = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Mailbox).remote()
    stop = threading.Event()

    def drain() -> None:
        # Lines may be lost with a node; the work goes on.
        with suppress(RayActorError):
            for line in ray.get(mailbox.take.remote()):
                report(line)

    def poll() -> None:
        while not stop.wait(_POLL_S):
            drain()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield _Remote(mailbox)
    finally:
        stop.set()
        thread.join()
        drain()
        ray.kill(mailbox)


class _Remote:
    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, line: str) -> None:
        self._mailbox.put.remote(line)
