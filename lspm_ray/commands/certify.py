"""`lspm certify`: the plan's promise, on fresh labelled traffic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lspm_ray.artifact import ArtifactStore
from lspm_ray.commands.console import StageView, table
from lspm_ray.commands.run import settings_from
from lspm_ray.commands.serve import selected
from lspm_ray.corpus.config import DataConfig
from lspm_ray.selection.recertify import history, recertify
from lspm_ray.settings import Settings


def certify(config: Path, overrides: Sequence[str], labels: str, alpha: float | None, *, quiet: bool = False) -> None:
    """Certify the newest plan of a run again, and list all versions.

    Raises:
        UserError: the run has no plan yet, the file cannot be used, or its rows do not keep the promise.
    """
    settings = settings_from(config, overrides)
    view, store = StageView(quiet=quiet), ArtifactStore(settings.output)
    present = selected(settings, config, overrides)
    with store.exclusive(), view.stage("certify") as finish:
        made = recertify(present, labelled(settings, labels), store, view, alpha)
        finish(Path(made.uri).name)
    rows = []
    for version in history(made):
        said = version.certificate
        promise = f"{said.risk} <= {said.alpha:g} at {1 - said.delta:.0%}"
        counted = f"{said.losses} losses in {version.rows:,} rows"
        rows.append([version.created_utc[:19], version.id, promise, counted, f"{said.escalation_rate:.1%}"])
    table(["issued (UTC)", "certificate", "promise", "evidence", "escalated"], rows)
    print(f"next: {' '.join(['lspm', 'serve', str(config), *overrides])}")


def labelled(settings: Settings, file: str) -> DataConfig:
    """How to read a file with the columns of the corpus."""
    data = settings.labelled
    named = {"text": data.text, "label": data.label, "labels": data.labels, "csv": data.csv.model_dump()}
    return DataConfig.parse({"source": file, **named})
