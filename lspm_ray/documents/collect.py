"""Stage `documents`: from raw files to clean, different documents in shards."""

from __future__ import annotations

from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, join
from lspm_ray.config import digest_of
from lspm_ray.corpus.execute import Execute, run_on_ray, write_error
from lspm_ray.corpus.sources import Layout, fingerprint_sources
from lspm_ray.corpus.staging import Staging
from lspm_ray.documents.build import Build
from lspm_ray.documents.config import DocumentsConfig
from lspm_ray.progress import Report

STAGE = "documents"


def collect_documents(
    config: DocumentsConfig,
    store: ArtifactStore,
    progress: Report,
    *,
    layout: Layout | None = None,
    execute: Execute | None = None,
) -> Artifact:
    """Make the documents, or find them if they are made already.

    The result depends on the files, the config and the layout alone: not on the number of workers, or a kill and
    restart in between (finished steps are found in the stage's work directory).

    Args:
        config: what the user says.
        store: where the artifact goes.
        progress: takes a line now and then.
        layout: how the work is cut.
        execute: runs the steps; by default Ray Data on the connected cluster.

    Returns:
        For every split `<split>/part-00000.parquet` ... (columns: `write.SCHEMA`) in a pseudo-random order,
        `stats.json`, `words.parquet` (the most frequent words), `duplicates.json` (the largest clusters), and
        `quarantine/` with what was put aside.

    Raises:
        DataError: the files cannot be used as they are, or no document is left.
        ResourceError: the cluster has no CPU to give, or the disk is full.
    """
    layout = layout or Layout()
    for rule in config.cleaning():
        rule.prepare()
    settings = key_of(config)
    key = store.key(STAGE, settings, {})

    def build(draft: Draft) -> None:
        staging = Staging(join(store.work_uri(STAGE, key), digest_of(vars(layout))[:8]))
        Build(config, staging, layout, execute or run_on_ray, progress).run(draft)

    try:
        return store.make(STAGE, settings, {}, build)
    except OSError as error:
        raise write_error(error) from None


def key_of(config: DocumentsConfig) -> dict[str, Any]:
    """What decides the result: the `config` of the artifact. Reads the source files."""
    settings = config.model_dump(mode="json", exclude={"source"})
    settings["decontaminate"] = {
        name: {**settings["decontaminate"][name], "source": fingerprint_sources(chosen)}
        for name, chosen in config.decontaminate.items()
    }
    contents = [rule.content() for rule in config.cleaning()]
    return {"documents": settings, "rule_contents": contents, "sources": fingerprint_sources(config)}
