"""Texts that are unlike the training rows, however sure the model is."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.validators.contract import Check, Examples, LearnsFromTraining, Outputs, State, named, part
from lspm_ray.validators.kinds.familiarity import Familiarity as Distance


class Familiarity(LearnsFromTraining, Check):
    """Refuses what is less like the training rows than nearly all selection rows: see the validator `familiarity`.

    Attributes:
        distance: `unigram`, `knn` or `mahalanobis`.
        share: of the selection rows that would be refused; about what it costs in escalations.
    """

    distance: Literal["unigram", "mahalanobis", "knn"] = "unigram"
    share: float = Field(0.01, gt=0, lt=1)

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """The arrays of the validator, and limit [1]."""
        state = self._validator.fit(examples)
        scores = self._validator.score(examples.outputs, state)
        return {**named("distance", state), "limit": np.quantile(scores, [self.share])}

    def verdict(self, outputs: Outputs, state: State) -> list[str | None]:
        """`unfamiliar`."""
        scores = self._validator.score(outputs, part(state, "distance"))
        return ["unfamiliar" if score < state["limit"][0] else None for score in scores]

    @property
    def _validator(self) -> Distance:
        return Distance(distance=self.distance)
