"""The calibrated probability of the answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lspm_ray.tasks import Encoded
from lspm_ray.validators.contract import Validator


class MaxProbability(Validator):
    """Maximum softmax probability (Hendrycks & Gimpel 2017)."""

    def score(self, inputs: Sequence[Encoded], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """In [1 / labels, 1]."""
        best: NDArray[np.float64] = probabilities.max(axis=1)
        return best
