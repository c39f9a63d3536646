"""A small model of its own for one question: would accepting this answer be a loss?"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import logsumexp, xlogy

from lspm_ray.validators.boosting import fit_trees, sum_of_trees
from lspm_ray.validators.contract import Examples, Floats, LearnsFromTraining, Outputs, State, Validator
from lspm_ray.validators.logistic import fit_logistic, log_odds
from lspm_ray.validators.seen import seen_tokens, unseen_share

_TOP = 3
_TINY = 1e-12
_TIES = 1e-3
"""Weight of the probability's log odds beside the trees, whose sums take few values."""


class Deferral(LearnsFromTraining, Validator):
    """Log odds that accepting is no loss, learnt on the selection rows.

    It sees the largest three probabilities as log odds, the lead, entropy, energy, length and the share of unseen
    tokens. (Post-hoc deferral: Narasimhan et al., "Post-hoc Estimators for Learning to Defer to an Expert", 2022.)

    Attributes:
        model: `logistic`, which starts from the log odds of the answer's probability, or `boosting` (trees).
        strength: of the logistic prior, in rows.
    """

    model: Literal["logistic", "boosting"] = "logistic"
    strength: float = Field(5.0, gt=0)

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """seen, and the arrays of the model."""
        seen = seen_tokens(examples.trained_on, 1)
        features, good = _features(examples.outputs, seen), ~examples.losses
        if self.model == "boosting":
            return {"seen": seen, **fit_trees(features, good)}
        prior = np.zeros(features.shape[1])
        prior[0] = 1
        return {"seen": seen, **fit_logistic(features, good, prior, self.strength)}

    def score(self, outputs: Outputs, state: State) -> Floats:
        """Any real number."""
        features = _features(outputs, state["seen"])
        if self.model == "boosting":
            return sum_of_trees(features, state) + _TIES * features[:, 0]
        return log_odds(features, state["weights"], state["bias"])


def _features(outputs: Outputs, seen: NDArray[np.uint8]) -> Floats:
    """float64 [rows, 8]; the first is the log odds of the answer."""
    p = outputs.probabilities
    top = np.zeros((len(p), _TOP))
    ranked = np.sort(p, axis=1)[:, ::-1][:, :_TOP]
    top[:, : ranked.shape[1]] = ranked
    # 1 - p from the other labels: near certainty the difference would be rounding.
    rest = np.sort(p, axis=1)[:, :-1].sum(axis=1)
    first = np.log(np.maximum(top[:, 0], _TINY)) - np.log(np.maximum(rest, _TINY))
    others = np.log(np.maximum(top[:, 1:], 1e-6)) - np.log1p(-np.minimum(top[:, 1:], 1 - 1e-6))
    lengths = np.log1p(np.array([len(row) for row in outputs.inputs], dtype=np.float64))
    return np.column_stack(
        [
            first,
            others,
            top[:, 0] - top[:, 1],
            -xlogy(p, p).sum(axis=1),
            logsumexp(outputs.logits, axis=1),
            lengths,
            unseen_share(outputs.inputs, seen),
        ]
    )
