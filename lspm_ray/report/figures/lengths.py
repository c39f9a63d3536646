"""How long the texts are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.report.findings import DataSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def token_lengths(data: DataSummary, *, anchor: str) -> Html:
    """Histogram of the tokens per row, over all splits."""
    train = data.token_length[data.splits[0]]
    text = f"median {train.p50}, 95th percentile {train.p95}, longest {train.max} tokens in {data.splits[0]}"
    caption = Caption(anchor, "Length of the texts in tokens", text)
    return draw(lambda figure: _paint_lengths(figure, data), 7.4, 3.2, caption)


def total_lengths(data: DataSummary, most: int = 64) -> tuple[int, list[int]]:
    """Bin width and counts over all splits, bins joined until there are at most `most`."""
    parts = [length for length in data.token_length.values() if length.counts]
    if not parts:
        return 1, [0]
    counts = [0] * max(len(p.counts) for p in parts)
    for part in parts:
        for i, n in enumerate(part.counts):
            counts[i] += n
    factor = -(-len(counts) // most)
    return parts[0].bin_width * factor, [sum(counts[i : i + factor]) for i in range(0, len(counts), factor)]


def _paint_lengths(figure: Figure, data: DataSummary) -> None:
    axes = figure.add_subplot()
    width, counts = total_lengths(data)
    start = next((i for i, n in enumerate(counts) if n), 0)
    axes.bar(
        [i * width for i in range(start, len(counts))], counts[start:], width=width * 0.92, align="edge",
        color=LIGHT["series-1"], linewidth=0,
    )  # fmt: skip
    axes.set_xlim(start * width - width, len(counts) * width + width)
    if data.max_length is not None and len(counts) * width > data.max_length:
        axes.axvline(data.max_length + width, color=LIGHT["alert"], linestyle="--", linewidth=1)
        axes.annotate(
            f"cut at {data.max_length} tokens", (data.max_length + width, 0.97), xycoords=("data", "axes fraction"),
            xytext=(-5, 0), textcoords="offset points", ha="right", va="top", color=LIGHT["alert"],
        )  # fmt: skip
    axes.set_ylim(0, 1.2 * max(1, *counts))
    axes.set_xlabel("length, tokens" + (f" (bins of {width})" if width > 1 else ""))
    axes.set_ylabel("rows")
    axes.grid(visible=False, axis="x")
