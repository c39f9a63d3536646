"""Reading a prepared corpus."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact
from lspm_ray.corpus.build import LABELS_FILE
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.pack import SCHEMA
from lspm_ray.errors import DataError


def split_files(artifact: Artifact, split: str) -> list[str]:
    """URIs of the shards of a split, in order, for readers that stream; every shard was checked against its digest.

    Raises:
        DataError: there is no such split.
        ArtifactError: a shard is missing or damaged.
    """
    names = _names(artifact, split)
    artifact.verify_files(names)
    return [artifact.path(name) for name in names]


def read_split(artifact: Artifact, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a split in memory, every shard checked against its digest.

    Args:
        artifact: what `prepare` returned.
        split: one of `SPLITS`.
        columns: some of `id`, `text`, `label`, `input_ids`; None for all.

    Raises:
        DataError: there is no such split or column.
        ArtifactError: a shard is missing or damaged.
    """
    for column in columns or ():
        if column not in SCHEMA.names:
            raise DataError("a corpus has no such column", field="columns", value=column, valid=SCHEMA.names)
    wanted = list(columns) if columns is not None else SCHEMA.names
    tables = [
        pq.read_table(pa.BufferReader(artifact.read_bytes(name)), columns=wanted) for name in _names(artifact, split)
    ]
    return pa.concat_tables(tables)


def labels(artifact: Artifact) -> list[str]:
    """Label names in the order of the class indices."""
    found: list[str] = artifact.read_json(LABELS_FILE)
    return found


def class_counts(artifact: Artifact, split: str) -> list[int]:
    """Rows of each class in a split, in the order of the class indices.

    Raises:
        DataError: there is no such split.
    """
    _names(artifact, split)
    counts: list[int] = artifact.manifest.summary["class_counts"][split]
    return counts


def max_characters(artifact: Artifact) -> int | None:
    """Where the texts of a corpus were cut; None for nowhere."""
    found: int | None = artifact.manifest.config.get("data", {}).get("max_characters")
    return found


def _names(artifact: Artifact, split: str) -> list[str]:
    if split not in SPLITS:
        raise DataError("no such split", field="split", value=split, valid=SPLITS)
    names = sorted(name for name in artifact.manifest.files if name.startswith(f"{split}/"))
    if not names:
        raise DataError("this artifact is no prepared corpus", field="artifact", value=artifact.uri)
    return names
