"""What so many calibration rows can certify, before anything expensive runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from lspm_ray.selection.points import DEFAULT_SHARE, Wanted
from lspm_ray.selection.risk import minimum_rows, p_value, smallest_alpha, upper_bound
from lspm_ray.selection.select import SelectConfig


def rows_needed(alpha: float, delta: float, losses: int = 0) -> int:
    """The fewest calibration rows that certify `alpha` at `delta` when `losses` of them are losses."""
    low, high = losses, max(losses + 1, minimum_rows(alpha, delta))
    while p_value(losses, high, alpha) > delta:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if p_value(losses, middle, alpha) <= delta:
            high = middle
        else:
            low = middle
    return high


def comfortable_rows(alpha: float, delta: float) -> int:
    """The fewest calibration rows that certify `alpha` with as many losses as a true risk of alpha / 2 brings.

    With `minimum_rows` alone a single loss undoes everything, and thresholds have to be far stricter than they need be.
    """
    losses, rows = 0, minimum_rows(alpha, delta)
    while losses < rows * alpha / 2:
        losses += 1
        rows = max(rows, rows_needed(alpha, delta, losses))
    return rows


def achievable(rows: int, delta: float, losses: int = 0) -> float:
    """The smallest alpha that `rows` rows certify at `delta` with so many losses among them."""
    return smallest_alpha(rows, delta) if losses == 0 else upper_bound(losses, rows, delta)


def requirements(config: SelectConfig, share: float | None) -> list[str]:
    """How many calibration rows every promise takes, a line each.

    Args:
        config: what is promised.
        share: of the corpus that becomes calibration rows; None where files say which do.
    """
    lines, wanted = [], config.model_copy(update={"per_class": None}).wanted([])
    for alpha in wanted.alphas:
        level = _level(alpha, wanted)
        kind = "" if alpha == wanted.alpha else "; left out with fewer"
        rows = minimum_rows(alpha, wanted.delta if alpha == wanted.alpha else level)
        lines.append(
            f"alpha = {alpha:g}: {_of_corpus(rows, share)} without a loss{kind}; "
            f"{_of_corpus(comfortable_rows(alpha, level), share)} with the losses of half that risk"
        )
    if config.per_class is not None:
        rows = minimum_rows(config.per_class.alpha, wanted.delta)
        lines.append(f"alpha = {config.per_class.alpha:g} per class: {_of_corpus(rows, share)} of each without a loss")
    return lines


def _of_corpus(rows: int, share: float | None) -> str:
    return f"{rows:,} calibration rows" + (f" (a corpus of {ceil(rows / share):,})" if share else "")


def prospects(rows: int, wanted: Wanted, class_rows: Sequence[int], names: Sequence[str]) -> list[str]:
    """What the calibration rows at hand can certify at best, a line each."""
    level = _level(wanted.alpha, wanted)
    expected = round(rows * wanted.alpha / 2)
    lines = [
        f"{rows:,} calibration rows certify alpha = {achievable(rows, level):.3g} at best, "
        f"{achievable(rows, level, expected):.3g} with {expected} losses"
    ]
    if wanted.per_class:
        fewest = min(wanted.per_class, key=lambda index: class_rows[index])
        lines.append(
            f"class {names[fewest]!r} has the fewest, {class_rows[fewest]:,}: "
            f"alpha = {achievable(max(1, class_rows[fewest]), level):.3g} at best"
        )
    return lines


def _level(alpha: float, wanted: Wanted) -> float:
    """That every point is sure of: Bonferroni's."""
    if len(wanted.alphas) == 1:
        return wanted.delta
    share = DEFAULT_SHARE if alpha == wanted.alpha else (1 - DEFAULT_SHARE) / (len(wanted.alphas) - 1)
    return share * wanted.delta
