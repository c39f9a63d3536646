"""Reading a prepared corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact
from lspm_ray.corpus.build import LABELS_FILE
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.execute import Execute, Item, run_on_ray
from lspm_ray.corpus.pack import SCHEMA
from lspm_ray.errors import DataError

_VERIFY_BYTES = 1 << 28
"""What one process hashes in about a second or two; more is shared out."""


@dataclass(frozen=True)
class Verify:
    """Checks shards against their digests (an item is `{"names": [...]}`)."""

    artifact: Artifact

    def __call__(self, item: Item) -> dict[str, Any]:
        """Read and hash the shards.

        Raises:
            ArtifactError: a shard is missing or damaged.
        """
        self.artifact.verify_files(item["names"])
        return {}


def split_files(artifact: Artifact, split: str, execute: Execute | None = None) -> list[str]:
    """URIs of the shards of a split, in order, for readers that stream; every shard was checked against its digest.

    Args:
        artifact: what `prepare` returned.
        split: one of `SPLITS`.
        execute: runs the check of large splits; by default Ray Data on the connected cluster.

    Raises:
        DataError: there is no such split.
        ArtifactError: a shard is missing or damaged.
    """
    names = _names(artifact, split)
    groups = _groups(artifact, names)
    if len(groups) == 1:
        artifact.verify_files(names)
    else:
        list((execute or run_on_ray)(Verify(artifact), [{"names": group} for group in groups]))
    return [artifact.path(name) for name in names]


def _groups(artifact: Artifact, names: Sequence[str]) -> list[list[str]]:
    """Neighbouring shards, as many as one task should hash."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        size += artifact.manifest.files[name].bytes
        if groups[-1] and size > _VERIFY_BYTES:
            groups.append([])
            size = artifact.manifest.files[name].bytes
        groups[-1].append(name)
    return groups


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
