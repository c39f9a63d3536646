"""What could not be used is put aside, with its place and the reason."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lspm_ray.corpus.lines import lines
from lspm_ray.corpus.read import Rejected
from lspm_ray.corpus.sources import SourceFile
from lspm_ray.corpus.staging import Staging


class Quarantine(AbstractContextManager["Quarantine"]):
    """Writes the rejects of one piece of work as they come; no file without any.

    Args:
        staging: where they are kept until the stage is done.
        number: of the piece of work.
    """

    def __init__(self, staging: Staging, number: int) -> None:
        self.reasons: Counter[str] = Counter()
        self._staging = staging
        self._number = number
        self._sink: Any = None

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()

    def add(self, file: SourceFile, reject: Rejected) -> None:
        """Count a reject and write it down."""
        self.reasons[reject.reason] += 1 if reject.rows is None else reject.rows
        self.write(file, reject)

    def write(self, file: SourceFile, reject: Rejected) -> None:
        """Write a reject down that is counted elsewhere."""
        if self._sink is None:
            self._sink = self._staging.open_output(_name(self._number))
        line = json.dumps({"file": file.name, **asdict(reject)}, ensure_ascii=True)
        self._sink.write(line.encode() + b"\n")


def collect(staging: Staging, groups: Iterable[Iterable[int]], target: Path) -> None:
    """Write the rejects of all pieces of work into one file of JSON Lines; no file without any.

    Args:
        staging: where they were written.
        groups: numbers of pieces; those of one group are parts of one file and merged by position in it.
        target: the file.
    """
    sink: Any = None
    with ExitStack() as opened:
        for numbers in groups:
            found = [number for number in numbers if staging.exists(_name(number))]
            for _, line in heapq.merge(*(_rejects(staging, number) for number in found), key=lambda line: line[0]):
                sink = sink or opened.enter_context(target.open("wb"))
                sink.write(line)


def _rejects(staging: Staging, number: int) -> Iterator[tuple[int, bytes]]:
    with staging.open_input(_name(number)) as source:
        for line in lines(source):
            yield json.loads(line.content)["position"], line.content


def _name(number: int) -> str:
    return f"quarantine/{number:06d}.jsonl"
