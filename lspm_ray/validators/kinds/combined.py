"""Several scores in one."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lspm_ray.errors import ConfigError
from lspm_ray.validators.contract import Examples, Floats, Outputs, State, Validator, named, part
from lspm_ray.validators.logistic import fit_logistic, log_odds


class Combined(Validator):
    """Log odds that accepting is no loss, from the scores of other validators.

    Monotone: no weight is negative, so an answer that every validator trusts more is never trusted less.

    Attributes:
        of: the validators; the first is what it starts from, with weight 1 for a standard deviation of its score.
        strength: of that start, in rows.
    """

    of: list[dict[str, Any]] = Field(
        default_factory=lambda: [{"validator": "max_probability"}, {"validator": "familiarity"}], min_length=2
    )
    strength: float = Field(5.0, gt=0)

    @field_validator("of", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        try:
            return [Validator.make(spec).spec() for spec in value]
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @cached_property
    def members(self) -> list[Validator]:
        """The validators."""
        return [Validator.make(spec) for spec in self.of]

    @property
    def learns(self) -> bool:
        """Yes."""
        return True

    @property
    def reads_training(self) -> bool:
        """If one of them does."""
        return any(member.reads_training for member in self.members)

    @property
    def reads_texts(self) -> bool:
        """If one of them does."""
        return any(member.reads_texts for member in self.members)

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """Their arrays, weights [validators] and bias [1]."""
        state: dict[str, NDArray[Any]] = {}
        for number, member in enumerate(self.members):
            state |= named(str(number), member.fit(examples))
        features = self._scores(examples.outputs, state)
        prior = np.zeros(len(self.of))
        prior[0] = 1 / max(float(features[:, 0].std()), 1e-6)
        return state | fit_logistic(features, ~examples.losses, prior, self.strength, lowest=0.0)

    def score(self, outputs: Outputs, state: State) -> Floats:
        """Any real number."""
        return log_odds(self._scores(outputs, state), state["weights"], state["bias"])

    def _scores(self, outputs: Outputs, state: State) -> Floats:
        members = enumerate(self.members)
        return np.column_stack([member.score(outputs, part(state, str(number))) for number, member in members])
