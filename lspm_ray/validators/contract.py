"""The contract of a validator."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.plugin import Plugin
from lspm_ray.tasks import Encoded


class Validator(Plugin):
    """Scores answers; higher is more trustworthy."""

    package: ClassVar[str] = "lspm_ray.validators.kinds"
    kind: ClassVar[str] = "validator"

    @abstractmethod
    def score(self, inputs: Sequence[Encoded], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores [rows] of calibrated probabilities [rows, labels] for the given token ids.

        Must depend on each row alone, so that a score certified offline is the score computed live.
        Must be finite: certification refuses anything else, and an answer whose live score is NaN is escalated.
        """
