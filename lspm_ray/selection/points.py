"""Several certified operating points at once, for all rows and per true class, on any path of thresholds.

A path is a list of settings of a cascade, from strict to lenient: one threshold per stage but the last. It is chosen
without a look at the calibration rows. R(g) is the true risk at its step g, R_c(g) that of rows of true class c.

One point. At each step the null hypothesis is "R(g) > alpha, or R_c(g) > alpha_c for some class c". It is rejected when
the p-values of all its parts are at most the point's level l. Let g* be the first step of the path whose null is true,
say by part i. The walk stops at the first step that is not rejected, so the certificate is wrong only if g* is
rejected, and then part i, which is true, was: this happens with probability at most l. Neither steps nor classes have a
price (fixed-sequence testing; the classes are an intersection-union test, Berger 1982): every class must pass, so a
false promise to one class takes a false rejection of that class. Of a class's rows only the number of losses is random:
the test is about the rows given their labels.

Several points. Point j, of risk level alpha_j, is wrong with probability at most l_j, so that any is wrong with
probability at most the sum of all l_j (Bonferroni), however the points depend on each other. `multiplicity` says what
was used:

- `none`: one point, l = delta.
- `bonferroni`: l of the default point is `DEFAULT_SHARE` * delta, the others share the rest equally.
- `nested`: where escalation goes to the full model, and nothing is promised per class, an answer that is a loss at one
  step is one at every later step. Let K_j be the number of losses at g*_j, the first step with R > alpha_j: then
  alpha_1 < alpha_2 gives g*_1 <= g*_2 and K_1 <= K_2. Give every row a uniform U that is below R(g) if and only if the
  row is lost at g (possible since these events are nested). K_j counts rows with U < R(g*_j), hence at least those with
  U < alpha_j. So P(some K_j <= c_j) is at most P(some #{U < alpha_j} <= c_j), which is computed exactly
  (`joint_error`). The default point keeps its level, the others get the highest common one at which this stays within
  delta: more than Bonferroni leaves them, as one unlucky sample makes all points wrong together.

What the default point pays for the company of others: its level is 0.8 delta instead of delta, so its promise holds
with more confidence than was asked for. In exchange one may go from point to point as one likes, load or deadline
deciding, since with confidence 1 - delta all of them hold at once. With `points: []` it has delta to itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr
from scipy.stats import binom

from lspm_ray.errors import CertificateError
from lspm_ray.selection.plan import ClassBound, OperatingPoint
from lspm_ray.selection.risk import (
    ACCEPT_ALL,
    REFUSED,
    Bools,
    Certified,
    Floats,
    minimum_rows,
    p_value,
    tested,
    threshold_grid,
    upper_bound,
)

Multiplicity = Literal["none", "nested", "bonferroni"]
Ints = NDArray[np.int64]

DEFAULT_SHARE = 0.8
"""Of delta, for the default point: what is served nearly always should pay least for the others."""
_MOST_STATES = 600
"""Losses up to which `joint_error` is exact; its time grows with their square."""


@dataclass(frozen=True)
class Wanted:
    """What is to be certified.

    Attributes:
        alpha: risk level of the default point.
        points: further ones.
        delta: chance that any promise is false.
        per_class: class index -> risk level of its rows; empty for none.
    """

    alpha: float
    points: Sequence[float]
    delta: float
    per_class: Mapping[int, float]

    @property
    def alphas(self) -> list[float]:
        """Of all points, from strict to lenient."""
        return sorted({self.alpha, *self.points})


@dataclass(frozen=True)
class Walk:
    """What happens to the calibration rows at each step of a path.

    Attributes:
        path: thresholds, strict to lenient [steps, stages - 1].
        rows: how many there are.
        losses: rows whose answer is a loss [steps].
        escalated: rows that each stage but the last passes on [steps, stages - 1].
        class_rows: rows of each true class [classes].
        class_losses: losses among them [steps, classes].
        nested: a row that is lost at a step is lost at every later one.
        checked: answers may be refused whatever their score, so that no threshold lets the first stage serve alone.
    """

    path: Floats
    rows: int
    losses: Ints
    escalated: Ints
    class_rows: Ints
    class_losses: Ints
    nested: bool
    checked: bool = False


@dataclass(frozen=True)
class PointSet:
    """What was certified.

    Attributes:
        points: from strict to lenient; without a default one nothing may be accepted.
        multiplicity: how delta was shared.
        left_out: risk level, as text -> why there is no point for it.
    """

    points: list[OperatingPoint]
    multiplicity: Multiplicity
    left_out: dict[str, str]

    @property
    def default(self) -> OperatingPoint | None:
        """The point of `alpha`."""
        return next((point for point in self.points if point.default), None)


def tied_path(scores: Sequence[NDArray[np.floating[Any]]], size: int, tie: float = 1.0) -> Floats:
    """A path of thresholds [steps, stages], strictly descending in the first column, ending with accepting all.

    Where the first stage's threshold is the q-quantile of its scores, the next one's is its own q ** `tie`-quantile:
    one parameter, so that one sequence of tests does for all stages.

    Args:
        scores: of the selection rows, per stage but the last, [rows] each; those that are `REFUSED` do not count.
        size: most steps.
        tie: above 1 the later stages are more lenient than the first, below 1 stricter.

    Raises:
        CertificateError: scores that are not finite.
    """
    kept = [values[values > REFUSED] for values in scores]
    if any(len(values) == 0 for values in kept):
        return np.full((1, len(scores)), ACCEPT_ALL)
    first = threshold_grid(kept[0], size)
    # What share of the rows lies below each threshold.
    q = np.searchsorted(np.sort(kept[0]), first[:-1], side="left") / len(kept[0])
    columns = [first]
    for further in kept[1:]:
        threshold_grid(further, 2)  # refuses what is not finite
        columns.append(np.append(np.quantile(further, q**tie, method="inverted_cdf"), ACCEPT_ALL))
    return np.stack(columns, axis=1).astype(np.float64)


def answered_by(scores: Sequence[NDArray[np.floating[Any]]], thresholds: Sequence[float] | Floats) -> Ints:
    """Which stage answers each row, [rows]: the first whose score reaches its threshold, else the last.

    Args:
        scores: of each stage but the last, [rows] each.
        thresholds: of the same stages.
    """
    accepted = np.stack([values >= threshold for values, threshold in zip(scores, thresholds, strict=True)])
    return np.where(accepted.any(axis=0), accepted.argmax(axis=0), len(scores)).astype(np.int64)


def walk(
    scores: Sequence[NDArray[np.floating[Any]]],
    lost: Sequence[Bools | None],
    path: Floats,
    labels: NDArray[np.int64],
    classes: int,
    *,
    checked: bool = False,
) -> Walk:
    """Send the rows through the cascade at each step of a path.

    Args:
        scores: of each stage but the last, [rows] each.
        lost: whether the answer of each stage would be a loss, [rows] each; None for the full model, which loses
            nothing against itself.
        path: thresholds [steps, stages - 1].
        labels: true classes [rows].
        classes: how many there are.
        checked: see `Walk`.

    Raises:
        CertificateError: they do not cover the same rows, or scores are not finite.
        ValueError: not one score and one threshold for every stage but the last.
    """
    rows, stages = len(labels), len(lost)
    if not len(scores) == stages - 1 == path.shape[1]:
        raise ValueError("there must be one score and one threshold for every stage but the last")
    parts = [np.zeros(rows, dtype=bool) if part is None else part for part in lost]
    if any(len(part) != rows for part in (*scores, *parts)):
        raise CertificateError("scores, losses and labels must cover the same rows", field="calibration rows")
    if not all(np.isfinite(values).all() for values in scores):
        raise CertificateError("scores are NaN or infinite", field="calibration scores")
    losses, escalated = np.zeros(len(path), dtype=np.int64), np.zeros(path.shape, dtype=np.int64)
    class_losses = np.zeros((len(path), classes), dtype=np.int64)
    losing, every = np.stack(parts), np.arange(rows)
    for step, thresholds in enumerate(path):
        by = answered_by(scores, thresholds)
        now = losing[by, every]
        escalated[step] = [(by > stage).sum() for stage in range(stages - 1)]
        losses[step] = now.sum()
        class_losses[step] = np.bincount(labels[now], minlength=classes)
    return Walk(
        path=path,
        rows=rows,
        losses=losses,
        escalated=escalated,
        class_rows=np.bincount(labels, minlength=classes).astype(np.int64),
        class_losses=class_losses,
        nested=stages == 2 and lost[-1] is None,
        checked=checked,
    )


def curve(walked: Walk, found: PointSet, wanted: Wanted) -> Certified:
    """Every step of the path as the default point's test saw it, for plots."""
    level = found.default.level if found.default else wanted.delta
    passed = np.arange(len(walked.path)) < _passed(walked, wanted.alpha, level, wanted.per_class)
    first = walked.path[:, 0]
    return tested(first, walked.losses, walked.escalated[:, 0], walked.rows, wanted.alpha, level, passed)


