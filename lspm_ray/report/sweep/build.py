"""The page of a sweep, as a file of its artifact."""

from __future__ import annotations

from collections.abc import Mapping

from lspm_ray.artifact import Artifact, Draft
from lspm_ray.report.build import PAGE_FILE
from lspm_ray.report.findings import Source
from lspm_ray.report.sweep.page import render
from lspm_ray.tuning.sweep import Sweep


def write_sweep_report(draft: Draft, sweep: Sweep, sources: Mapping[str, Artifact], command: str) -> None:
    """Write `report.html` (self-contained, no JavaScript) into the artifact of a sweep.

    Args:
        draft: of the sweep's artifact.
        sweep: what the page shows.
        sources: role -> artifact that every trial began from.
        command: trains the winner; empty without one.
    """
    lineage = [Source.of(role, artifact) for role, artifact in sources.items()]
    (draft.path / PAGE_FILE).write_text(render(sweep, lineage, command), encoding="utf-8")
