"""How far probabilities are from what they say, before and after they are calibrated."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.config import Config
from lspm_ray.evaluation.calibration import Calibrator, Floats, Ints, check_rows, probabilities
from lspm_ray.evaluation.metrics import CALIBRATION_BINS, Bin, reliability_bins


class Reliability(Config):
    """Errors of probabilities on `rows` labelled rows.

    Attributes:
        rows: how many.
        log_loss: mean negative log-likelihood, nats.
        brier: mean squared distance to the one-hot label, summed over classes (Brier 1950), in [0, 2].
        ece: expected calibration error of the largest probability over bins of equal width (Guo et al. 2017).
        adaptive_ece: the same over bins of equal mass (Nixon et al., "Measuring Calibration in Deep Learning", 2019).
        classwise_ece: mean over classes of the error of that class's probability, bins of equal width (Kull et al.,
            "Beyond temperature scaling", 2019, section 2).
        bins: of equal mass: confidence, accuracy and rows, for the reliability diagram.
    """

    rows: int
    log_loss: float
    brier: float
    ece: float
    adaptive_ece: float
    classwise_ece: float
    bins: tuple[Bin, ...]


class Calibration(Config):
    """One model before and after calibration, on rows that the calibrator was not fitted on."""

    model: str
    before: Reliability
    after: Reliability


def reliability(
    found: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], bins: int = CALIBRATION_BINS
) -> Reliability:
    """Measure probabilities [rows, classes] against labels [rows].

    Args:
        found: rows summing to one.
        labels: class indices.
        bins: of each calibration error.

    Raises:
        DataError: see `check_rows`.
    """
    values, targets = check_rows(found, labels)
    rows = np.arange(len(targets))
    hot = np.zeros_like(values)
    hot[rows, targets] = 1
    confidence, right = values.max(axis=1), (values.argmax(axis=1) == targets).astype(np.float64)
    mass = reliability_bins(values, targets, bins)
    return Reliability(
        rows=len(targets),
        log_loss=float(-np.log(np.maximum(values[rows, targets], np.finfo(np.float64).tiny)).mean()),
        brier=float(((values - hot) ** 2).sum(axis=1).mean()),
        ece=_equal_width(confidence, right, bins),
        adaptive_ece=sum(entry.count * abs(entry.confidence - entry.accuracy) for entry in mass) / len(targets),
        classwise_ece=float(np.mean([_equal_width(values[:, k], hot[:, k], bins) for k in range(values.shape[1])])),
        bins=tuple(mass),
    )


def before_and_after(
    model: str,
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    temperature: float,
    calibrator: Calibrator | None,
) -> Calibration:
    """What calibration does to a model's probabilities: plain softmax against temperature and calibrator.

    Raises:
        DataError: see `check_rows`.
    """
    return Calibration(
        model=model,
        before=reliability(probabilities(logits), labels),
        after=reliability(probabilities(logits, temperature, calibrator), labels),
    )


def _equal_width(confidence: Floats, right: Floats, bins: int) -> float:
    """Weighted mean over bins of |mean confidence - share right|; a bin holds what is above its lower edge."""
    index: Ints = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(index, confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
