"""What is served at which load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw, log_axis
from lspm_ray.selection.gears import GearTable, Shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gear_plot(table: GearTable, *, anchor: str) -> Html:
    """Predicted p99 and CPUs of the gear for each request rate; rates without a gear are crossed out."""
    found = [s for s in table.shifts if s.gear is not None]
    none = [s for s in table.shifts if s.gear is None]
    text = "; ".join(f"{s.rate:g} requests/s: {s.gear.cpus:g} CPUs" for s in found if s.gear)
    text += "".join(f"; {s.rate:g} requests/s: none" for s in none)
    caption = Caption(anchor, f"Gears for a p99 of {table.slo_ms:g} ms by request rate", text.removeprefix("; "))
    return draw(lambda figure: _paint(figure, table), 7.4, 4.6, caption)


def _paint(figure: Figure, table: GearTable) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rates = [s.rate for s in table.shifts]
    found = [s for s in table.shifts if s.gear and s.expected]
    upper.plot(
        [s.rate for s in found], [s.expected.p99_ms for s in found if s.expected], color=LIGHT["accent"], linewidth=1.4
    )
    for shift in found:
        _dot(upper, shift)
    upper.axhline(table.slo_ms, color=LIGHT["alert"], linestyle="--")
    upper.annotate(
        f"{table.slo_ms:g} ms allowed", (0.01, table.slo_ms), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", color=LIGHT["alert"], fontsize=8.5,
    )  # fmt: skip
    upper.set_ylim(0, 1.25 * table.slo_ms)
    upper.set_ylabel("p99 predicted, ms")
    lower.step(
        [s.rate for s in found], [s.gear.cpus for s in found if s.gear], where="post", color=LIGHT["ink"], marker="."
    )
    lower.set_ylim(0, 1.2 * max((s.gear.cpus for s in found if s.gear), default=1))
    lower.set_ylabel("CPUs")
    log_axis(lower, "x", rates)
    lower.set_xlabel("requests per second (log scale)")
    for axes in (upper, lower):
        for shift in table.shifts:
            if shift.gear is None:
                axes.axvline(shift.rate, color=LIGHT["alert"], linestyle=":", linewidth=1)


def _dot(axes: Axes, shift: Shift) -> None:
    gear, expected = shift.gear, shift.expected
    assert gear is not None and expected is not None  # noqa: S101
    colour = LIGHT["series-2"] if gear.degraded else LIGHT["accent"]
    axes.plot([shift.rate], [expected.p99_ms], "o", color=colour, markersize=6, zorder=4)
    how = "full" if gear.alpha is None else f"{100 * gear.alpha:g} %"
    axes.annotate(
        how, (shift.rate, expected.p99_ms), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8.5
    )