def certify(walked: Walk, wanted: Wanted, names: Sequence[str]) -> PointSet:
    """The most lenient certified step for every risk level: see the top of this module.

    A level whose own step is stricter than that of a stricter level takes that one: what keeps the stricter promise
    keeps the other.

    Args:
        walked: the calibration rows.
        wanted: what to certify.
        names: of the classes.

    Raises:
        CertificateError: too few rows for the default point, in all or of a class.
    """
    check_rows(walked.rows, walked.class_rows, wanted, names)
    levels, left_out = share(walked, wanted, names)
    points: list[OperatingPoint] = []
    best: tuple[int, float] | None = None
    for alpha, level in levels.items():
        passed = _passed(walked, alpha, level, wanted.per_class)
        if passed and (best is None or passed - 1 > best[0]):
            best = (passed - 1, level)
        if best is None:
            left_out[repr(alpha)] = "no threshold keeps it on the calibration rows"
        else:
            points.append(_point(walked, *best, alpha, wanted, names))
    multiplicity: Multiplicity = (
        "none" if len(levels) == 1 else "nested" if _is_nested(walked, wanted) else "bonferroni"
    )
    return PointSet(_useful(points, left_out), multiplicity, left_out)


def share(walked: Walk, wanted: Wanted, names: Sequence[str]) -> tuple[dict[float, float], dict[str, str]]:
    """Levels of the points that can be had at all, from strict to lenient, and why the others cannot.

    It looks at the numbers of rows only, not at losses.
    """
    alphas = wanted.alphas
    left_out: dict[str, str] = {}
    while True:
        levels = _levels(alphas, wanted, walked.rows, nested=_is_nested(walked, wanted))
        short = {alpha: missing_rows(alpha, level, walked, wanted, names) for alpha, level in levels.items()}
        if len(alphas) == 1 or not any(short.values()):
            return levels, left_out
        if short[wanted.alpha]:
            # The default point needs all of delta.
            dropped = [alpha for alpha in alphas if alpha != wanted.alpha]
        else:
            dropped = [next(alpha for alpha in alphas if short[alpha])]
        for alpha in dropped:
            left_out[repr(alpha)] = short[alpha] or f"the rows are only just enough for alpha = {wanted.alpha:g}"
        alphas = [alpha for alpha in alphas if alpha not in dropped]


