"""How usual the length of a text is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.validators.contract import Examples, Floats, LearnsFromTraining, Outputs, State, Validator

_NARROWEST = 0.1


class Length(LearnsFromTraining, Validator):
    """Negative distance of the logarithm of the number of tokens to its median in training, in quartile ranges."""

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """quartiles: of log(1 + tokens), float64 [3]."""
        return {"quartiles": np.quantile(_log_lengths(examples.trained_on.inputs), [0.25, 0.5, 0.75])}

    def score(self, outputs: Outputs, state: State) -> Floats:
        """At most 0."""
        low, median, high = state["quartiles"]
        distance: Floats = np.abs(_log_lengths(outputs.inputs) - median) / max(float(high - low), _NARROWEST)
        return -distance


def _log_lengths(inputs: Any) -> Floats:
    return np.log1p(np.array([len(row) for row in inputs], dtype=np.float64))
