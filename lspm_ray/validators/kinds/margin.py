"""The lead of the answer over the runner-up."""

import numpy as np

from lspm_ray.validators.contract import Floats, Outputs, State, Validator


class Margin(Validator):
    """Difference of the two largest probabilities."""

    def score(self, outputs: Outputs, state: State) -> Floats:
        """In [0, 1]."""
        top = np.sort(outputs.probabilities, axis=1)[:, -2:]
        lead: Floats = top[:, 1] - top[:, 0]
        return lead
