"""From logits to probabilities that mean what they say: stable softmax and temperature scaling."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from lspm_ray.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LOG_TEMPERATURE_BOUNDS = (-np.log(1e3), np.log(1e3))


def log_softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> Floats:
    """Log probabilities, float64 [n, k], of `logits` [n, k] / `temperature`; never overflows."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    result: Floats = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return result


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> Floats:
    """Probabilities, float64 [n, k], of `logits` [n, k] / `temperature`; rows sum to one."""
    return np.exp(log_softmax(logits, temperature))


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """The temperature T that makes softmax(logits / T) fit the labels best.

    Minimises the negative log-likelihood over log T (Guo et al., "On Calibration of Modern Neural Networks", 2017).
    The likelihood alone has no minimum when every row is right (T goes to 0, and all scores saturate at 1), when the
    logits are worse than chance (T goes to infinity) or constant (any T does). A standard normal prior on log T
    settles these; it weighs about as much as one row, so with some hundred ordinary rows it changes nothing visible.

    Args:
        logits: float [n, k].
        labels: int [n], class indices.

    Returns:
        T, between 0.001 and 1000; above 1 the model was overconfident, below 1 underconfident.

    Raises:
        DataError: see `check_rows`.
    """
    values, targets = check_rows(logits, labels)
    rows = np.arange(len(targets))

    def objective(log_temperature: float) -> float:
        log_probabilities = log_softmax(values, float(np.exp(log_temperature)))
        return float(-log_probabilities[rows, targets].sum() + 0.5 * log_temperature**2)

    found = minimize_scalar(objective, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def check_rows(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> tuple[Floats, Ints]:
    """Logits as float64 [n, k] and labels as int64 [n], once they are known to be usable together.

    Raises:
        DataError: wrong shapes, no rows, fewer than two classes, logits that are not finite, labels out of range.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError("must be [rows, classes] with at least two classes", field="logits", value=values.shape)
    if len(values) == 0:
        raise DataError("there are no rows", field="logits", value=values.shape)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        raise DataError(f"{bad} of {len(values)} rows hold NaN or infinity", field="logits")
    targets = np.asarray(labels)
    if targets.shape != values.shape[:1]:
        raise DataError(f"there must be one per row of logits ({len(values)})", field="labels", value=targets.shape)
    if not np.issubdtype(targets.dtype, np.integer):
        raise DataError("must be integer class indices", field="labels", value=str(targets.dtype))
    if targets.min() < 0 or targets.max() >= values.shape[1]:
        outside = sorted({int(t) for t in targets if not 0 <= t < values.shape[1]})
        raise DataError(f"must lie between 0 and {values.shape[1] - 1}", field="labels", value=outside)
    return values, targets.astype(np.int64)
