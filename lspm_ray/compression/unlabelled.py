"""Texts without labels that students learn from as well: the full model says what the answers are.

    files --collect_documents--> clean, different texts --Tokenise--> rows --teach--> logits --mix--> training rows

Texts that share a run of words with a row that a model is judged, chosen or certified on are left out: a student that
had seen them would be certified on rows that are unlike the traffic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, filesystem, join
from lspm_ray.corpus.check import check_files
from lspm_ray.corpus.clean import normalize
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.execute import Execute, Item, run_on_ray, run_serially, write_error
from lspm_ray.corpus.shards import max_characters, split_files
from lspm_ray.documents.collect import collect_documents
from lspm_ray.documents.config import SPLITS as DOCUMENT_SPLITS
from lspm_ray.documents.config import DocumentsConfig, EvaluationSet
from lspm_ray.errors import DataError
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.progress import Report
from lspm_ray.tasks import Task
from lspm_ray.training.batches import NO_LABEL, TEACHER_COLUMN, TRAIN_COLUMNS
from lspm_ray.training.trainer import file_chunks

STAGE = "unlabelled"
MIX_STAGE = "mix"
_FIELD = "compress.unlabelled"
_MIXED_ROWS = 8192
"""Rows of a mixed file: some chunks of a training run."""
_CHUNK_ROWS = 1024


class UnlabelledConfig(EvaluationSet):
    """Texts without labels. The beginning of each, as far as the task reads, is a row for students.

    Attributes:
        source: files, directories, globs or URIs, as in `documents`; also the shards that this stage wrote, which have
            been cleaned by rules.
        near_duplicates: drop all but one of texts that are nearly equal.
        overlap_words: texts that share a run of so many words with a row of any split but `train`, or are equal to a
            shorter one, are dropped; case and punctuation do not count.
        max_rows: keep this many texts, a pseudo-random but always equal choice; None keeps all.
    """

    section: ClassVar[str] = _FIELD

    near_duplicates: bool = True
    overlap_words: int = Field(13, ge=5, le=100)
    max_rows: int | None = Field(None, ge=1)


class _Documents(DocumentsConfig):
    """Documents of whose files messages speak under the name that the user gave them."""

    section: ClassVar[str] = _FIELD


def unlabelled_rows(
    config: UnlabelledConfig,
    task: Task,
    full: Artifact,
    data: Artifact,
    store: ArtifactStore,
    report: Report,
    execute: Execute | None = None,
) -> Artifact:
    """The texts as rows, clean, different and unlike the held-out rows.

    Args:
        config: which texts.
        task: says how they become token ids.
        full: the model whose tokenizer is used.
        data: the prepared corpus, with the held-out rows.
        store: where the artifact goes.
        report: progress.
        execute: runs the steps; by default Ray Data on the connected cluster.

    Returns:
        An artifact with `train/part-*.parquet`: input_ids, and label, which is `NO_LABEL`; in a pseudo-random order.
        `rows` of its summary says how many, `dropped` which texts are not among them.

    Raises:
        DataError: the files cannot be used as they are, or no text is left.
        ResourceError: the cluster has no CPU to give, or the disk is full.
    """
    documents = _collect(config, data, store, report, execute)
    what = {"task": task.spec(), "max_rows": config.max_rows, "max_characters": max_characters(data)}
    parents = {"documents": documents.digest, "model": full.digest}

    def build(draft: Draft) -> None:
        files = [file for split in DOCUMENT_SPLITS for file in split_files(documents, split, execute)]
        step = Tokenise(task, full, draft.uri, max_characters(data))
        items = _limited(files, config.max_rows)
        done = 0
        for _, result in (execute or run_on_ray)(step, items):
            done += result["rows"]
            report(f"unlabelled: {done:,} texts tokenised")
        draft.summary |= {"rows": done, "dropped": documents.manifest.summary["dropped"]}

    try:
        return store.make(STAGE, what, parents, build)
    except OSError as error:
        raise write_error(error) from None


def _collect(
    config: UnlabelledConfig, data: Artifact, store: ArtifactStore, report: Report, execute: Execute | None
) -> Artifact:
    shards = {split: split_files(data, split, execute) for split in SPLITS if split != "train"}
    documents = _Documents(
        **config.model_dump(include=set(EvaluationSet.model_fields)),
        near_duplicates=config.near_duplicates,
        overlap_words=config.overlap_words,
        decontaminate={split: EvaluationSet(source=files, format="parquet") for split, files in shards.items()},
        # It divides what it makes, and will have no empty half. Here both are used.
        validation=0.5,
        quarantine=False,
        top_words=100,
    )
    check_files(config)
    try:
        return collect_documents(documents, store, lambda line: report(f"unlabelled: {line}"), execute=execute)
    except DataError as error:
        if (error.field or "").startswith(_FIELD):
            raise
        # Some messages name the section that is usually meant.
        raise DataError(error.args[0], field=f"{_FIELD}.source", value=config.source, valid=error.valid) from None


def _limited(files: list[str], most: int | None) -> list[Item]:
    """Items for `Tokenise`, of `most` texts."""
    items: list[Item] = []
    left = most
    for uri in files:
        rows = _rows_of(uri)
        taken = rows if left is None else min(rows, left)
        if taken:
            items.append({"uri": uri, "number": len(items), "rows": taken})
        left = None if left is None else left - taken
    return items


def _rows_of(uri: str) -> int:
    fs, path = filesystem(uri)
    return int(pq.read_metadata(path, filesystem=fs).num_rows)


@dataclass(frozen=True)
class Tokenise:
    """Writes the rows of the first texts of a shard (an item is `{"uri", "number", "rows"}`).

    Attributes:
        task: says how texts become token ids.
        model: the model directory with the tokenizer.
        target: URI of the artifact being written.
        most: characters that a text is cut to, as those of labelled rows are; None for all.
    """

    task: Task
    model: Artifact
    target: str
    most: int | None

    def __call__(self, item: Item) -> dict[str, Any]:
        """Write; returns how many rows."""
        fs, path = filesystem(item["uri"])
        with fs.open_input_file(path) as source:
            texts = pq.read_table(source, columns=["text"])["text"].to_pylist()[: item["rows"]]
        encoded = self.task.encode([normalize(text, self.most) for text in texts], load_tokenizer(self.model.local()))
        ids = pa.array([row.astype(np.int32) for row in encoded], pa.list_(pa.int32()))
        write_rows(ids, join(self.target, f"train/part-{item['number']:05d}.parquet"))
        return {"rows": len(encoded)}


def write_rows(input_ids: pa.Array, uri: str) -> None:
    """Write rows of token ids that have no label."""
    labels = pa.array(np.full(len(input_ids), NO_LABEL))
    _write(pa.table({"input_ids": input_ids, "label": labels}), uri)


def mix(taught: Mapping[str, Artifact], store: ArtifactStore, report: Report) -> Artifact:
    """Rows with the teacher's logits of several kinds, spread evenly, so that any part of the files holds all kinds.

    Args:
        taught: kind -> what `teach` made of the training split, of `unlabelled_rows`, ...
        store: where the artifact goes.
        report: progress.

    Returns:
        An artifact like these; `rows` of its summary says how many there are.
    """
    sources = list(taught.values())
    columns = [*TRAIN_COLUMNS, TEACHER_COLUMN]

    def build(draft: Draft) -> None:
        shards = [split_files(source, "train", run_serially) for source in sources]
        rows = [sum(map(_rows_of, uris)) for uris in shards]
        files = -(-sum(rows) // _MIXED_ROWS)
        streams = [_Stream(file_chunks(uris, columns, _CHUNK_ROWS)) for uris in shards]
        for number in range(files):
            parts = [
                stream.take(count * (number + 1) // files - count * number // files)
                for stream, count in zip(streams, rows, strict=True)
            ]
            table = pa.concat_tables([part for part in parts if part.num_rows])
            order = np.random.default_rng(number).permutation(table.num_rows)
            _write(table.take(order), join(draft.uri, f"train/part-{number:05d}.parquet"))
            report(f"teacher's outputs: {number + 1} of {files} files mixed")
        draft.summary["rows"] = sum(rows)

    return store.make(MIX_STAGE, {}, {kind: artifact.digest for kind, artifact in taught.items()}, build)


class _Stream:
    """Tables in pieces of any size, in order."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._left: list[pa.Table] = []

    def take(self, rows: int) -> pa.Table:
        """The next rows."""
        while sum(table.num_rows for table in self._left) < rows:
            self._left.append(next(self._tables))
        whole = pa.concat_tables(self._left) if self._left else pa.table({})
        self._left = [whole.slice(rows)] if whole.num_rows > rows else []
        return whole.slice(0, rows)


def _write(table: pa.Table, uri: str) -> None:
    fs, path = filesystem(uri)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    with fs.open_output_stream(path, compression=None) as sink:
        pq.write_table(table, sink, compression="zstd")
