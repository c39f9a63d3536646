"""The lead of the answer over the runner-up."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lspm_ray.tasks import Encoded
from lspm_ray.validators.contract import Validator


class Margin(Validator):
    """Difference of the two largest probabilities."""

    def score(self, inputs: Sequence[Encoded], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """In [0, 1]."""
        top = np.sort(probabilities, axis=1)[:, -2:]
        lead: NDArray[np.float64] = top[:, 1] - top[:, 0]
        return lead
