"""Stage `prepare`: from labelled files to tokenised, divided, shuffled shards. The only user of Ray Data here.

Ray Data gets a data set of *work items*, one per block, and maps a step over it: it schedules, retries and streams;
rows go from file to file without passing through this process. Ray's own file readers are not used, because one damaged
row costs them the whole block. There is no pool of actors and no shuffle operator, so a single CPU is enough.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from typing import Any

from lspm_ray import errors
from lspm_ray.artifact import Artifact, ArtifactStore, Draft, join
from lspm_ray.cluster import totals
from lspm_ray.config import digest_of
from lspm_ray.corpus.build import Build, Execute, Item, Step
from lspm_ray.corpus.check import check_columns
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.labels import LabelSet
from lspm_ray.corpus.sources import Layout, fingerprint_sources
from lspm_ray.corpus.staging import Staging
from lspm_ray.errors import ResourceError, UserError
from lspm_ray.progress import Report
from lspm_ray.tasks import Task

STAGE = "prepare"
_NO_PROGRESS_S = 900.0
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EPERM}


def prepare(
    config: DataConfig,
    task: Task,
    tokenizer_artifact: Artifact,
    store: ArtifactStore,
    progress: Report,
    *,
    layout: Layout | None = None,
    execute: Execute | None = None,
) -> Artifact:
    """Make the corpus, or find it if it is made already.

    The result depends on the content of the files, the config, the task and the tokenizer alone: not on the layout,
    the number of workers, or a kill and restart in between (finished steps are found in the stage's work directory).

    Args:
        config: what the user says about the data.
        task: how texts become token ids.
        tokenizer_artifact: a model directory.
        store: where the artifact goes.
        progress: takes a line now and then.
        layout: how the work is cut.
        execute: runs the steps; by default Ray Data on the connected cluster.

    Returns:
        For every split `<split>/part-00000.parquet` ... (columns: `pack.SCHEMA`), `labels.json`, `stats.json`, and
        `quarantine.jsonl` if something could not be read.

    Raises:
        DataError: the data cannot be used as they are.
        ResourceError: the cluster has no CPU to give, or the disk is full.
    """
    layout = layout or Layout()
    settings = key_of(config, task)
    parents = {"model": tokenizer_artifact.digest}
    key = store.key(STAGE, settings, parents)

    def build(draft: Draft) -> None:
        preview = check_columns(config)
        progress(f"{preview.files} files, {preview.bytes / 2**20:.1f} MiB")
        staging = Staging(join(store.work_uri(STAGE, key), digest_of(vars(layout))[:8]))
        Build(config, task, tokenizer_artifact, staging, layout, execute or run_on_ray, progress).run(draft)

    try:
        return store.make(STAGE, settings, parents, build)
    except OSError as error:
        raise _write_error(error) from None


def key_of(config: DataConfig, task: Task) -> dict[str, Any]:
    """What, besides the tokenizer, decides the result: the `config` of the artifact. Reads the source files."""
    names = LabelSet.of(config.labels).names
    return {
        # The sources are in the fingerprint; where they lie does not matter.
        "data": config.model_dump(mode="json", exclude={"source", "test_source"}),
        "label_order": None if names is None else list(names.items()),
        "sources": fingerprint_sources(config),
        "task": task.spec(),
    }


def run_on_ray(step: Step, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a step on every item as Ray Data tasks, one item per task.

    Raises:
        UserError: what a step raised.
        ResourceError: the cluster has no CPU, or gave none for a long time.
    """
    import ray.data
    from ray.data.context import DataContext
    from ray.data.exceptions import ExecutionTimeoutError

    cpus = _cpus_per_task(totals()["CPU"])
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = False  # results carry their index
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    rows = [{"index": index, "item": json.dumps(item)} for index, item in enumerate(items)]
    with DataContext.current(context):
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_Guarded(step), num_cpus=cpus)
        try:
            for row in results.iter_rows():
                outcome = json.loads(row["outcome"])
                if "error" in outcome:
                    raise _rebuild(outcome["error"])
                yield row["index"], outcome["result"]
        except ExecutionTimeoutError:
            raise ResourceError(
                f"no part of the data was finished within {_NO_PROGRESS_S:.0f} s",
                field="cluster",
                hint=f"Each task needs {cpus:g} CPU: is something else holding them? Or split very large files",
            ) from None


def _cpus_per_task(cpus: float) -> float:
    """One task per CPU, and on a single CPU half of it, so that whoever else holds a share cannot block the stage."""
    if cpus <= 0:
        raise ResourceError("the cluster has no CPU; preparing data needs one", field="cluster", value=cpus)
    return min(1.0, cpus / 2)


class _Guarded:
    """A step as a Ray Data function. A user's mistake comes back as data: an exception would be retried and logged."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome: dict[str, Any] = {"result": self._step(json.loads(row["item"]))}
        except UserError as error:
            outcome = {"error": _describe(error)}
        except OSError as error:
            outcome = {"error": _describe(_write_error(error))}
        return {"index": row["index"], "outcome": json.dumps(outcome)}


def _write_error(error: OSError) -> UserError:
    """The user's error for a disk that is full or not writable; any other error is raised again as it is."""
    if error.errno not in _CANNOT_WRITE:
        raise error
    hint = "Free space or choose another directory, then run again: finished parts are kept"
    return ResourceError(f"cannot write: {error}", field="store", hint=hint)


def _describe(error: UserError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": error.args[0],
        "field": error.field,
        "value": error.value if isinstance(error.value, str | int | float | None) else repr(error.value),
        "valid": [str(value) for value in error.valid],
        "hint": error.hint,
    }


def _rebuild(raw: dict[str, Any]) -> UserError:
    kind = getattr(errors, raw.pop("type"))
    if not issubclass(kind, UserError):
        raise TypeError(f"{kind} is no user error")
    error: UserError = kind(raw.pop("message"), **raw)
    return error
