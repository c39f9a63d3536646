"""How much of the text consists of tokens that the models have met in training."""

from typing import Any

from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.validators.contract import Examples, Floats, Outputs, State, Validator
from lspm_ray.validators.seen import seen_tokens, unseen_share


class KnownTokens(Validator):
    """Share of tokens that occur in the training rows.

    Attributes:
        min_rows: training rows in which a token must occur to count.
    """

    min_rows: int = Field(1, ge=1)

    @property
    def learns(self) -> bool:
        """It has to know the training rows' tokens."""
        return True

    @property
    def reads_training(self) -> bool:
        """Yes."""
        return True

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """seen: uint8 [largest token id + 1]."""
        return {"seen": seen_tokens(examples.trained_on, self.min_rows)}

    def score(self, outputs: Outputs, state: State) -> Floats:
        """In [0, 1]."""
        return 1 - unseen_share(outputs.inputs, state["seen"])
