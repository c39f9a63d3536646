"""A small logistic model that starts from what is believed already and learns what the rows add."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from lspm_ray.validators.contract import Floats

_SMALLEST_SD = 1e-6


def fit_logistic(
    features: Floats, good: NDArray[np.bool_], prior: Floats, strength: float, lowest: float | None = None
) -> dict[str, NDArray[Any]]:
    """Maximum a posteriori weights of P(good) = expit(bias + weights . standardised features).

    A normal prior of precision `strength` is centred on `prior`: with rows that say nothing (none is bad, say), the
    scores are ordered as the prior orders them.

    Args:
        features: float64 [rows, features].
        good: bool [rows].
        prior: of the weights of features in their own units, [features].
        strength: in rows; the larger, the less is learnt.
        lowest: least weight; 0 makes the model monotone.

    Returns:
        `weights` [features] in the units of the features, and `bias` [1].
    """
    mean, sd = features.mean(axis=0), np.maximum(features.std(axis=0), _SMALLEST_SD)
    scaled, target = (features - mean) / sd, good.astype(np.float64)
    centre = np.append(prior * sd, 0.0)
    precision = np.append(np.full(len(prior), strength), _SMALLEST_SD)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        found = scaled @ parameters[:-1] + parameters[-1]
        away = parameters - centre
        error = expit(found) - target
        loss = np.logaddexp(0, found).sum() - target @ found + 0.5 * (precision * away**2).sum()
        return float(loss), np.append(scaled.T @ error, error.sum()) + precision * away

    bounds = [(lowest, None)] * len(prior) + [(-30.0, 30.0)]
    found = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[:-1] / sd
    return {"weights": weights, "bias": np.array([found[-1] - float(weights @ mean)])}


def log_odds(features: Floats, weights: Floats, bias: Floats) -> Floats:
    """bias + weights . features, [rows]; summed row by row, so that a row's value does not depend on the others."""
    found: Floats = (np.ascontiguousarray(features) * weights).sum(axis=1) + bias[0]
    return found