def missing_rows(alpha: float, level: float, walked: Walk, wanted: Wanted, names: Sequence[str]) -> str:
    """What is missing to certify a point at all, in words; empty if nothing is."""
    found = []
    if walked.rows < (needed := minimum_rows(alpha, level)):
        found.append(f"needs {needed:,} calibration rows, there are {walked.rows:,}")
    for index, own in wanted.per_class.items():
        if walked.class_rows[index] < (needed := minimum_rows(own, level)):
            found.append(f"class {names[index]!r} needs {needed:,} rows, there are {walked.class_rows[index]:,}")
    return "; ".join(found)


def check_rows(rows: int, class_rows: Sequence[int] | Ints, wanted: Wanted, names: Sequence[str]) -> None:
    """Refuse a promise that so many calibration rows can never back.

    Args:
        rows: calibration rows.
        class_rows: of each class.
        wanted: what is to be certified.
        names: of the classes.

    Raises:
        CertificateError: says how many rows are needed, in all or by class.
    """
    needed = minimum_rows(wanted.alpha, wanted.delta)
    if rows < needed:
        raise CertificateError(
            f"alpha = {wanted.alpha:g} at delta = {wanted.delta:g} needs at least {needed:,} calibration rows, "
            f"there are {rows:,}",
            field="select.alpha",
            hint="Give more data, a larger share to data.splits.calibration, or a larger alpha",
        )
    short = [
        f"{names[index]!r} {class_rows[index]:,} of {minimum_rows(alpha, wanted.delta):,}"
        for index, alpha in wanted.per_class.items()
        if class_rows[index] < minimum_rows(alpha, wanted.delta)
    ]
    if short:
        raise CertificateError(
            f"too few calibration rows to promise anything about some classes: {', '.join(short)} that it takes",
            field="select.per_class",
            hint="Give more data or a larger alpha, or name these classes under select.per_class.without",
        )


