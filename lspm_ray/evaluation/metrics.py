"""How good predictions are: every number with an interval, and whether two models differ at all.

Macro averages run over the classes that occur in the labels, whatever the model predicts, so that every model measured
on the same rows is averaged over the same classes. Macro recall and balanced accuracy are then one and the same number.
A class that occurs but is never predicted has precision 0 (scikit-learn's `zero_division=0`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri

from lspm_ray.config import Config
from lspm_ray.errors import DataError
from lspm_ray.evaluation.calibration import Floats, Ints, check_rows, log_softmax

CALIBRATION_BINS = 15
_DRAWS_AT_ONCE = 2**22


class Estimate(Config):
    """A measured value and its confidence interval: low <= value <= high."""

    value: float
    low: float
    high: float


class ClassRecall(Config):
    """Recall of one class with a Wilson interval; None when the class does not occur in the labels."""

    label: str
    support: int
    recall: Estimate | None


class Metrics(Config):
    """Quality of one model on `n` labelled rows; all intervals at level `confidence`."""

    n: int
    confidence: float
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    macro_precision: Estimate
    macro_recall: Estimate
    log_loss: Estimate
    calibration_error: Estimate
    classes: tuple[ClassRecall, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows: true class. Columns: predicted class."""

    @property
    def absent(self) -> list[str]:
        """Classes that do not occur in the labels, on which these numbers say nothing."""
        return [entry.label for entry in self.classes if entry.support == 0]


class Bin(Config):
    """Rows of similar confidence: their mean confidence, the share of them that is right, and how many there are."""

    confidence: float
    accuracy: float
    count: int


class Comparison(Config):
    """Whether the accuracies of two models on the same `n` rows differ by more than chance."""

    n: int
    difference: Estimate
    p_value: float
    distinguishable: bool

    def sentence(self, first: str, second: str) -> str:
        """The finding in plain English, e.g. for `first="the full model"`."""
        value, low, high = (100 * x for x in (self.difference.value, self.difference.low, self.difference.high))
        numbers = f"{value:+.2f} points, interval {low:+.2f} to {high:+.2f}, p = {self.p_value:.2g}, n = {self.n:,}"
        if not self.distinguishable:
            return f"{first} is not distinguishable from {second} (accuracy {numbers})"
        return f"{first} is {'better' if value > 0 else 'worse'} than {second} (accuracy {numbers})"


def evaluate(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    label_names: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Measure predictions (the class of the largest logit, the first of equals) against labels.

    Intervals. Accuracy and recalls: Wilson's (1927). Macro averages: see `_macro_averages`. Calibration error: see
    `_calibration_error`. Log-loss: percentile bootstrap (Efron 1979). The last two are too narrow where hardly any row
    is wrong, as the rare and costly errors that would matter are then not in the sample.

    Args:
        logits: float [n, k].
        labels: int [n], class indices.
        label_names: k names, in the order of the logits.
        confidence: level of every interval.
        resamples: bootstrap resamples.
        seed: of the bootstrap; the same input and seed give the same numbers.

    Raises:
        DataError: see `check_rows`; also when `label_names` does not hold k names.
    """
    values, targets = check_rows(logits, labels)
    if len(label_names) != values.shape[1]:
        raise DataError(f"{values.shape[1]} classes need as many names", field="label_names", value=list(label_names))
    generator = np.random.default_rng(seed)
    confusion = confusion_matrix(targets, values.argmax(axis=1), values.shape[1])
    log_loss, calibration_error = _probability_metrics(values, targets, confidence, resamples, generator)
    recall, precision, f1 = _macro_averages(confusion, confidence, resamples, generator)
    right, support = confusion.diagonal(), confusion.sum(axis=1)
    return Metrics(
        n=len(targets),
        confidence=confidence,
        accuracy=proportion(int(right.sum()), len(targets), confidence),
        balanced_accuracy=recall,
        macro_f1=f1,
        macro_precision=precision,
        macro_recall=recall,
        log_loss=log_loss,
        calibration_error=calibration_error,
        classes=tuple(
            ClassRecall(label=name, support=int(n), recall=proportion(int(k), int(n), confidence) if n else None)
            for name, k, n in zip(label_names, right, support, strict=True)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def proportion(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """A share of independent trials (at least one) with the score interval of Wilson (1927)."""
    value, low, high = _rates(np.array([successes]), np.array([trials]), confidence)
    return _estimate(value[0], low[0], high[0])


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts, int64 [classes, classes]; rows: true class, columns: predicted class."""
    counts: Ints = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    return counts


def reliability_bins(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], bins: int = CALIBRATION_BINS
) -> list[Bin]:
    """Confidence against accuracy, by ascending confidence, over at most `bins` bins of equal mass, none empty.

    Rows of equal confidence share a bin, so ties make for fewer bins and the order of the rows does not matter.
    The expected calibration error of `evaluate` is the count-weighted mean of |confidence - accuracy| over these bins.

    Args:
        probabilities: float [n, k], rows summing to one.
        labels: int [n], class indices.
        bins: most bins to make.

    Raises:
        DataError: see `check_rows`.
    """
    values, targets = check_rows(probabilities, labels)
    confidence, right = values.max(axis=1), values.argmax(axis=1) == targets
    index = _bin_index(confidence, bins)
    counts = np.bincount(index)
    confidences, accuracies = np.bincount(index, confidence) / counts, np.bincount(index, right) / counts
    return [
        Bin(confidence=float(c), accuracy=float(a), count=int(n))
        for c, a, n in zip(confidences, accuracies, counts, strict=True)
    ]


