"""Where documents were lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw, fitted
from lspm_ray.report.text.findings import Documents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_REASONS = 12

Bar = tuple[str, int, int, str]
"""Label, where it begins, how long it is, colour."""


def kept(found: Documents, *, anchor: str) -> Html:
    """From the documents read to those kept, one bar for each reason to drop some."""
    bars = waterfall(found)
    text = "; ".join(f"{label}: {length:,}" for label, _, length, _ in bars)
    caption = Caption(anchor, "Documents read, dropped by reason, and kept", text)
    height = 0.5 + 0.3 * len(bars)
    return draw(lambda figure: _paint_kept(figure, bars), 9.0, height, caption)


def waterfall(found: Documents) -> list[Bar]:
    """The bars from top to bottom; each reason takes its share off the end of what is left."""
    losses = found.losses
    if len(losses) > _MOST_REASONS:
        others = losses[_MOST_REASONS - 1 :]
        losses = [*losses[: _MOST_REASONS - 1], (f"{len(others)} other reasons", sum(n for _, n in others))]
    bars, left = [("read", 0, found.documents_read, LIGHT["muted"])], found.documents_read
    for reason, number in losses:
        left -= number
        bars.append((reason, left, number, LIGHT["series-2"]))
    begin = 0
    for split, size in found.splits.items():
        bars.append((f"kept for {split}", begin, size.documents, LIGHT["good"]))
        begin += size.documents
    return bars


def _paint_kept(figure: Figure, bars: list[Bar]) -> None:
    axes = figure.add_subplot()
    whole = max(1, bars[0][2])
    for place, (_, begin, length, colour) in enumerate(bars):
        axes.barh(place, length, left=begin, height=0.72, color=colour, linewidth=0)
        axes.annotate(
            f"{length:,} ({100 * length / whole:.1f} %)", (begin + length, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), labels=[fitted(label, 34) for label, *_ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.2 * whole)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
