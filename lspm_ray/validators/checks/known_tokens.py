"""Texts with many tokens that the models have never met in training."""

from typing import Any

from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.validators.contract import Check, Examples, LearnsFromTraining, Outputs, State
from lspm_ray.validators.seen import seen_tokens, unseen_share


class KnownTokens(LearnsFromTraining, Check):
    """Refuses what is mostly new.

    Attributes:
        max_unseen: largest share of tokens that occur in no training row.
    """

    max_unseen: float = Field(0.1, ge=0, le=1)

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """seen: uint8 [largest token id + 1]."""
        return {"seen": seen_tokens(examples.trained_on, 1)}

    def verdict(self, outputs: Outputs, state: State) -> list[str | None]:
        """`unseen_tokens`."""
        shares = unseen_share(outputs.inputs, state["seen"])
        return ["unseen_tokens" if share > self.max_unseen else None for share in shares]
