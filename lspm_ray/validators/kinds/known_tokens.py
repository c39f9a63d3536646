"""How much of the text consists of tokens that the models have met in training."""

from typing import Any

from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.validators.contract import Examples, Floats, LearnsFromTraining, Outputs, State, Validator
from lspm_ray.validators.seen import seen_tokens, unseen_share


class KnownTokens(LearnsFromTraining, Validator):
    """Share of tokens that occur in the training rows.

    Attributes:
        min_rows: training rows in which a token must occur to count.
    """

    min_rows: int = Field(1, ge=1)

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """seen: uint8 [largest token id + 1]."""
        return {"seen": seen_tokens(examples.trained_on, self.min_rows)}

    def score(self, outputs: Outputs, state: State) -> Floats:
        """In [0, 1]."""
        return 1 - unseen_share(outputs.inputs, state["seen"])
