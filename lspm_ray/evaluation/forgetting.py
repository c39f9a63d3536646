"""What a compressed model forgets: which classes it loses, and which rows it answers differently.

Averages hide it: compression takes a little from most classes and much from a few (Hooker et al., "What Do Compressed
Deep Neural Networks Forget?", 2019, section 3). Everything here compares with the full model on the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, betaincinv, gammaln, xlog1py, xlogy

from lspm_ray.config import Config
from lspm_ray.errors import DataError

SIGNIFICANCE = 0.05
"""Chance that a verdict about any class of one model is wrong, where the truth is the bound itself."""
_SHARE_OF_NUISANCE = 0.1
"""Of the significance, spent on bounding how often the other model alone is right."""
_NUISANCE_POINTS = 40
_WINDOW = 12.0
"""Standard deviations of the number of discordant rows outside of which its probability counts as nothing."""
Bools = NDArray[np.bool_]
Verdict = Literal["kept", "forgotten", "cannot be told"]


class ClassChange(Config):
    """How the recall of one class changes from the full model to another.

    Attributes:
        label: of the class.
        rows: of that class.
        right: rows that full answers right.
        lost: rows that full answers right and the other wrong.
        gained: the other way round.
        verdict: whether the drop exceeds a bound: `forgotten` or `kept` where the rows prove it; None without a bound.
    """

    label: str
    rows: int
    right: int
    lost: int
    gained: int
    verdict: Verdict | None = None

    @property
    def drop(self) -> float:
        """Recall lost, as a fraction; below zero if it is gained."""
        return (self.lost - self.gained) / self.rows


class Forgetting(Config):
    """What was found out on the selection rows.

    Attributes:
        bound: recall that a class may lose, as a fraction; None for any.
        alone: variant -> its changes if it answered everything.
        plan: changes of the plan's answers, those that are escalated included; empty where full serves alone.
    """

    bound: float | None
    alone: dict[str, list[ClassChange]]
    plan: list[ClassChange]


class Exemplar(Config):
    """A row that compression flips: right in full and wrong in the other models, or the other way round.

    Attributes:
        row: its number in the split.
        direction: `lost`: full is right; `gained`: full is wrong.
        models: those that flip it.
    """

    row: int
    direction: Literal["lost", "gained"]
    models: list[str]


def class_changes(
    right: Bools,
    full_right: Bools,
    labels: NDArray[np.integer[Any]],
    names: Sequence[str],
    bound: float | None,
    significance: float = SIGNIFICANCE,
) -> list[ClassChange]:
    """The change of every class that occurs.

    The verdicts are those of `excess_p_value`, each at `significance` divided by the number of classes (Bonferroni):
    that any of them is wrong is no likelier than `significance`. With few rows they say `cannot be told`.

    Args:
        right: bool [n], whether the other model is right.
        full_right: bool [n], whether full is.
        labels: int [n], class indices.
        names: of the classes.
        bound: recall that a class may lose, as a fraction; None for no verdicts.
        significance: of all verdicts together.

    Raises:
        DataError: the arrays do not cover the same rows.
    """
    if not right.shape == full_right.shape == labels.shape:
        raise DataError("two models are compared on the same rows", value=(right.shape, full_right.shape, labels.shape))
    rows, correct, lost, gained = (
        np.bincount(labels[mask], minlength=len(names)).tolist()
        for mask in (np.ones_like(right), full_right, full_right & ~right, right & ~full_right)
    )
    present = [index for index, n in enumerate(rows) if n]
    level = significance / max(1, len(present))
    return [
        ClassChange(
            label=names[k],
            rows=rows[k],
            right=correct[k],
            lost=lost[k],
            gained=gained[k],
            verdict=None if bound is None else verdict(lost[k], gained[k], rows[k], bound, level),
        )
        for k in present
    ]


def verdict(lost: int, gained: int, rows: int, bound: float, significance: float) -> Verdict:
    """Whether a class loses more than `bound` of its recall, where its rows prove either; see `excess_p_value`."""
    if excess_p_value(lost, gained, rows, bound, significance) <= significance:
        return "forgotten"
    return "kept" if excess_p_value(gained, lost, rows, -bound, significance) <= significance else "cannot be told"


def excess_p_value(lost: int, gained: int, rows: int, bound: float, significance: float) -> float:
    """How likely `lost - gained` is to be so large if the true drop, P(lost) - P(gained), is at most `bound`.

    Exact and unconditional: the number of lost and gained rows is trinomial. P(gained), which the hypothesis leaves
    open, runs over its Clopper-Pearson interval at a tenth of `significance`, which is added to the largest p-value
    found (Berger and Boos, "P Values Maximized Over a Confidence Set for the Nuisance Parameter", 1994). The usual
    intervals are wrong too often here: that of `paired_difference` up to 20 times as often as asked for, with 60
    classes of some ten rows.

    Args:
        lost: rows that only full answers right.
        gained: rows that only the other model does.
        rows: of the class.
        bound: the drop that is allowed, between -1 and 1.
        significance: the level that the result is compared with.
    """
    if lost - gained <= rows * bound:
        return 1.0
    spent = significance * _SHARE_OF_NUISANCE
    highest = 1.0 if gained >= rows else float(betaincinv(gained + 1, rows - gained, 1 - spent))
    low, high = max(0.0, -bound), min(highest, (1 - bound) / 2)
    if high < low:
        return spent
    only_other = np.linspace(low, high, _NUISANCE_POINTS)[:, None]
    return min(1.0, float(_tail(lost - gained, rows, only_other + bound, only_other).max()) + spent)


def _tail(excess: int, rows: int, lost: NDArray[np.float64], gained: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(lost - gained >= `excess`) for probabilities [m, 1] of either, [m]: summed over how many rows differ."""
    both = np.minimum(lost + gained, 1.0)
    spread = _WINDOW * np.sqrt(rows * both * (1 - both)) + _WINDOW
    first = max(0, excess, int((rows * both - spread).min()))
    last = min(rows, int((rows * both + spread).max()))
    discordant = np.arange(first, max(first, last) + 1)[None, :]
    share = np.clip(lost / np.maximum(both, np.finfo(float).tiny), 0.0, 1.0)
    needed = (discordant + excess + 1) // 2
    enough = np.where(needed <= 0, 1.0, bdtrc(np.maximum(needed, 1) - 1, discordant, share))
    log_chance = (
        gammaln(rows + 1)
        - gammaln(discordant + 1)
        - gammaln(rows - discordant + 1)
        + xlogy(discordant, both)
        + xlog1py(rows - discordant, -both)
    )
    total: NDArray[np.float64] = (np.exp(log_chance) * enough).sum(axis=1)
    return total


def exemplars(right: Mapping[str, Bools], full_right: Bools, most: int) -> list[Exemplar]:
    """The rows that most models flip (the compression-identified exemplars of Hooker et al. 2019, section 4).

    Args:
        right: model -> bool [n], whether it is right; without full.
        full_right: bool [n], whether full is.
        most: rows returned at most, those that most models flip first, then in the order of the rows.
    """
    if not right:
        return []
    flipped = np.stack([answers != full_right for answers in right.values()])
    counts = flipped.sum(axis=0)
    order = np.argsort(-counts, kind="stable")[:most]
    return [
        Exemplar(
            row=int(row),
            direction="lost" if full_right[row] else "gained",
            models=[name for name, own in zip(right, flipped, strict=True) if own[row]],
        )
        for row in order
        if counts[row]
    ]
