"""Whether an answer depends on the rows that it is computed with: see docs/decisions/one-row-per-run.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import betaincinv

from lspm_ray.config import Config
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.tasks import Encoded

_SEED = 0
_CONFIDENCE = 0.95


class Company(Config):
    """Each row computed alone and in a full batch, compared.

    Attributes:
        rows: compared.
        changed: rows whose answer is another one in the batch.
        largest: difference of any class's probability, over all rows.
    """

    rows: int = Field(ge=1)
    changed: int = Field(ge=0)
    largest: float = Field(ge=0, le=1)

    @property
    def proven(self) -> float:
        """Share of answers that change, at the least: the one-sided 95 % bound of Clopper and Pearson (1934)."""
        if self.changed == 0:
            return 0.0
        return float(betaincinv(self.changed, self.rows - self.changed + 1, 1 - _CONFIDENCE))

    @property
    def possible(self) -> float:
        """Share of answers that change, at the most: the bound on the other side."""
        if self.changed == self.rows:
            return 1.0
        return float(betaincinv(self.changed + 1, self.rows - self.changed, _CONFIDENCE))

    def sentence(self) -> str:
        """What was found, in words."""
        return (
            f"answers {self.changed} of {self.rows} rows otherwise in a batch than alone "
            f"({100 * self.proven:.2g} % to {100 * self.possible:.2g} % of all)"
        )


def company(
    predict: Callable[[Sequence[Encoded]], NDArray[np.float32]], examples: Sequence[Encoded], batch_size: int
) -> Company:
    """Compute each row alone, and all of them in random batches.

    Args:
        predict: `Predictor.predict`.
        examples: token ids.
        batch_size: rows of a batch.
    """
    alone = np.concatenate([predict([example]) for example in examples])
    together = np.empty_like(alone)
    order = np.random.default_rng(_SEED).permutation(len(examples))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        together[rows] = predict([examples[row] for row in rows])
    moved = np.abs(softmax(alone) - softmax(together))
    return Company(
        rows=len(examples),
        changed=int((alone.argmax(1) != together.argmax(1)).sum()),
        largest=float(moved.max()),
    )
