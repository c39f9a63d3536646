"""How risky it is to accept a cheap model's answers, with a guarantee (Learn then Test).

Full model F, cheap model S, score s(x), threshold t: the cascade answers S(x) where s(x) >= t, else F(x). Its risk is
P(accepted and loss), over all rows and not only the accepted ones. Losses are 0 or 1, so their number in n independent
rows is binomial and every p-value below is exact. That the rows are independent and drawn like the traffic is assumed.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv

from lspm_ray.config import Config
from lspm_ray.errors import CertificateError

RiskKind = Literal["regret", "disagreement"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Labels = NDArray[np.integer[Any]]

ACCEPT_ALL = float(np.finfo(np.float32).min)
"""The threshold below every score: minus infinity in all but name, and unlike it a number in JSON and float32."""
REFUSED = float(-np.finfo(np.float64).max)
"""Score of an answer that must be escalated: below every threshold, `ACCEPT_ALL` too, and still a number."""


class RiskPoint(Config):
    """One threshold on the calibration rows."""

    threshold: float
    losses: int
    risk: float
    """Share of all rows whose answer, accepted or escalated, is a loss."""
    bound: float
    """Clopper-Pearson upper bound of the risk at this threshold, were it the only one looked at."""
    p_value: float
    escalation_rate: float
    passed: bool
    """Whether this and every stricter threshold was certified."""


class Certified(Config):
    """With probability 1 - `delta` over the calibration rows, the risk at `point.threshold` is at most `alpha`."""

    alpha: float
    delta: float
    n: int
    point: RiskPoint | None
    """The most lenient certified threshold; None when not even the strictest is: then no answer may be accepted."""
    curve: tuple[RiskPoint, ...]
    """All thresholds, from strict to lenient."""

    @property
    def escalation_rate(self) -> float:
        """Share of the calibration rows that go to the full model."""
        return 1.0 if self.point is None else self.point.escalation_rate


def losses(kind: RiskKind, cheap: Labels, full: Labels, labels: Labels | None = None) -> Bools:
    """Per row, bool [n], whether accepting the cheap answer would be a loss.

    `regret`: the cheap answer is wrong and the full one right; its risk bounds the accuracy lost against the full
    model. `disagreement`: the two differ; needs no labels.

    Args:
        kind: which loss.
        cheap: int [n], classes predicted by the cheap model.
        full: int [n], classes predicted by the full model.
        labels: int [n], true classes; only for `regret`.

    Raises:
        CertificateError: the arrays do not cover the same rows, or `regret` has no labels.
    """
    if kind == "regret" and labels is None:
        raise CertificateError(
            "regret needs labelled rows", field="risk", value=kind, hint="Without labels use `disagreement`"
        )
    truth = full if kind == "disagreement" or labels is None else labels
    if not cheap.shape == full.shape == truth.shape:
        raise CertificateError("predictions and labels must cover the same rows", value=(cheap.shape, full.shape))
    result: Bools = (cheap != truth) & (full == truth)
    return result


def p_value(losses: int, n: int, alpha: float) -> float:
    """P[Binomial(n, alpha) <= losses]: how likely so few losses are if the risk were `alpha` (or more)."""
    return float(bdtr(losses, n, alpha))


def upper_bound(losses: int, n: int, delta: float) -> float:
    """The one-sided upper confidence bound of Clopper and Pearson (1934), at level 1 - `delta`.

    It is the smallest alpha that `p_value` rejects at `delta`: bound <= alpha if and only if p <= delta.
    """
    return float(_upper_bounds(np.array([losses]), n, delta)[0])


def minimum_rows(alpha: float, delta: float) -> int:
    """The fewest calibration rows that can certify `alpha` at `delta`, which takes that none of them is a loss."""
    rows = max(1, int(np.ceil(np.log(delta) / np.log1p(-alpha))) - 1)
    return rows if p_value(0, rows, alpha) <= delta else rows + 1


def smallest_alpha(n: int, delta: float) -> float:
    """The smallest risk level that `n` rows without a loss certify at `delta`."""
    return float(-np.expm1(np.log(delta) / n))


def threshold_grid(selection_scores: NDArray[np.floating[Any]], size: int = 200) -> Floats:
    """Thresholds to test, strictly descending (strict to lenient), at most `size`, the last `ACCEPT_ALL`.

    They are evenly spaced quantiles of the scores, so each accepts about 1 / `size` more rows than the one before.
    The scores must not be those of the calibration rows: the guarantee needs thresholds chosen without a look at them.

    Raises:
        CertificateError: no scores, or some that are not finite.
    """
    scores = _finite(selection_scores, "selection scores")
    levels = np.linspace(1, 0, size)[:-1]
    quantiles = np.unique(np.quantile(scores, levels, method="inverted_cdf"))[::-1]
    return np.append(quantiles, ACCEPT_ALL)


def fixed_sequence(
    scores: NDArray[np.floating[Any]],
    losses: Bools,
    grid: NDArray[np.floating[Any]],
    alpha: float,
    delta: float,
    escalated_losses: Bools | None = None,
) -> Certified:
    """Walk the thresholds from strict to lenient and certify all up to the first with p > `delta`.

    Fixed-sequence testing pays nothing for the number of thresholds (Angelopoulos, Bates, Candes, Jordan, Lei, "Learn
    then Test", 2021, section 2.3). Where escalation goes to the full model itself, accepting more rows can only add
    losses, so no later threshold would have passed; where it goes to another model (`escalated_losses`), one might
    have, and is given up. What is guaranteed is `alpha`; a bound below it was found by looking at the curve.
    For several cheap models on the same rows, divide `delta` by their number.

    Args:
        scores: float [n], higher is more trustworthy; of ALL calibration rows.
        losses: bool [n], see `losses`.
        grid: strictly descending thresholds, see `threshold_grid`; minus infinity is taken as `ACCEPT_ALL`.
        alpha: the risk level, between 0 and 1.
        delta: the chance of a wrong certificate, between 0 and 1.
        escalated_losses: bool [n], whether the answer is a loss if the row is escalated; None where escalation goes to
            the full model, which loses nothing against itself.

    Raises:
        CertificateError: alpha or delta out of range, scores not finite, or too few rows to certify alpha at all.
        ValueError: the grid does not descend.
    """
    _check_levels(alpha, delta)
    values = _finite(scores, "calibration scores")
    escalated = np.zeros_like(losses) if escalated_losses is None else escalated_losses
    if not losses.shape == escalated.shape == values.shape:
        raise CertificateError(
            "scores and losses must cover the same rows", value=(values.shape, losses.shape, escalated.shape)
        )
    if len(grid) == 0 or not (np.diff(grid) < 0).all():
        raise ValueError("the grid must hold strictly descending thresholds")
    _check_feasible(len(values), alpha, delta)
    thresholds = np.maximum(np.asarray(grid, dtype=np.float64), ACCEPT_ALL)
    counts, below = _count(values, losses, escalated, thresholds)
    return tested(thresholds, counts, below, len(values), alpha, delta)


def cost_of_stages(costs: Sequence[float], validator: float, shares: Sequence[float]) -> float:
    """Expected cost of a cascade per row: c1 + v + e1 * (c2 + v) + ... + e * c_last, each e a share of all rows.

    Args:
        costs: of each model on one row, in the order in which they are asked.
        validator: cost of judging one answer; every answer but the last model's is judged.
        shares: of all rows, those that each stage but the last passes on; empty for a model alone, which nobody judges.
    """
    if len(costs) == 1:
        return costs[0]
    judged = [cost + validator for cost in costs[:-1]]
    return sum(share * cost for share, cost in zip((1.0, *shares), (*judged, costs[-1]), strict=True))


def tested(
    grid: Floats,
    counts: NDArray[np.int64],
    escalated: NDArray[np.int64],
    n: int,
    alpha: float,
    delta: float,
    passed: Bools | None = None,
) -> Certified:
    """The tests of a fixed sequence, from what was counted at each threshold.

    Args:
        grid: thresholds, strict to lenient [steps].
        counts: losses at each [steps].
        escalated: rows passed on at each [steps].
        n: rows.
        alpha: the risk level.
        delta: the chance of a wrong certificate.
        passed: which steps are certified; by default all before the first with p > delta.
    """
    p_values = bdtr(counts, n, alpha)
    certain = np.logical_and.accumulate(p_values <= delta) if passed is None else passed
    columns = zip(
        grid.tolist(),
        counts.tolist(),
        (counts / n).tolist(),
        _upper_bounds(counts, n, delta).tolist(),
        p_values.tolist(),
        (escalated / n).tolist(),
        certain.tolist(),
        strict=True,
    )
    curve = tuple(RiskPoint(**dict(zip(RiskPoint.model_fields, row, strict=True))) for row in columns)
    last = [point for point in curve if point.passed]
    return Certified(alpha=alpha, delta=delta, n=n, point=last[-1] if last else None, curve=curve)


def _count(
    scores: Floats, losses: Bools, escalated_losses: Bools, grid: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Losses and escalated rows at each threshold."""
    order = np.argsort(scores)
    escalated = np.searchsorted(scores[order], grid, side="left").astype(np.int64)
    losses_from = np.append(np.cumsum(losses[order][::-1])[::-1], 0)
    losses_below = np.concatenate([[0], np.cumsum(escalated_losses[order])])
    return (losses_from[escalated] + losses_below[escalated]).astype(np.int64), escalated


def _upper_bounds(counts: NDArray[np.int64], n: int, delta: float) -> Floats:
    bounds: Floats = np.where(counts < n, betaincinv(counts + 1, np.maximum(n - counts, 1), 1 - delta), 1.0)
    return bounds


def _finite(scores: NDArray[np.floating[Any]], field: str) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise CertificateError("there must be one score per row, and at least one row", field=field, value=values.shape)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise CertificateError(f"{bad} of {len(values)} are NaN or infinite", field=field)
    return values


def _check_levels(alpha: float, delta: float) -> None:
    for field, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise CertificateError("must lie strictly between 0 and 1", field=field, value=value)


def _check_feasible(n: int, alpha: float, delta: float) -> None:
    needed = minimum_rows(alpha, delta)
    if n < needed:
        raise CertificateError(
            f"alpha = {alpha:g} at delta = {delta:g} needs at least {needed:,} rows, even if none of them is a loss",
            field="calibration rows",
            value=n,
            hint=f"Add rows, or ask for no less than alpha = {_advisable_alpha(n, delta):g}, "
            "the smallest these can certify",
        )


def _advisable_alpha(n: int, delta: float) -> float:
    """`smallest_alpha` rounded up to three digits, so that it works when typed in as printed."""
    alpha = float(f"{smallest_alpha(n, delta):.3g}")
    unit = 10.0 ** (np.floor(np.log10(alpha)) - 2)
    while minimum_rows(alpha, delta) > n:
        alpha = float(f"{alpha + unit:.3g}")
    return alpha
