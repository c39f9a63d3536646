"""An e-process for "the mean of these 0/1 losses is at most `level`", made of counts alone.

Let X_1, X_2, ... be the losses of sampled answers, in the order in which they were sampled. The hypothesis is
E[X_i | past] <= level for every i: the rate may wander below the level in any way, also as an answer to the past.

1.  For an alternative p > level, the product of p / level (a loss) and (1 - p) / (1 - level) (none) is a test
    supermartingale: its factor has the conditional mean mu p / level + (1 - mu) (1 - p) / (1 - level), which grows with
    mu and is 1 at mu = level. It is the bet of Waudby-Smith and Ramdas (2024, "Estimating means of bounded random
    variables by betting", section 4) of the share (p - level) / (level (1 - level)), and Wald's likelihood ratio. Its
    value depends on the number of losses k and of rows n alone, not on their order.
2.  The average over several p, fixed in advance, is again a supermartingale (method of mixtures: Robbins 1970; Howard,
    Ramdas, McAuliffe, Sekhon 2021), and again a function of (k, n).
3.  A stream that was clean for long has driven that value so low that it would take as long to come back. So one such
    process is begun at every block of rows, as in e-detectors (Shin, Ramdas, Rinaldo 2023), but with weights that sum
    to one instead of with equal ones: a process that is 1 until block s and bets from there on is a supermartingale,
    and so is the weighted sum W = sum_s w_s E_s. An e-detector bounds how often it gives false alarms; W has one in
    all its life with probability at most delta, which costs log(1 / w_s), about log s + 2 log log s, of evidence.
4.  Ville (1939): P(W ever reaches 1 / delta) <= delta, however long it runs and whenever one looks.

A start s = odd * 2^j is given up after LIFE * 2^j blocks, so that about LIFE / 2 * log2(blocks) of them are alive; its
value is then left out, which only makes W smaller. A change is still met by a start at most 2 / LIFE of the time since
it too early or late. A block is a stamp that a row has before its loss is known; rows of one start are those with
stamps not below s, in whatever order they arrive, so the counts of several observers may simply be added up.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK_ROWS = 32
"""Sampled answers per block: at the usual levels (0.5 % to 5 %) few losses, so no start is far from a change."""
LIFE = 16
"""Blocks that a start at an odd block lives; one at an odd multiple of 2^j lives 2^j times as long."""
_FIRST_ODDS, _STEP, _LARGEST = 1.25, 1.5, 0.75


@functools.lru_cache(maxsize=16)
def alternatives(level: float) -> Floats:
    """The loss rates that are bet on: their odds are 1.25, 1.25 * 1.5, ... times those of `level`, up to 75 % losses.

    Between two neighbours at most a few percent of the evidence per row is lost.
    """
    odds = level / (1 - level)
    most = max(_LARGEST / (1 - _LARGEST), _FIRST_ODDS * odds)
    ratios = _FIRST_ODDS * odds * _STEP ** np.arange(math.floor(math.log(most / odds / _FIRST_ODDS, _STEP)) + 1)
    found: Floats = ratios / (1 + ratios)
    return found


def log_evidence(losses: Integers, rows: Integers, level: float) -> Floats:
    """Logarithm of the mixture over `alternatives`: 0 without rows, large where there are too many losses.

    Args:
        losses: int [...], among `rows`.
        rows: int [...].
        level: largest mean of the hypothesis, between 0 and 1.
    """
    p = alternatives(level)
    lost, kept = np.asarray(losses)[..., None], np.asarray(rows - losses)[..., None]
    logs = lost * np.log(p / level) + kept * np.log((1 - p) / (1 - level))
    evidence: Floats = logsumexp(logs, axis=-1) - math.log(len(p))
    return evidence


@functools.lru_cache(maxsize=4096)
def live_starts(block: int) -> Integers:
    """The blocks, ascending, at which a process began that is still bet on in block `block`; 0 always is one."""
    found = [0]
    step = 1
    while step <= block:
        first = max(block - LIFE * step + 1, 1)
        first = -(-first // step) * step
        first += step if first // step % 2 == 0 else 0
        found += range(first, block + 1, 2 * step)
        step *= 2
    return np.array(sorted(found), dtype=np.int64)


def log_weights(starts: Integers) -> Floats:
    """Logarithm of w_s = 1 / log(e + s) - 1 / log(e + s + 1); these sum to 1 over all s >= 0."""
    weights: Floats = np.log(_reserve(starts) - _reserve(starts + 1))
    return weights


def log_wealth(losses: Integers, rows: Integers, block: int, level: float) -> float:
    """Logarithm of W after block `block`; the hypothesis is rejected at `delta` once it reaches log(1 / delta).

    Args:
        losses: int [starts], with stamps not below each of `live_starts(block)`.
        rows: int [starts].
        block: the latest stamp that may have been given.
        level: largest mean of the hypothesis.
    """
    logs = log_weights(live_starts(block)) + log_evidence(losses, rows, level)
    # Processes that have not begun yet are worth 1 each.
    return float(logsumexp(np.append(logs, math.log(_reserve(np.array([block + 1]))[0]))))


def _reserve(starts: Integers) -> Floats:
    reserve: Floats = 1 / np.log(math.e + starts)
    return reserve
