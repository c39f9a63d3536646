"""Stage `prepare`: from labelled files to tokenised, divided, shuffled shards."""

from __future__ import annotations

from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, join
from lspm_ray.config import digest_of
from lspm_ray.corpus.build import Build
from lspm_ray.corpus.check import check_columns
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.execute import Execute, run_on_ray, write_error
from lspm_ray.corpus.labels import LabelSet
from lspm_ray.corpus.sources import Layout, fingerprint_sources
from lspm_ray.corpus.staging import Staging
from lspm_ray.progress import Report
from lspm_ray.tasks import Task

STAGE = "prepare"


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
        raise write_error(error) from None


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
