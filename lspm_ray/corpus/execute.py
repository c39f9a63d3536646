"""Runs the steps of a data stage, on the connected cluster or one by one. The only user of Ray Data for preparing data.

Ray Data gets a data set of *work items* and maps a step over it: it schedules, retries and streams; rows go from file
to file without passing through this process. Ray's own file readers are not used, because one damaged row costs them
the whole block. There is no pool of actors and no shuffle operator, so a single CPU is enough.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lspm_ray import errors
from lspm_ray.cluster import totals
from lspm_ray.errors import ResourceError, UserError, errno_of

Item = dict[str, Any]
Step = Callable[[Item], dict[str, Any]]
Execute = Callable[[Step, Sequence[Item]], Iterator[tuple[int, dict[str, Any]]]]
"""Runs a step on every item, in any order, and yields (index of the item, result). Items and results are JSON types;
a step may run twice on an item, with the same effect as once."""

_START_WITHIN_S = 900.0
"""Only the start is limited: a task may rightly take hours, such as one that joins all clusters of near duplicates."""

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EPERM}


def run_serially(step: Step, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The executor without a cluster."""
    for index, item in enumerate(items):
        yield index, step(item)


def run_on_ray(step: Step, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a step on every item as Ray Data tasks, one item per task.

    Raises:
        UserError: what a step raised.
        ResourceError: the cluster has no CPU, or gave none for a long time.
    """
    import ray.data
    from ray.data.context import DataContext

    cpus = _cpus_per_task(totals()["CPU"])
    _await_start(cpus)
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = False  # results carry their index
    context.execution_no_progress_timeout_s = -1
    rows = [{"index": index, "item": json.dumps(item)} for index, item in enumerate(items)]
    with DataContext.current(context):
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_Guarded(step), num_cpus=cpus)
        for row in results.iter_rows():
            outcome = json.loads(row["outcome"])
            if "error" in outcome:
                raise _rebuild(outcome["error"])
            yield row["index"], outcome["result"]


def _await_start(cpus: float) -> None:
    """Wait until the cluster has room for a task, which is all that a stage needs to get on.

    Raises:
        ResourceError: there was none for a long time.
    """
    import ray

    task = ray.remote(num_cpus=cpus)(_nothing).remote()
    if not ray.wait([task], timeout=_START_WITHIN_S)[0]:
        ray.cancel(task)
        raise ResourceError(
            f"no task could start within {_START_WITHIN_S:.0f} s",
            field="cluster",
            hint=f"Each task needs {cpus:g} CPU: is something else holding them?",
        )


def _nothing() -> None:
    pass


def _cpus_per_task(cpus: float) -> float:
    """Two tasks per CPU: Ray Data notices up to 0.2 s late that one has ended, and meanwhile the other has it all.

    Less where there is a single CPU or a part of one, so that whoever else holds a share cannot block the stage.
    """
    if cpus <= 0:
        raise ResourceError("the cluster has no CPU; preparing data needs one", field="cluster", value=cpus)
    return min(0.5, cpus / 2)


class _Guarded:
    """A step as a Ray Data function. A user's mistake comes back as data: an exception would be retried and logged."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # A task has a share of one CPU: a thread for each CPU of the node would be too many, times the tasks on it.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            outcome: dict[str, Any] = {"result": self._step(json.loads(row["item"]))}
        except UserError as error:
            outcome = {"error": _describe(error)}
        except Exception as error:
            outcome = {"error": _describe(write_error(error))}
        return {"index": row["index"], "outcome": json.dumps(outcome)}


def write_error(error: Exception) -> UserError:
    """The user's error for a disk that is full or not writable; any other error is raised again as it is."""
    if isinstance(error, UserError) or errno_of(error) not in _CANNOT_WRITE:
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
