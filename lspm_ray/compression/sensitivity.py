"""How much a model's answers change when one part of it is quantised, and which parts had better stay float."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.compression.graph import Graph, Replace, logits_of
from lspm_ray.config import Config
from lspm_ray.progress import Report
from lspm_ray.tasks import Encoded

SENSITIVITY_FILE = "sensitivity.json"


class PartSensitivity(Config):
    """One part, quantised alone.

    Attributes:
        part: `embedding`, `layer.N.attention`, `layer.N.ffn`, `recurrent` or `classifier`.
        weights: numbers in its matrices.
        divergence: of the answers from those of the float model, in nats: the mean over rows of KL(float || quantised).
        squared_error: of the logits, mean over rows and labels.
        kept: whether it stayed float.
    """

    part: str
    weights: int
    divergence: float
    squared_error: float
    kept: bool


class Sensitivity(Config):
    """What `sensitivity.json` holds.

    Attributes:
        rows: training rows that it was measured on.
        max_divergence: what was allowed.
        all_quantized: divergence with every part quantised.
        divergence: of the model as it was written.
        parts: most sensitive first.
    """

    rows: int
    max_divergence: float
    all_quantized: float
    divergence: float
    parts: list[PartSensitivity] = Field(min_length=1)


def read_sensitivity(directory: Path) -> Sensitivity | None:
    """The table of a model directory; None if none was made."""
    file = directory / SENSITIVITY_FILE
    return Sensitivity.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def write_sensitivity(directory: Path, table: Sensitivity) -> None:
    """Write `sensitivity.json`."""
    (directory / SENSITIVITY_FILE).write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")


def measure_sensitivity(
    graph: Graph,
    rule: Callable[[], Replace],
    rows: list[Encoded],
    max_divergence: float,
    threads: int,
    report: Report,
) -> Sensitivity:
    """Quantise every part alone, then find how many of the most sensitive must stay float; all, if it must be.

    The number is found by bisection: for MiniLM-L6, 14 parts and at most 5 combinations of them.

    Args:
        graph: in float.
        rule: makes what quantises its nodes.
        rows: token ids, not those of calibration.
        max_divergence: see `Sensitivity`.
        threads: rows computed at the same time.
        report: progress.
    """
    sizes = graph.parts(rule())
    truth = logits_of(graph.rebuilt(lambda _: None), rows, threads)

    def changed(parts: Collection[str]) -> tuple[float, float]:
        logits = logits_of(graph.rebuilt(rule(), parts), rows, threads)
        return divergence(truth, logits), float(np.square(logits - truth).mean())

    alone = {}
    for part in sizes:
        alone[part] = changed([part])
        report(f"{part} quantised alone: divergence {alone[part][0]:.2g}")
    order = sorted(alone, key=lambda part: -alone[part][0])
    found = {0: changed(order)[0], len(order): 0.0}

    def fits(kept: int) -> bool:
        if kept not in found:
            found[kept] = changed(order[kept:])[0]
        return found[kept] <= max_divergence

    count = _least(len(order), fits)
    report(f"{count} of {len(order)} parts stay float: divergence {found[count]:.2g}, {found[0]:.2g} with none")
    parts = [
        PartSensitivity(
            part=part,
            weights=sizes[part],
            divergence=alone[part][0],
            squared_error=alone[part][1],
            kept=number < count,
        )
        for number, part in enumerate(order)
    ]
    return Sensitivity(
        rows=len(rows),
        max_divergence=max_divergence,
        all_quantized=found[0],
        divergence=found[count],
        parts=parts,
    )


def divergence(truth: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Mean over rows of KL(truth || logits) in nats, both [rows, labels]."""
    left, right = (_log_softmax(values.astype(np.float64)) for values in (truth, logits))
    return float((np.exp(left) * (left - right)).sum(axis=1).mean())


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _least(end: int, fits: Callable[[int], bool]) -> int:
    """The least number in [0, end) that fits, or `end`; what is greater than one that fits is taken to fit too."""
    low, high = 0, end
    if fits(0):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