def joint_error(alphas: Sequence[float], criticals: Sequence[int], n: int) -> float:
    """P(for some j, at most criticals[j] of n uniform numbers lie below alphas[j]); alphas ascend.

    Exact, by going through the alphas: given the count below one, the growth up to the next is binomial. Where counts
    are too large for that in reasonable time, the sum of the single probabilities, which is never less.
    """
    most = max(criticals)
    if most > _MOST_STATES:
        return min(1.0, sum(float(bdtr(c, n, a)) for a, c in zip(alphas, criticals, strict=True) if c >= 0))
    counts = np.arange(most + 1)
    # Counts above `most` can no longer become an error, so their probability may be dropped.
    states: Floats = binom.pmf(counts, n, alphas[0])
    error, before = 0.0, alphas[0]
    for position, (alpha, critical) in enumerate(zip(alphas, criticals, strict=True)):
        if position:
            growth = counts[None, :] - counts[:, None]
            states = states @ binom.pmf(growth, n - counts[:, None], (alpha - before) / (1 - before))
            before = alpha
        error += float(states[: critical + 1].sum())
        states[: critical + 1] = 0
    return error


def critical_losses(n: int, alpha: float, level: float) -> int:
    """The most losses in n rows that certify `alpha` at `level`; -1 if not even none does."""
    k = int(binom.ppf(level, n, alpha))
    while k >= 0 and p_value(k, n, alpha) > level:
        k -= 1
    return k


def _levels(alphas: Sequence[float], wanted: Wanted, rows: int, *, nested: bool) -> dict[float, float]:
    if len(alphas) == 1:
        return {alphas[0]: wanted.delta}
    own = DEFAULT_SHARE * wanted.delta
    rest = (wanted.delta - own) / (len(alphas) - 1)
    if nested:
        rest = _common_level(tuple(alphas), wanted.alpha, wanted.delta, rows)
    return {alpha: own if alpha == wanted.alpha else rest for alpha in alphas}


@lru_cache
def _common_level(alphas: tuple[float, ...], default: float, delta: float, rows: int) -> float:
    """The highest level of the points beside the default at which all are right together with 1 - delta."""
    own = DEFAULT_SHARE * delta
    low, high = (delta - own) / (len(alphas) - 1), own
    for _ in range(16):
        middle = (low + high) / 2
        levels = [own if alpha == default else middle for alpha in alphas]
        criticals = [critical_losses(rows, alpha, level) for alpha, level in zip(alphas, levels, strict=True)]
        if joint_error(alphas, criticals, rows) <= delta:
            low = middle
        else:
            high = middle
    return low


def _is_nested(walked: Walk, wanted: Wanted) -> bool:
    return walked.nested and not wanted.per_class


def _passed(walked: Walk, alpha: float, level: float, per_class: Mapping[int, float]) -> int:
    """How many steps from the first are certified."""
    passed = bdtr(walked.losses, walked.rows, alpha) <= level
    for index, own in per_class.items():
        passed &= bdtr(walked.class_losses[:, index], walked.class_rows[index], own) <= level
    return int(np.logical_and.accumulate(passed).sum())


def _point(walked: Walk, step: int, level: float, alpha: float, wanted: Wanted, names: Sequence[str]) -> OperatingPoint:
    lost, n = int(walked.losses[step]), walked.rows
    first, *middle = walked.path[step].tolist()
    shares = (walked.escalated[step] / n).tolist()
    alone = first == ACCEPT_ALL and not walked.checked and not walked.escalated[step, 0]
    return OperatingPoint(
        alpha=alpha,
        level=level,
        threshold=None if alone else first,
        middle_thresholds=[] if alone else middle,
        losses=lost,
        p_value=p_value(lost, n, alpha),
        upper_bound=upper_bound(lost, n, level),
        escalation_rate=shares[0],
        middle_escalation_rates=[] if alone else shares[1:],
        classes=[
            class_bound(names[index], own, int(walked.class_rows[index]), int(walked.class_losses[step, index]), level)
            for index, own in wanted.per_class.items()
        ],
        default=alpha == wanted.alpha,
    )


def class_bound(label: str, alpha: float, rows: int, losses: int, level: float) -> ClassBound:
    """What is known of one class."""
    return ClassBound(
        label=label,
        alpha=alpha,
        rows=rows,
        losses=losses,
        p_value=p_value(losses, rows, alpha),
        upper_bound=upper_bound(losses, rows, level),
    )


def _useful(points: list[OperatingPoint], left_out: dict[str, str]) -> list[OperatingPoint]:
    """Without a second model, which a plan whose default accepts everything has not, other points mean nothing."""
    default = next((point for point in points if point.default), None)
    if default is None or default.threshold is not None:
        return points if default is not None else []
    for point in points:
        if not point.default:
            left_out[repr(point.alpha)] = f"the first variant answers alone within alpha = {default.alpha:g} already"
    return [default]
