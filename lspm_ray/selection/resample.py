"""How often the whole procedure breaks its promise on this task, by doing it over and over on other rows.

All held-out rows of a task together (selection, calibration, test) stand for the population. Each round draws
selection and calibration rows from them, fits calibrator, validator and checks, lays the path, certifies, and looks at
what came true.

`drawn`: rows are drawn with replacement, and the pool is the population. So the true risk is known without error, and
rows are independent, as the theorem wants: more wrong rounds than delta and sampling error explain mean that the
procedure is broken.
`split`: the pool is divided at random, and the risk is measured on the rows left over. These are few, so a promise
that is kept can look broken: the rate is larger than that of `drawn` and is no test of delta.

Neither can show anything about traffic that is unlike the pool, about models that were trained on its rows, or about
the choice among variants and of the tie of three stages, which are kept as they were made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from lspm_ray.config import Config
from lspm_ray.progress import Report
from lspm_ray.selection.options import Rows
from lspm_ray.selection.plan import OperatingPoint
from lspm_ray.selection.points import Walk, Wanted, certify, missing_rows, tied_path, walk
from lspm_ray.selection.risk import RiskKind
from lspm_ray.selection.scorer import Scorer

_CONFIDENCE = 0.95


class Rate(Config):
    """Share of rounds with a false promise.

    Attributes:
        wrong: rounds in which any promise was false.
        default_wrong: rounds in which that of the default point was.
        runs: all rounds; one without a certificate is not wrong.
        low: of the exact 95 % interval of the share.
        high: the same.
    """

    wrong: int
    default_wrong: int
    runs: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Share of wrong rounds."""
        return self.wrong / self.runs


class Resampled(Config):
    """What `resample` found.

    Attributes:
        delta: what was promised.
        rows: of the pool.
        drawn: the pool is the population.
        split: the risk is measured on the rows that are left.
        issued: share of rounds (drawn) that certified the default point.
        escalation_rate: mean over these.
    """

    delta: float
    rows: int
    drawn: Rate
    split: Rate
    issued: float
    escalation_rate: float

    @property
    def ok(self) -> bool:
        """Whether the data are compatible with at most delta wrong rounds."""
        return self.drawn.low <= self.delta


def pool(parts: list[Rows]) -> Rows:
    """Rows of several splits together."""
    join = np.concatenate
    return Rows(
        join([part.labels for part in parts]),
        [join(logits) for logits in zip(*(part.stages for part in parts), strict=True)],
        join([part.full for part in parts]),
        [row for part in parts for row in part.inputs],
        None if parts[0].texts is None else [text for part in parts for text in part.texts or []],
    )


def resample(
    pooled: Rows,
    sizes: tuple[int, int],
    fit: Callable[[Rows], list[Scorer]],
    wanted: Wanted,
    risk: RiskKind,
    *,
    last_is_full: bool,
    grid_size: int,
    runs: int,
    report: Report,
    tie: float = 1.0,
) -> Resampled:
    """Do the procedure `runs` times in both ways.

    Args:
        pooled: all held-out rows.
        sizes: of the selection and the calibration split.
        fit: learns from selection rows how far the answers of every stage but the last can be trusted.
        wanted: what is certified.
        risk: which loss.
        last_is_full: escalation goes to the full model.
        grid_size: steps of the path.
        runs: rounds.
        report: progress.
        tie: of the path.
    """
    world = _World(pooled, fit, wanted, pooled.lost(risk, last_is_full=last_is_full), grid_size, tie)
    random, n = np.random.default_rng(0), len(pooled.labels)
    selected = sizes[0] + sizes[1]
    everything = np.arange(n)
    counts = {"drawn": [0, 0], "split": [0, 0]}
    rates: list[float] = []
    for number in range(runs):
        report(f"verify: procedure {number + 1}/{runs}")
        drawn, order = random.integers(n, size=selected), random.permutation(n)
        for way, rows, rest in (("drawn", drawn, everything), ("split", order[:selected], order[selected:])):
            wrong, default_wrong, default = world.broken(rows[: sizes[0]], rows[sizes[0] :], rest)
            counts[way][0] += wrong
            counts[way][1] += default_wrong
            if way == "drawn" and default is not None:
                rates.append(default.escalation_rate)
    return Resampled(
        delta=wanted.delta,
        rows=n,
        drawn=_rate(counts["drawn"], runs),
        split=_rate(counts["split"], runs),
        issued=len(rates) / runs,
        escalation_rate=float(np.mean(rates)) if rates else 1.0,
    )


def _rate(counted: list[int], runs: int) -> Rate:
    wrong, default_wrong = counted
    interval = binomtest(wrong, runs).proportion_ci(_CONFIDENCE, method="exact")
    return Rate(wrong=wrong, default_wrong=default_wrong, runs=runs, low=interval.low, high=interval.high)


class _World:
    def __init__(
        self,
        pooled: Rows,
        fit: Callable[[Rows], list[Scorer]],
        wanted: Wanted,
        lost: list[NDArray[np.bool_] | None],
        grid_size: int,
        tie: float,
    ) -> None:
        self.pooled, self.fit, self.wanted, self.lost = pooled, fit, wanted, lost
        self.grid_size, self.tie = grid_size, tie
        self.names = [str(index) for index in range(pooled.full.shape[1])]

    def broken(
        self, selection: NDArray[np.int64], calibration: NDArray[np.int64], rest: NDArray[np.int64]
    ) -> tuple[bool, bool, OperatingPoint | None]:
        """Whether any promise is false on `rest`, whether the default's is, and the default point."""
        scorers = self.fit(self.pooled.take(selection))
        scores = self.pooled.all_scores(scorers)
        path = tied_path([values[selection] for values in scores], self.grid_size, self.tie)
        walked = self._walk(scores, path, calibration, checked=bool(scorers[0].checks))
        wanted = self._possible(walked)
        if wanted is None:
            return False, False, None
        found = certify(walked, wanted, self.names)
        steps = [_step(path, point) for point in found.points]
        truth = self._walk(scores, path[steps], rest)
        false = [self._false(truth, position, point) for position, point in enumerate(found.points)]
        default = [wrong for wrong, point in zip(false, found.points, strict=True) if point.default]
        return any(false), any(default), found.default

    def _walk(
        self,
        scores: list[NDArray[np.float64]],
        path: NDArray[np.float64],
        rows: NDArray[np.int64],
        *,
        checked: bool = False,
    ) -> Walk:
        lost = [None if part is None else part[rows] for part in self.lost]
        some = [values[rows] for values in scores]
        return walk(some, lost, path, self.pooled.labels[rows], len(self.names), checked=checked)

    def _possible(self, walked: Walk) -> Wanted | None:
        """What these rows can back at all: a round may have too few of a class, and then certifies nothing."""
        short = missing_rows(self.wanted.alpha, self.wanted.delta, walked, self.wanted, self.names)
        return None if short else self.wanted

    def _false(self, truth: Walk, position: int, point: OperatingPoint) -> bool:
        if truth.losses[position] / truth.rows > point.alpha:
            return True
        return any(
            truth.class_losses[position, index] / max(1, truth.class_rows[index]) > alpha
            for index, alpha in self.wanted.per_class.items()
        )


def _step(path: NDArray[np.float64], point: OperatingPoint) -> int:
    return len(path) - 1 if point.threshold is None else int(np.flatnonzero(path[:, 0] == point.threshold)[0])
