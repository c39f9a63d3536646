"""Which of the best points is best, and whether that can be told at all. Pure.

A score varies with the seed of the training and with the rows it is measured on. Both count: the variance of a mean
over seeds is that between seeds divided by their number, plus that of the rows, by the bootstrap. Points are compared
seed by seed and row by row, so that what makes a seed lucky or a row hard for all is no difference between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import t as student

from lspm_ray.evaluation.metrics import Estimate

_CONFIDENCE = 0.95
_RESAMPLES = 1000
_DRAWS_AT_ONCE = 2**23

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What the trainings of one point answer on some rows.

    Attributes:
        labels: [rows].
        logits: [seeds, rows, classes].
    """

    labels: NDArray[np.int64]
    logits: NDArray[np.float32]


def level(finalists: int) -> float:
    """Confidence of the comparison of two of so many points, so that all pairs together are at 95 % (Bonferroni): the
    winner is not given beforehand, it is the best of them."""
    return 1 - (1 - _CONFIDENCE) / max(1, finalists * (finalists - 1) // 2)


def interval(scores: Sequence[float], resampled: Floats | None, confidence: float = _CONFIDENCE) -> Estimate:
    """Mean of the scores of several seeds with its interval (Student's t, degrees of freedom by Welch and
    Satterthwaite).

    Args:
        scores: one per seed.
        resampled: the mean on bootstrap resamples of the rows [resamples]; None if the score is of no rows.
        confidence: level of the interval.
    """
    values = np.asarray(scores, dtype=np.float64)
    mean, n = float(values.mean()), len(values)
    between = float(values.var(ddof=1)) / n if n > 1 else 0.0
    rows = 0.0 if resampled is None else float(resampled.var(ddof=1))
    if between + rows == 0:
        return Estimate(value=mean, low=mean, high=mean)
    # The rows' share is known from many resamples: only that between seeds costs degrees of freedom.
    freedom = (between + rows) ** 2 * (n - 1) / between**2 if between else np.inf
    half = float(student.ppf((1 + confidence) / 2, freedom)) * float(np.sqrt(between + rows))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def resample(metric: str, answers: Sequence[Answers], seed: int = 0) -> list[Floats]:
    """Mean of a metric over the seeds of each point, on the same bootstrap resamples of the rows for all.

    Args:
        metric: `accuracy`, `balanced_accuracy`, `macro_f1` or `loss`.
        answers: per point, on the same rows.
        seed: of the bootstrap.

    Returns:
        Per point [resamples].
    """
    n = len(answers[0].labels)
    random = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // n)
    parts: list[list[Floats]] = [[] for _ in answers]
    for start in range(0, _RESAMPLES, step):
        counts = random.multinomial(n, np.full(n, 1 / n), size=min(step, _RESAMPLES - start)).astype(np.float64)
        for part, answer in zip(parts, answers, strict=True):
            part.append(np.mean([_score(metric, logits, answer.labels, counts) for logits in answer.logits], axis=0))
    return [np.concatenate(part) for part in parts]


def score(metric: str, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """A metric of logits [rows, classes] on these rows."""
    return float(_score(metric, logits, labels, np.ones((1, len(labels))))[0])


def _score(metric: str, logits: NDArray[np.float32], labels: NDArray[np.int64], counts: Floats) -> Floats:
    """The metric when each row comes so many times: counts [resamples, rows] -> [resamples]."""
    total = counts.sum(axis=1)
    if metric == "loss":
        nll = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
        return np.asarray(counts @ nll / total)
    guess = logits.argmax(axis=1)
    right = guess == labels
    if metric == "accuracy":
        return np.asarray(counts @ right / total)
    classes = np.unique(labels)
    truth, guessed = labels[:, None] == classes, guess[:, None] == classes
    hits, support = counts @ (truth & right[:, None]), counts @ truth
    whole = support if metric == "balanced_accuracy" else (support + counts @ guessed) / 2
    return np.asarray((hits / np.maximum(whole, 1e-12)).sum(axis=1) / (support > 0).sum(axis=1))