def paired_difference(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_], confidence: float = 0.95) -> Estimate:
    """Accuracy of a minus accuracy of b on the same rows, bool [n] each.

    The interval is the adjusted Wald interval of Bonett and Price (2012, "Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data"), which keeps its coverage with few discordant rows and
    does not collapse when there are none.

    Raises:
        DataError: the two do not cover the same rows, or there are none.
    """
    only_a, only_b, n = _discordant(correct_a, correct_b)
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    half = _z(confidence) * np.sqrt((share_a + share_b - centre**2) / (n + 2))
    return _estimate((only_a - only_b) / n, max(-1.0, centre - half), min(1.0, centre + half))


def compare(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_], *, significance: float = 0.05) -> Comparison:
    """Whether a and b differ in accuracy: the exact test of McNemar (1947) on the rows where just one is right.

    The verdict is the test's; the interval (level 1 - `significance`) is that of `paired_difference`.

    Raises:
        DataError: the two do not cover the same rows, or there are none.
    """
    only_a, only_b, n = _discordant(correct_a, correct_b)
    p_value = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    return Comparison(
        n=n,
        difference=paired_difference(correct_a, correct_b, 1 - significance),
        p_value=p_value,
        distinguishable=p_value <= significance,
    )


def _discordant(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> tuple[int, int, int]:
    a, b = np.asarray(correct_a, dtype=np.bool_), np.asarray(correct_b, dtype=np.bool_)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise DataError("two models are compared on the same rows, at least one", value=(a.shape, b.shape))
    return int((a & ~b).sum()), int((b & ~a).sum()), len(a)


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=float(value), low=float(min(low, value)), high=float(max(high, value)))


def _z(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2))


def _rates(successes: Ints, trials: Ints, confidence: float) -> tuple[Floats, Floats, Floats]:
    """Rates and their Wilson limits, elementwise; a rate of no trials is 0 by convention and without spread."""
    z, n = _z(confidence), np.maximum(trials, 1)
    rate = successes / n
    half = z / (n + z**2) * np.sqrt(n * rate * (1 - rate) + z**2 / 4)
    centre = (successes + z**2 / 2) / (n + z**2)
    high = np.where(trials > 0, np.maximum(centre + half, rate), rate)
    return rate, np.clip(centre - half, 0, rate), np.minimum(high, 1)


def _macro_averages(
    confusion: Ints, confidence: float, resamples: int, generator: np.random.Generator
) -> tuple[Estimate, ...]:
    """Macro recall, precision and F1, each with the wider, on each side, of two intervals.

    The percentile bootstrap knows that one error lowers the scores of two classes, but shrinks to a point when every
    row is right. Wilson intervals of the classes, joined as `_join` does, do not shrink, but lean towards one half when
    classes are many and small. For F1 they rest on F1 = 2J / (1 + J) with J = TP / (TP + FP + FN), a proportion (Lam
    et al., "Confidence intervals for the F1 score", 2023).
    """
    right, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    present = support > 0
    trials = (support, predicted, support + predicted - right)
    recall, precision, jaccard = (_rates(right[present], n[present], confidence) for n in trials)
    f1 = tuple(2 * j / (1 + j) for j in jaccard)
    draws = _resampled_macro_averages(confusion, resamples, generator)
    lows, highs = np.quantile(draws, _tails(confidence), axis=1)
    joined = (_join(*rates) for rates in (recall, precision, f1))
    return tuple(
        _estimate(value, min(low, resampled_low), max(high, resampled_high))
        for (value, low, high), resampled_low, resampled_high in zip(joined, lows, highs, strict=True)
    )


