"""The calibrated probability of the answer."""

from lspm_ray.validators.contract import Floats, Outputs, State, Validator


class MaxProbability(Validator):
    """Maximum softmax probability (Hendrycks & Gimpel 2017)."""

    def score(self, outputs: Outputs, state: State) -> Floats:
        """In [1 / labels, 1]."""
        best: Floats = outputs.probabilities.max(axis=1)
        return best
