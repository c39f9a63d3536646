"""Ranges of activations on training rows, for scales that are fixed ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact
from lspm_ray.compression.graph import Graph, session_of
from lspm_ray.compression.int8 import watched_by
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import class_counts, split_files
from lspm_ray.errors import ConfigError
from lspm_ray.tasks import Encoded
from lspm_ray.training.trainer import file_chunks

Calibration = Literal["minmax", "entropy", "percentile"]

_BINS = 2048
_LEVELS = 128
_STEP = 16

Limits = tuple[float, float]
Tensors = list[NDArray[np.float32]]


def check_rows(data: Artifact, count: int, field: str) -> None:
    """Refuse to ask for more training rows than there are.

    Args:
        data: the prepared corpus.
        count: rows wanted.
        field: the setting, for the message.

    Raises:
        ConfigError: says how many there are.
    """
    have = sum(class_counts(data, "train"))
    if count > have:
        raise ConfigError(f"the training split has {have} rows", field=field, value=count, valid=[f"at most {have}"])


def training_rows(data: Artifact, count: int) -> list[Encoded]:
    """Token ids of the first `count` rows of the training split; the rows on disk are in random order."""
    # This process holds CPUs of the cluster: tasks that it waited for might never get any.
    files = split_files(data, "train", run_serially)
    table = next(file_chunks(files, ["input_ids"], count))
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]


def collect_ranges(
    graph: Graph, rows: Sequence[Encoded], calibration: Calibration, percentile: float, threads: int
) -> dict[str, Limits]:
    """The range of every tensor that enters a matrix product, each row in a run of its own.

    A row's activations are reduced to two numbers and, for `entropy` and `percentile`, in a second pass to a histogram,
    so memory does not grow with the rows. Neither pass depends on the order of the rows or the number of threads.

    Args:
        graph: in float.
        rows: token ids.
        calibration: `minmax` takes the whole range. `percentile` leaves out the outermost values. `entropy` cuts at
            the absolute value that loses least information (Migacz 2017, "8-bit inference with TensorRT").
        percentile: percentage of a tensor's values that stay, the rest being cut half at either end.
        threads: rows at the same time.

    Returns:
        Tensor name -> (least, greatest value).
    """
    names = watched_by(graph)
    session = session_of(graph.watched(names))
    ends = functools.reduce(_wider, _per_row(session, names, rows, threads, _ends))
    limits = [(float(low), float(high)) for low, high in ends]
    if calibration != "minmax":
        counted = _per_row(session, names, rows, threads, lambda tensors: _histograms(tensors, limits))
        histograms = functools.reduce(np.add, counted)
        pairs = zip(histograms, limits, strict=True)
        if calibration == "entropy":
            limits = [by_entropy(histogram, ends) for histogram, ends in pairs]
        else:
            limits = [by_percentile(histogram, ends, percentile) for histogram, ends in pairs]
    return dict(zip(names, limits, strict=True))


def by_percentile(histogram: NDArray[np.int64], ends: Limits, percentile: float) -> Limits:
    """The part of a range that holds `percentile` per cent of the values, about as many being cut at either end.

    Args:
        histogram: counts in bins of equal width between `ends`.
        ends: least and greatest value.
        percentile: in (0, 100].
    """
    cut = histogram.sum() * (100 - percentile) / 200
    left = int(np.searchsorted(histogram.cumsum(), cut, side="right"))
    right = int(np.searchsorted(histogram[::-1].cumsum(), cut, side="right"))
    edges = np.linspace(*ends, len(histogram) + 1)
    return float(edges[left]), float(edges[len(histogram) - right])


def by_entropy(histogram: NDArray[np.int64], ends: Limits) -> Limits:
    """The range, cut at the absolute value at which 128 levels describe the values best (least divergence).

    Args:
        histogram: counts in bins of equal width between `ends`.
        ends: least and greatest value.
    """
    edges = np.linspace(*ends, len(histogram) + 1)
    middles = np.abs((edges[:-1] + edges[1:]) / 2)
    widest = max(abs(ends[0]), abs(ends[1]))
    if widest == 0:
        return ends
    counts = np.histogram(middles, _BINS, (0, widest), weights=histogram)[0]
    candidates = range(_LEVELS, _BINS + 1, _STEP)
    best = min(candidates, key=lambda bins: _information_lost(counts, bins))
    limit = widest * best / _BINS
    return max(ends[0], -limit), min(ends[1], limit)


def _information_lost(counts: NDArray[np.float64], bins: int) -> float:
    """Kullback-Leibler divergence of the first `bins` bins, the rest added to the last, from their 128 levels."""
    truth = counts[:bins].copy()
    kept = truth > 0
    level = np.arange(bins) * _LEVELS // bins
    mass = np.bincount(level, truth, _LEVELS)
    filled = np.bincount(level, kept, _LEVELS)
    model = np.where(kept, (mass / np.maximum(filled, 1))[level], 0)
    truth[-1] += counts[bins:].sum()
    shown = truth > 0
    if not model[shown].all():
        return np.inf
    truth, model = truth / truth.sum(), model / model.sum()
    return float((truth[shown] * np.log(truth[shown] / model[shown])).sum())


def _per_row(
    session: Any, names: list[str], rows: Sequence[Encoded], threads: int, reduce: Callable[[Tensors], NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    def run(row: Encoded) -> NDArray[Any]:
        ids = np.asarray(row, dtype=np.int64)[None]
        return reduce(session.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids)}))

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(run, rows)


def _ends(tensors: Tensors) -> NDArray[np.float64]:
    return np.array([(tensor.min(), tensor.max()) for tensor in tensors], dtype=np.float64)


def _wider(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.minimum(left, right)[:, 0], np.maximum(left, right)[:, 1]], axis=1)


def _histograms(tensors: Tensors, limits: Sequence[Limits]) -> NDArray[np.int64]:
    pairs = zip(tensors, limits, strict=True)
    return np.stack([np.histogram(tensor, _BINS, ends)[0] for tensor, ends in pairs]).astype(np.int64)