def _join(values: Floats, lows: Floats, highs: Floats) -> tuple[float, float, float]:
    """Mean of independent estimates, its interval recovered from theirs (MOVER, Zou and Donner 2008)."""
    value, count = values.mean(), len(values)
    below, above = np.sqrt(((values - lows) ** 2).sum()) / count, np.sqrt(((highs - values) ** 2).sum()) / count
    return value, value - below, value + above


def _resampled_macro_averages(confusion: Ints, resamples: int, generator: np.random.Generator) -> Floats:
    """Macro recall, precision and F1, [3, resamples]: redrawing rows is a multinomial draw of the matrix's cells."""
    cells = np.flatnonzero(confusion)
    true, guess = np.divmod(cells, len(confusion))
    n = int(confusion.sum())
    draws = generator.multinomial(n, confusion.ravel()[cells] / n, size=resamples).astype(np.float64)
    identity = np.eye(len(confusion))
    support, predicted = draws @ identity[true], draws @ identity[guess]
    right = draws @ (identity[true] * (true == guess)[:, None])
    scores = np.stack([right / np.maximum(total, 1) for total in (support, predicted, (support + predicted) / 2)])
    averages: Floats = scores.sum(axis=2) / (support > 0).sum(axis=1)
    return averages


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _probability_metrics(
    logits: Floats, labels: Ints, confidence: float, resamples: int, generator: np.random.Generator
) -> tuple[Estimate, Estimate]:
    log_probabilities = log_softmax(logits)
    rows, n = np.arange(len(labels)), len(labels)
    nll = -log_probabilities[rows, labels]
    certainty = np.exp(log_probabilities.max(axis=1))
    index = _bin_index(certainty, CALIBRATION_BINS)
    columns = np.zeros((n, index.max() + 2))
    columns[rows, index] = certainty - (logits.argmax(axis=1) == labels)
    columns[:, -1] = nll
    means = _resampled_means(columns, resamples, generator)
    log_loss = _estimate(nll.mean(), *np.quantile(means[:, -1], _tails(confidence)))
    return log_loss, _calibration_error(columns[:, :-1].mean(axis=0), means[:, :-1], confidence)


def _calibration_error(gaps: Floats, resampled: Floats, confidence: float) -> Estimate:
    """Expected calibration error (Guo et al., 2017) over the equal-mass bins of `reliability_bins`.

    It is the sum over bins of |gap|, where noise adds up to a bias: a perfectly calibrated model measures above zero.
    Low: by the triangle inequality the value exceeds the truth at most by the sum of |noise|, whose quantile the
    centred bootstrap gives; this is cautious. High: the basic bootstrap (Davison and Hinkley 1997, section 5.2).

    Args:
        gaps: [bins], sum of (confidence - correct) over the rows of each bin, divided by all rows.
        resampled: [resamples, bins], the same of bootstrap resamples.
        confidence: level of the interval.
    """
    value = float(np.abs(gaps).sum())
    lower, upper = _tails(confidence)
    noise = np.quantile(np.abs(resampled - gaps).sum(axis=1), upper)
    return _estimate(value, max(0.0, value - noise), 2 * value - np.quantile(np.abs(resampled).sum(axis=1), lower))


def _bin_index(confidence: Floats, bins: int) -> Ints:
    """Bin of each row, int64 [n], numbered from 0 without gaps; edges are quantiles, equal values stay together."""
    ranks = -(-np.arange(1, bins) * len(confidence) // bins) - 1
    edges = np.sort(confidence)[ranks]
    index: Ints = np.unique(np.searchsorted(edges, confidence, side="left"), return_inverse=True)[1]
    return index


def _resampled_means(columns: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Column means, [resamples, m], of bootstrap resamples of the rows of `columns` [n, m], in bounded memory."""
    n = len(columns)
    step = max(1, _DRAWS_AT_ONCE // n)
    chunks = []
    for size in (min(step, resamples - start) for start in range(0, resamples, step)):
        draws = generator.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        chunks.append(np.bincount(draws.ravel(), minlength=size * n).reshape(size, n) @ columns / n)
    return np.concatenate(chunks)
