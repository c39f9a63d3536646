"""What the stage commands do: check first, connect only if something is missing, run, say what comes next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.cluster import connect, prepare_environment
from lspm_ray.commands.console import StageView, table
from lspm_ray.commands.preflight import check
from lspm_ray.config import load
from lspm_ray.errors import ConfigError
from lspm_ray.pipeline import NotMadeError, Pipeline, ReadOnlyStore
from lspm_ray.report.build import PAGE_FILE
from lspm_ray.selection.gears import read_gears
from lspm_ray.settings import Settings
from lspm_ray.sweep import NoWinnerError, read_sweep

_WORK = {"compress": ["variant", "teach", "unlabelled", "augment", "documents"], "tune": ["sweep"]}
"""Stages whose unfinished work is kept under other names."""
_NEEDS = {name: name for name in ("documents", "tokenizer", "pretrain", "tune")} | {"blocks": "tokenizer"}
"""Section that a stage needs, where it is not `data`."""
_WITHOUT_COMMAND = {"base", "text_report", "gain", "gears", "report"}
"""Stages that are made along with the next one, or by `lspm run`, and need no command of their own to go on."""


def settings_from(config: Path, overrides: Sequence[str]) -> Settings:
    """Read and validate the configuration file, and set up the environment that Ray will find.

    Raises:
        ConfigError: lists every problem.
    """
    settings = load(Settings, config, overrides)
    prepare_environment(settings.cluster)
    return settings


def run(config: Path, overrides: Sequence[str], stage: str, *, dry_run: bool = False, quiet: bool = False) -> Pipeline:
    """Run every stage up to `stage` (`run` means all) that is not done yet.

    Raises:
        UserError: anything a user can mend, before expensive work where it can be known before.
    """
    settings = settings_from(config, overrides)
    if stage == "tune" and settings.tune is not None:
        settings = settings.model_copy(update={"tune": settings.tune.model_copy(update={"use_winner": True})})
    wanted = _wanted(settings, stage)
    done = finished(settings)
    missing = [name for name in wanted if name not in done]
    view = StageView(quiet=quiet)
    if dry_run:
        for line in check(settings, missing):
            print(f"checked {line}")
        _print_plan(settings, wanted, done)
        print(f"nothing was started; next: {_command(stage, config, overrides)}")
        return Pipeline(settings, ReadOnlyStore(settings.output), view)
    if missing:
        check(settings, missing)
        log = _log_file(settings)
        with ArtifactStore(settings.output).exclusive(), connect(settings.cluster, log):
            pipeline = _run(settings, wanted, done, view)
        if not quiet:
            view.console.print(f"log of the workers: {log}", soft_wrap=True)
    else:
        pipeline = _run(settings, wanted, done, view)
    if not quiet:
        _conclude(config, overrides, stage, pipeline, view)
    return pipeline


def _wanted(settings: Settings, stage: str) -> tuple[str, ...]:
    stages = settings.stages
    if stage == "run":
        return stages
    if stage not in stages:
        needs = _NEEDS.get(stage, "data")
        raise ConfigError(
            f"this configuration has nothing to do for `{stage}`",
            field=needs,
            valid=stages,
            hint=f"Add a section `{needs}`",
        )
    return stages[: stages.index(stage) + 1]


def finished(settings: Settings) -> dict[str, Any]:
    """Stage -> its result, for the stages that need no work."""
    pipeline = Pipeline(settings, ReadOnlyStore(settings.output), lambda _: None)
    done: dict[str, Any] = {}
    for name in settings.stages:
        try:
            done[name] = pipeline.stage(name)
        except (NotMadeError, NoWinnerError):
            break
    return done


def status(config: Path, overrides: Sequence[str]) -> None:
    """Print the state of every stage and the next command."""
    settings = settings_from(config, overrides)
    done = finished(settings)
    store = ArtifactStore(settings.output)
    busy = store.busy()
    state = "running" if busy else ""
    rows = []
    for name in settings.stages:
        if name not in done:
            work = any(store.has_work(kind) for kind in _WORK.get(name, [name]))
            rows.append([name, state or ("interrupted, will resume" if work else "to do"), "", "", ""])
            state = ""
            continue
        for label, artifact in _artifacts(name, done[name]):
            manifest = artifact.manifest
            rows.append([label, "done", Path(artifact.uri).name, manifest.digest[:12], manifest.created_utc[:19]])
    print(settings.output)
    table(["stage", "state", "artifact", "digest", "made (UTC)"], rows)
    missing = [name for name in settings.stages if name not in done]
    if busy:
        print("a run is at work here")
        return
    verb = "run" if missing else next_command(settings.stages, settings.stages[-1])
    if verb is not None:
        print(f"next: {_command(verb, config, overrides)}")


def _run(settings: Settings, wanted: Sequence[str], done: dict[str, Any], view: StageView) -> Pipeline:
    pipeline = Pipeline(settings, ArtifactStore(settings.output), view)
    for name in wanted:
        with view.stage(name) as finish:
            result = pipeline.stage(name)
            names = ", ".join(Path(artifact.uri).name for _, artifact in _artifacts(name, result))
            finish(f"unchanged: {names}" if name in done else names)
    return pipeline


def _artifacts(stage: str, result: Any) -> list[tuple[str, Artifact]]:
    if isinstance(result, dict):
        return [(f"{stage} {name}", artifact) for name, artifact in result.items()]
    return [(stage, result)]


def _print_plan(settings: Settings, wanted: Sequence[str], done: dict[str, Any]) -> None:
    rows = [[name, "unchanged" if name in done else "to do"] for name in wanted]
    print(f"plan of work for {settings.output}")
    table(["stage", "state"], rows)


def _conclude(config: Path, overrides: Sequence[str], stage: str, pipeline: Pipeline, view: StageView) -> None:
    from lspm_ray.commands.summary import print_decision, print_gears, print_pretraining, print_sweep

    stages = pipeline.settings.stages
    last = stages[-1] if stage == "run" else stage
    done = stages if stage == "run" else (stage,)
    print_pretraining(pipeline, done)
    if "tune" in done:
        print_sweep(pipeline)
    if "text_report" in done:
        print(f"report on text and pretraining: {pipeline.text_report.path(PAGE_FILE)}")
    if stage == "select" or last == "report":
        print_decision(pipeline)
    if last in ("gears", "report"):
        print_gears(read_gears(pipeline.gears))
    if last == "report":
        print(f"report: {pipeline.report_page.path(PAGE_FILE)}")
    if last == "tune":
        if read_sweep(pipeline.tune).winner is not None:
            print(f"next: {_command('run', config, overrides)} --from-sweep")
        return
    verb = next_command(stages, last)
    if verb is not None:
        print(f"next: {_command(verb, config, overrides)}")
    else:
        made = [name for name in stages if name not in _WITHOUT_COMMAND]
        print(f"made: {pipeline.stage(made[-1]).uri}")


def next_command(stages: Sequence[str], last: str) -> str | None:
    """The command after stage `last`; None at the end of a run that makes nothing to serve."""
    rest = stages[stages.index(last) + 1 :]
    for name in rest:
        if name not in _WITHOUT_COMMAND:
            return name
    if "select" in stages:
        return "serve"
    return "run" if rest else None


def _command(verb: str, config: Path, overrides: Sequence[str]) -> str:
    return " ".join(["lspm", verb, str(config), *overrides])


def _log_file(settings: Settings) -> Path:
    root = Path.cwd() / "logs" if "://" in settings.output else Path(settings.output) / "logs"
    return root.expanduser().absolute() / time.strftime("%Y%m%d-%H%M%S.log", time.gmtime())
