"""What the user sees: one line per stage, the running one updated in place; plain lines where there is no terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.status import Status

_PLAIN_EVERY_S = 10.0
_PLAIN_WIDTH = 140
"""Characters a table may take in a file or pipe, where nobody says how wide it is."""


class StageView:
    """Shows the progress of stages.

    Args:
        console: where to print; status lines go to stderr, so that stdout stays for results.
        quiet: no progress at all, only warnings.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or _terminal()
        self._quiet = quiet
        self._status: Status | None = None
        self._last_plain = 0.0

    def __call__(self, line: str) -> None:
        """Show what is going on now (a `Report`)."""
        if line.startswith("!"):
            self.console.print(f"[yellow]warning:[/] {line[1:].strip()}", soft_wrap=True)
        elif self._quiet:
            return
        elif self._status is not None and self.console.is_terminal:
            self._status.update(_escape(line))
        elif time.monotonic() - self._last_plain > _PLAIN_EVERY_S or " done" in line:
            self._last_plain = time.monotonic()
            self.console.print(f"  {_escape(line)}", soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a stage from start to end; call the yielded function with its result in a few words."""
        started, result = time.monotonic(), [""]

        def finish(text: str) -> None:
            result[0] = text

        if self._quiet:
            yield finish
            return
        self._last_plain = 0.0
        with Status(name, console=self.console) as status:
            self._status = status if self.console.is_terminal else None
            try:
                yield finish
            except BaseException:
                self.console.print(f"[red]✗[/] {name:<9} failed after {_seconds(started)}")
                raise
            finally:
                self._status = None
        self.console.print(f"[green]✓[/] {name:<9} {_seconds(started):>8}  {_escape(result[0])}", soft_wrap=True)


def _terminal() -> Console:
    """Standard error as it is now: while a cluster is connected, Ray's own output is led away from it to a log."""
    return Console(file=os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace"), highlight=False)


def table(columns: list[str], rows: list[list[Any]], console: Console | None = None) -> None:
    """Print a table of results to stdout."""
    from rich.table import Table

    view = Table()
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*(_escape(str(cell)) for cell in row))
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    console.print(view)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _seconds(started: float) -> str:
    seconds = time.monotonic() - started
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
