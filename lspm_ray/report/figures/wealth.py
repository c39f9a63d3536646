"""The audit of live traffic: the evidence against the certificate over time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lspm_ray.audit.keeper import Status
from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE_IN = (8.0, 3.2)
_COLOURS = {"disagreement": LIGHT["series-1"], "regret": LIGHT["series-2"]}
_NATS_PER_DECADE = math.log(10)


def wealth(status: Status, *, anchor: str) -> Html:
    """Evidence by sampled answers, with the line at which the certificate is revoked."""
    found = "; ".join(f"{e.loss}: {e.losses} in {status.rows} sampled answers" for e in status.evidence)
    caption = Caption(anchor, "Evidence against the certificate", f"The certificate {status.verdict}. {found}")
    return draw(lambda figure: _paint(figure, status), *_SIZE_IN, caption)


def save_wealth(status: Status, path: Path) -> None:
    """The same as a file, `.svg` or `.png`."""
    save(lambda figure: _paint(figure, status), *_SIZE_IN, path)


def _paint(figure: Figure, status: Status) -> None:
    axes = figure.subplots()
    rows = [point.rows for point in status.points] + [status.rows]
    for evidence in status.evidence:
        values = [point.log_wealth.get(evidence.loss, 0.0) for point in status.points] + [evidence.log_wealth]
        decades = [value / _NATS_PER_DECADE for value in values]
        colour = _COLOURS[evidence.loss]
        label = f"{evidence.loss} above {evidence.level:.2%}"
        axes.plot(rows, decades, color=colour, drawstyle="steps-post", label=label)
    limit = max(evidence.limit for evidence in status.evidence) / _NATS_PER_DECADE
    axes.axhline(limit, color=LIGHT["alert"], linestyle="--", label=f"revokes at {10**limit:,.0f} to 1")
    if status.revoked is not None:
        axes.axvline(status.revoked.rows, color=LIGHT["alert"], linestyle=":", label="revoked")
    axes.set_xlabel("sampled answers")
    axes.set_ylabel("evidence, powers of ten")
    axes.set_xlim(0, max(rows[-1], 1) * 1.02)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2, handlelength=1.6)
