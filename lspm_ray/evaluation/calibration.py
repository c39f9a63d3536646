"""From logits to probabilities that mean what they say: stable softmax, temperature, vector and isotonic scaling."""

from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.optimize import minimize, minimize_scalar

from lspm_ray.config import Config
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


CalibratorKind = Literal["temperature", "vector", "isotonic"]
CALIBRATORS: tuple[CalibratorKind, ...] = get_args(CalibratorKind)

_VECTOR_PRIOR_SD = 1.0
_KEEPS = 2.0**-40
"""Share that settles a tie in favour of the answer: far above rounding, far below what anybody could see."""


class Calibrator(Config):
    """What follows the temperature: maps log probabilities [rows, classes] to probabilities that mean what they say.

    The class with the largest logit keeps the largest probability: calibration says how sure an answer is and never
    changes it, so what was measured of the answers holds with any calibrator.

    Attributes:
        kind: `vector`: one scale and bias per class (Guo et al. 2017, section 4.2); `isotonic`: one monotone map of all
            probabilities, then normalised (Zhang, Kailkhura and Han, "Mix-n-Match", 2020, section 3.2).
        x: `vector`: scales [classes]; `isotonic`: knots, ascending.
        y: `vector`: biases [classes]; `isotonic`: values at the knots, ascending.
    """

    kind: Literal["vector", "isotonic"]
    x: tuple[float, ...]
    y: tuple[float, ...]

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if len(self.x) != len(self.y) or len(self.x) < 2:
            raise ValueError("x and y must hold equally many numbers, at least two")
        if self.kind == "isotonic" and not (np.all(np.diff(self.x) > 0) and np.all(np.diff(self.y) > 0)):
            raise ValueError("knots and values of an isotonic map must ascend")
        return self

    def probabilities(self, log_probabilities: Floats) -> Floats:
        """float64 [rows, classes]; each row depends on itself alone."""
        if self.kind == "vector":
            mapped = softmax(log_probabilities * np.asarray(self.x) + np.asarray(self.y))
        else:
            mapped = np.interp(np.exp(log_probabilities), self.x, self.y)
            mapped /= mapped.sum(axis=1, keepdims=True)
        return _keep_answers(mapped, log_probabilities.argmax(axis=1))


def probabilities(
    logits: NDArray[np.floating[Any]], temperature: float = 1.0, calibrator: Calibrator | None = None
) -> Floats:
    """Calibrated probabilities, float64 [rows, classes], of logits [rows, classes].

    Args:
        logits: of a model.
        temperature: divides them.
        calibrator: what follows; None for nothing.
    """
    return (
        softmax(logits, temperature)
        if calibrator is None
        else calibrator.probabilities(log_softmax(logits, temperature))
    )


def fit_calibrator(
    kind: CalibratorKind, logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> tuple[float, Calibrator | None]:
    """The temperature, and what follows it: None for the kind `temperature`.

    Args:
        kind: one of `CALIBRATORS`.
        logits: float [rows, classes].
        labels: int [rows], class indices.

    Raises:
        DataError: see `check_rows`.
    """
    temperature = fit_temperature(logits, labels)
    if kind == "temperature":
        return temperature, None
    values, targets = check_rows(logits, labels)
    logs = log_softmax(values, temperature)
    return temperature, _fit_vector(logs, targets) if kind == "vector" else _fit_isotonic(logs, targets)


def _fit_vector(logs: Floats, targets: Ints) -> Calibrator:
    """Maximum likelihood with normal priors on log scale and bias, which settle what a rare class cannot."""
    rows, classes = np.arange(len(logs)), logs.shape[1]
    hot = np.zeros_like(logs)
    hot[rows, targets] = 1

    def objective(parameters: Floats) -> tuple[float, Floats]:
        log_scale, bias = parameters[:classes], parameters[classes:]
        found = log_softmax(logs * np.exp(log_scale) + bias)
        error = np.exp(found) - hot
        prior = parameters / _VECTOR_PRIOR_SD**2
        gradient = np.concatenate([(error * logs).sum(axis=0) * np.exp(log_scale), error.sum(axis=0)]) + prior
        return float(-found[rows, targets].sum() + 0.5 * parameters @ prior), gradient

    bounds = [(-5.0, 5.0)] * classes + [(None, None)] * classes
    found = minimize(objective, np.zeros(2 * classes), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Calibrator(kind="vector", x=tuple(np.exp(found[:classes]).tolist()), y=tuple(found[classes:].tolist()))


def _fit_isotonic(logs: Floats, targets: Ints) -> Calibrator:
    """Isotonic regression of (class is right) on its probability, over all rows and classes."""
    from sklearn.isotonic import IsotonicRegression

    hot = np.zeros_like(logs)
    hot[np.arange(len(logs)), targets] = 1
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(np.exp(logs).ravel(), hot.ravel())
    x, first = np.unique(np.concatenate([[0.0], fitted.X_thresholds_, [1.0]]), return_index=True)
    y = np.concatenate([fitted.y_thresholds_[:1], fitted.y_thresholds_, fitted.y_thresholds_[-1:]])[first]
    # Flat pieces would make scores equal that are not: the identity, weighing a thousandth, keeps their order.
    strict = 0.999 * y + 0.001 * x
    ascends = np.concatenate([[True], np.diff(strict) > 0])
    return Calibrator(kind="isotonic", x=tuple(x[ascends].tolist()), y=tuple(strict[ascends].tolist()))


def _keep_answers(found: Floats, answers: Ints) -> Floats:
    """Probabilities nearest to `found` [rows, classes] among those that are largest at `answers` [rows].

    Where another class is above the answer, it and all such classes share what they have (pool adjacent violators).
    """
    for row in np.flatnonzero(found.argmax(axis=1) != answers):
        answer = answers[row]
        others = np.argsort(-found[row], kind="stable")
        others = others[others != answer]
        total, pooled = found[row, answer], 0
        while pooled < len(others) and found[row, others[pooled]] * (pooled + 1) >= total:
            total += found[row, others[pooled]]
            pooled += 1
        share = total / (pooled + 1)
        found[row, others[:pooled]] = share * (1 - _KEEPS)
        found[row, answer] = share * (1 + pooled * _KEEPS)
    return found
