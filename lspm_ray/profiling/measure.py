"""Measure speed and memory of one predictor, in the process it was loaded in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lspm_ray.artifact import Artifact, hardware, open_artifact
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.inference.predictor import Predictor, Runtime, load_predictor
from lspm_ray.models.directory import read_variant
from lspm_ray.profiling.table import Company
from lspm_ray.tasks import Encoded

_WARM_UP_ROWS = 4
_COMPANY_ROWS = 128


@dataclass(frozen=True)
class Candidate:
    """Something to measure.

    Attributes:
        load: makes it, in the process that measures it.
        size_mb: of the files it needs.
    """

    load: Callable[[], Predictor]
    size_mb: float

    @classmethod
    def of(cls, model: Artifact, threads: int, gpu: bool) -> Candidate:
        """A model artifact, as a replica with so many CPU threads, or a GPU, would load it."""
        directory = model.local()
        return cls(partial(_load, model.uri, threads, gpu), size_mb(directory, read_variant(directory).runtime))


def _load(uri: str, threads: int, gpu: bool) -> Predictor:
    return load_predictor(open_artifact(uri).local(), threads, gpu)


class Bench:
    """One loaded model and the clock. Runs as a Ray actor: one process per variant, as a served replica is.

    Args:
        load: makes the model.
        examples: token ids to measure with, a random sample of real rows.
        cell_s: time spent on one measurement.
    """

    def __init__(self, load: Callable[[], Predictor], examples: Sequence[Encoded], cell_s: float) -> None:
        started = time.perf_counter()
        self._predictor = load()
        self._predictor.predict(examples[:1])
        self.load_s = time.perf_counter() - started
        self._examples = list(examples)
        self._cell_s = cell_s
        self._next = 0
        self._predictor.predict(self._examples[:_WARM_UP_ROWS])

    def hardware(self) -> dict[str, Any]:
        """Of the node this runs on."""
        return hardware()

    def load_time(self) -> float:
        """Seconds from files to the first answer."""
        return self.load_s

    def latencies(self) -> list[float]:
        """Milliseconds of single examples, for about `cell_s` seconds and at least twice."""
        found: list[float] = []
        start = time.perf_counter()
        while len(found) < 2 or time.perf_counter() - start < self._cell_s:
            example = self._take(1)
            before = time.perf_counter()
            self._predictor.predict(example)
            found.append(1e3 * (time.perf_counter() - before))
        return found

    def rows_per_s(self, batch_size: int) -> float:
        """Examples per second in batches of `batch_size`, for about `cell_s` seconds and at least one batch."""
        done, start = 0, time.perf_counter()
        while not done or time.perf_counter() - start < self._cell_s:
            self._predictor.predict(self._take(batch_size))
            done += batch_size
        return done / (time.perf_counter() - start)

    def company(self, batch_size: int) -> Company | None:
        """Rows alone against the same rows in batches of `batch_size`; None where the predictor never joins rows."""
        if not self._predictor.joins_rows:
            return None
        rows = self._examples[:_COMPANY_ROWS]
        alone = softmax(np.concatenate([self._predictor.predict([row]) for row in rows]))
        order = np.random.default_rng(0).permutation(len(rows))
        joined = np.empty_like(alone)
        for start in range(0, len(rows), batch_size):
            part = order[start : start + batch_size]
            joined[part] = softmax(self._predictor.predict([rows[row] for row in part]))
        return Company(
            rows=len(rows),
            changed=int((alone.argmax(axis=1) != joined.argmax(axis=1)).sum()),
            largest=float(np.abs(alone - joined).max()),
        )

    def peak_memory_mb(self) -> float:
        """Largest resident size of this process so far."""
        return peak_memory_mb()

    def _take(self, count: int) -> list[Encoded]:
        rows = [self._examples[(self._next + i) % len(self._examples)] for i in range(count)]
        self._next = (self._next + count) % len(self._examples)
        return rows


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


def size_mb(directory: Path, runtime: str) -> float:
    """Size of the files that `runtime` needs, in MB (10^6 bytes)."""
    weights = Runtime.find(runtime).weights
    files = [f for f in directory.iterdir() if f.suffix == weights]
    return sum(f.stat().st_size for f in files) / 1e6


def summarize(rounds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Median over rounds of each round's median, and the 99th percentile of all, in the unit given."""
    medians = [float(np.median(r)) for r in rounds]
    return float(np.median(medians)), float(np.percentile(np.concatenate([np.asarray(r) for r in rounds]), 99))
