"""How concentrated the whole distribution is."""

from scipy.special import xlogy

from lspm_ray.validators.contract import Floats, Outputs, State, Validator


class Entropy(Validator):
    """Negative Shannon entropy in nats."""

    def score(self, outputs: Outputs, state: State) -> Floats:
        """In [-log(labels), 0]."""
        negative: Floats = xlogy(outputs.probabilities, outputs.probabilities).sum(axis=1)
        return negative
