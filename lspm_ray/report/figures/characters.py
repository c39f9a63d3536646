"""How long the documents are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw, log_axis
from lspm_ray.report.text.findings import Documents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BIN = 2**0.25
"""Where a bin ends, over where it begins."""


def character_lengths(found: Documents, *, anchor: str) -> Html:
    """Histogram of the characters per document, over all splits, on a logarithmic axis."""
    train = found.characters["train"]
    text = f"median {train.p50:,}, 95th percentile {train.p95:,}, longest {train.max:,} characters in train"
    caption = Caption(anchor, "Length of the documents in characters", text)
    return draw(lambda figure: _paint(figure, found), 7.4, 3.2, caption)


def joined_bins(found: Documents) -> list[tuple[float, int]]:
    """The bins of all splits together: where each begins, and how many documents are in it."""
    total: Counter[float] = Counter()
    for lengths in found.characters.values():
        for begin, number in lengths.bins:
            total[begin] += number
    return sorted(total.items())


def _paint(figure: Figure, found: Documents) -> None:
    axes = figure.add_subplot()
    bins = joined_bins(found)
    begins = [begin for begin, _ in bins]
    counts = [number for _, number in bins]
    axes.bar(
        begins, counts, width=[begin * (_BIN - 1) * 0.94 for begin in begins], align="edge",
        color=LIGHT["series-1"], linewidth=0,
    )  # fmt: skip
    log_axis(axes, "x", [begins[0], begins[-1] * _BIN], margin=1.15)
    axes.set_ylim(0, 1.15 * max(counts))
    train = found.characters["train"]
    for value, label, height in ((train.p50, "median", 0.99), (train.p95, "95 %", 0.99)):
        axes.axvline(value, color=LIGHT["ink"], linestyle=":", linewidth=1)
        axes.annotate(
            f"{label}: {value:,}", (value, height), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", va="top", fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("length, characters (log scale)")
    axes.set_ylabel("documents")
    axes.grid(visible=False, axis="x")
