"""How large the logits are, which the softmax forgets."""

from pydantic import Field
from scipy.special import logsumexp

from lspm_ray.validators.contract import Floats, Outputs, State, Validator


class Energy(Validator):
    """Negative free energy (Liu et al., "Energy-based Out-of-distribution Detection", 2020, section 3.1).

    Attributes:
        temperature: T in T * log sum exp(logits / T); of this score alone, calibration does not enter.
    """

    temperature: float = Field(1.0, gt=0)

    def score(self, outputs: Outputs, state: State) -> Floats:
        """Any real number; not less than the largest logit."""
        energy: Floats = self.temperature * logsumexp(outputs.logits / self.temperature, axis=1)
        return energy
