"""How concentrated the whole distribution is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from lspm_ray.tasks import Encoded
from lspm_ray.validators.contract import Validator


class Entropy(Validator):
    """Negative Shannon entropy in nats."""

    def score(self, inputs: Sequence[Encoded], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """In [-log(labels), 0]."""
        negative: NDArray[np.float64] = xlogy(probabilities, probabilities).sum(axis=1)
        return negative
