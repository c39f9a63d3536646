"""Early warnings: do scores and inputs still look like those of the calibration rows? They never revoke anything.

Scores are compared by the population stability index over the deciles of the calibration rows. Inputs are compared by
the maximum mean discrepancy (Gretton et al. 2012) of a Gaussian kernel, in its random features (Rahimi and Recht 2007),
between embeddings that cost almost nothing: the mean of a fixed random vector per token id. Both need only sums, so
windows of several routers are added up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial.distance import pdist
from scipy.stats import chi2

from lspm_ray.config import Config
from lspm_ray.tasks import Encoded

Floats = NDArray[np.float64]

LEAST_ROWS = 128
"""Rows of a window below which nothing is said."""
_BINS, _DIMENSIONS, _FEATURES = 10, 32, 128
_PSI_LIMIT = 0.2
"""What practice calls a shift that matters; smaller ones are reported, not warned about."""
_CHANCE = 0.001
_DRAWS = 400


class Window(Config):
    """Sums over the answers of some time.

    Attributes:
        scores: answers per bin of the reference.
        rows: inputs that were embedded.
        features: sum of their random features.
    """

    scores: tuple[int, ...] = ()
    rows: int = 0
    features: tuple[float, ...] = ()


class Reference(Config):
    """What the calibration rows look like.

    Attributes:
        edges: between the bins of the scores, ascending.
        shares: of the calibration rows in each bin.
        rows: how many calibration rows there are.
        bandwidth: of the kernel: the median distance between embeddings.
        features: mean of their random features.
        mmd_limit: ratio of squared discrepancy to its mean under no drift that chance exceeds once in 1,000 windows.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    rows: int
    bandwidth: float = Field(gt=0)
    features: tuple[float, ...]
    mmd_limit: float

    def bins(self, scores: NDArray[np.floating]) -> NDArray[np.int64]:
        """The bin of each score, int [rows]; a score that is not a number belongs to the last one."""
        return np.asarray(np.searchsorted(self.edges, scores, side="left"), dtype=np.int64)

    def embed(self, inputs: Sequence[Encoded]) -> Floats:
        """Random features of token ids, [rows, features]; each row has length 1."""
        return _features(embeddings(inputs), self.bandwidth)


class Drift(Config):
    """What a window looks like beside the reference.

    Attributes:
        scores: answers whose scores were compared.
        psi: population stability index of the scores; None when there are too few.
        rows: inputs that were compared.
        mmd: squared maximum mean discrepancy, as a multiple of its mean under no drift; None when there are too few.
        warnings: sentences.
    """

    scores: int
    psi: float | None
    rows: int
    mmd: float | None
    warnings: tuple[str, ...] = ()


def reference(scores: Floats, inputs: Sequence[Encoded]) -> Reference:
    """The reference of the calibration rows.

    Args:
        scores: of the validator, float [rows].
        inputs: token ids of the same rows.
    """
    edges = np.unique(np.quantile(scores, np.arange(1, _BINS) / _BINS, method="inverted_cdf"))
    counts = np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)
    embedded = embeddings(inputs)
    distances = pdist(embedded[:500])
    bandwidth = float(np.median(distances)) if len(distances) and np.median(distances) > 0 else 1.0
    features = _features(embedded, bandwidth)
    return Reference(
        edges=tuple(edges.tolist()),
        shares=tuple((counts / len(scores)).tolist()),
        rows=len(scores),
        bandwidth=bandwidth,
        features=tuple(features.mean(axis=0).tolist()),
        mmd_limit=_limit(features),
    )


def embeddings(inputs: Sequence[Encoded]) -> Floats:
    """Mean of a fixed random vector per token id, times the root of the length so that short texts do not dominate."""
    table = _token_vectors(max((int(ids.max()) for ids in inputs if len(ids)), default=0) // 4096 + 1)
    rows = [table[ids].sum(axis=0) / np.sqrt(max(1, len(ids))) for ids in map(np.asarray, inputs)]
    return np.stack(rows)


def pooled(windows: Iterable[Window]) -> Window:
    """The sums of several windows."""
    found = list(windows)
    scores = [np.array(window.scores) for window in found if window.scores]
    features = [np.array(window.features) for window in found if window.features]
    return Window(
        scores=tuple(np.sum(scores, axis=0).tolist()) if scores else (),
        rows=sum(window.rows for window in found),
        features=tuple(np.sum(features, axis=0).tolist()) if features else (),
    )


def psi(counts: NDArray[np.int64], shares: Floats) -> float:
    """Population stability index: sum of (p - q) log(p / q) over the bins, with half an answer added to each.

    Args:
        counts: int [bins], of the window.
        shares: float [bins], of the reference.
    """
    p = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    q = np.maximum(shares, 1e-4)
    return float(((p - q) * np.log(p / q)).sum())


def compare(window: Window, against: Reference) -> Drift:
    """How a window differs from the calibration rows."""
    warnings = []
    counts = np.array(window.scores, dtype=np.int64)
    scores, found_psi, found_mmd = int(counts.sum()), None, None
    if scores >= LEAST_ROWS:
        found_psi = psi(counts, np.array(against.shares))
        chance = float(chi2.ppf(1 - _CHANCE, max(1, len(counts) - 1))) * (1 / scores + 1 / against.rows)
        if found_psi > max(_PSI_LIMIT, chance):
            warnings.append(f"scores differ from the calibration rows': PSI {found_psi:.2f} (above {_PSI_LIMIT})")
    if window.rows >= LEAST_ROWS:
        mean, live = np.array(against.features), np.array(window.features) / window.rows
        found_mmd = _ratio(live, mean, window.rows, against.rows)
        if found_mmd > against.mmd_limit:
            warnings.append(
                f"inputs differ from the calibration rows: discrepancy {found_mmd:.1f} times that of no drift "
                f"(above {against.mmd_limit:.1f})"
            )
    return Drift(scores=scores, psi=found_psi, rows=window.rows, mmd=found_mmd, warnings=tuple(warnings))


@functools.lru_cache(maxsize=4)
def _token_vectors(chunks: int) -> Floats:
    """Standard normal vectors [4096 * chunks, dimensions]; a chunk does not depend on how many there are."""
    drawn = [np.random.default_rng([7, chunk]).standard_normal((4096, _DIMENSIONS)) for chunk in range(chunks)]
    return np.concatenate(drawn)


def _features(embedded: Floats, bandwidth: float) -> Floats:
    directions = np.random.default_rng(11).standard_normal((_DIMENSIONS, _FEATURES // 2)) / bandwidth
    angles = embedded @ directions
    features: Floats = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(_FEATURES // 2)
    return features


def _ratio(live: Floats, mean: Floats, rows: int, reference_rows: int) -> float:
    expected = (1 / rows + 1 / reference_rows) * max(1 - float(mean @ mean), 1e-12)
    return float(((live - mean) ** 2).sum()) / expected


def _limit(features: Floats) -> float:
    """The ratio that windows of two halves of the calibration rows themselves stay below, 999 times in 1,000.

    The ratio is a weighted sum of squared normals; a gamma distribution with the same first two moments gives its tail.
    """
    rng, n = np.random.default_rng(13), len(features)
    size = max(1, n // 2)
    found = []
    for _ in range(_DRAWS):
        order = rng.permutation(n)
        live, rest = features[order[:size]].mean(axis=0), features[order[size:]].mean(axis=0)
        found.append(_ratio(live, rest, size, max(1, n - size)))
    mean, variance = float(np.mean(found)), max(float(np.var(found)), 1e-6)
    return float(chi2.ppf(1 - _CHANCE, 2 * mean**2 / variance) * variance / (2 * mean))
