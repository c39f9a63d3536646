"""Per-example outputs of models over a data set, as a Ray Data job.

Every later decision (quality, thresholds, certificate) is computed from these files and can be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, filesystem, open_artifact
from lspm_ray.cluster import DATA_TASK_CPUS, totals
from lspm_ray.config import Config
from lspm_ray.corpus.execute import Execute
from lspm_ray.corpus.shards import class_counts, split_files
from lspm_ray.inference.predictor import Predictor, load_predictor
from lspm_ray.progress import Report
from lspm_ray.tasks import Encoded

if TYPE_CHECKING:
    import ray.data

OUTPUTS_STAGE = "outputs"
TEACH_STAGE = "teach"
EVALUATION_SPLITS = ("selection", "calibration", "test")
_BATCH_ROWS = 256
SERVED_ROWS = 64
"""Rows that are computed together, as by a busy replica (the default of `serve.max_batch_size`)."""
_CPUS_PER_ACTOR = 4


class Placement(Config):
    """How many inference actors run, and what each holds."""

    actors: int
    cpus: float
    gpus: float
    threads: int


def placement(have: Mapping[str, float]) -> Placement:
    """One actor per GPU, or per four CPUs; on small machines one that leaves room for reading."""
    if have.get("GPU", 0) >= 1:
        return Placement(actors=int(have["GPU"]), cpus=DATA_TASK_CPUS, gpus=1, threads=1)
    cpus = have.get("CPU", 1.0)
    if cpus <= _CPUS_PER_ACTOR:
        return Placement(actors=1, cpus=DATA_TASK_CPUS, gpus=0, threads=max(1, int(cpus)))
    return Placement(
        actors=max(1, int(cpus // _CPUS_PER_ACTOR) - 1), cpus=_CPUS_PER_ACTOR, gpus=0, threads=_CPUS_PER_ACTOR
    )


class _Infer:
    """Ray Data actor: adds one column of logits per model."""

    def __init__(self, models: dict[str, str], threads: int, gpu: bool) -> None:
        self._predictors = {
            column: load_predictor(open_artifact(uri).local(), threads, gpu) for column, uri in models.items()
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        examples = [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]
        for column, predictor in self._predictors.items():
            table = table.append_column(column, logits_array(as_served(predictor, examples)))
        return table


def as_served(predictor: Predictor, examples: Sequence[Encoded]) -> NDArray[np.float32]:
    """Logits [rows, labels], in the order of a split, which is random: rows have company as they would in traffic.

    Args:
        predictor: the model.
        examples: token ids of each row.
    """
    starts = range(0, max(1, len(examples)), SERVED_ROWS)
    return np.concatenate([predictor.predict(examples[start : start + SERVED_ROWS]) for start in starts])


def infer(files: Sequence[str], models: Mapping[str, Artifact], columns: Sequence[str], gpu: bool) -> ray.data.Dataset:
    """Rows of prepared shards, in order, with a column of logits per model (lazily computed).

    Args:
        files: prepared Parquet shards.
        models: column name -> model artifact.
        columns: columns to read beside `input_ids`; `path` (of the shard) is always added.
        gpu: whether to use the cluster's GPUs.
    """
    import ray.data

    place = placement(totals() if gpu else totals() | {"GPU": 0.0})
    data = ray.data.read_parquet(
        list(files), columns=[*columns, "input_ids"], include_paths=True, num_cpus=DATA_TASK_CPUS
    )
    return data.map_batches(
        _Infer,
        fn_constructor_args=({column: model.uri for column, model in models.items()}, place.threads, place.gpus > 0),
        batch_size=_BATCH_ROWS,
        batch_format="pyarrow",
        concurrency=place.actors,
        num_cpus=place.cpus,
        num_gpus=place.gpus,
    )


class InferHere:
    """`infer` in this process, for a job that runs inside a Ray task.

    Args:
        threads: CPU threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __call__(
        self, files: Sequence[str], models: Mapping[str, Artifact], columns: Sequence[str], gpu: bool
    ) -> Iterator[pa.Table]:
        """See `infer`."""
        compute = _Infer({column: model.uri for column, model in models.items()}, self._threads, gpu)
        for uri in files:
            fs, path = filesystem(uri)
            with fs.open_input_file(path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(_BATCH_ROWS, columns=[*columns, "input_ids"]):
                    table = compute(pa.Table.from_batches([batch]))
                    yield table.append_column("path", pa.array([uri] * table.num_rows))


Infer = Callable[[Sequence[str], Mapping[str, Artifact], Sequence[str], bool], Iterator[pa.Table]]
"""Rows of prepared shards with a column of logits per model, table by table: see `infer`."""


def infer_on_ray(
    files: Sequence[str], models: Mapping[str, Artifact], columns: Sequence[str], gpu: bool
) -> Iterator[pa.Table]:
    """`infer`, computed now."""
    yield from infer(files, models, columns, gpu).iter_batches(batch_size=None, batch_format="pyarrow")


def outputs(
    models: Mapping[str, Artifact],
    data: Artifact,
    store: ArtifactStore,
    report: Report,
    gpu: bool = False,
    splits: Sequence[str] = EVALUATION_SPLITS,
    compute: Infer = infer_on_ray,
    execute: Execute | None = None,
) -> dict[str, Artifact]:
    """Outputs of every model on the evaluation splits; only missing ones are computed, in one pass over the data.

    Args:
        models: by name.
        data: the prepared corpus.
        store: where outputs are kept.
        report: progress.
        gpu: compute them on GPUs. As the models are served: arithmetic differs between devices.
        splits: of the corpus.
        compute: runs the models; by default Ray Data on the connected cluster.
        execute: checks large shards; by default the same.

    Returns:
        Per model an artifact with `<split>.parquet`: id, label, logits [labels].
    """
    what = {"splits": list(splits), "gpu": gpu}
    keys = {name: store.key(OUTPUTS_STAGE, what, _parents(model, data)) for name, model in models.items()}
    missing = _missing(models, keys, store)
    with ExitStack() as turns:
        for key in sorted(keys[name] for name in missing):
            turns.enter_context(store.turn(OUTPUTS_STAGE, key))
        missing = _missing(missing, keys, store)
        if not missing:
            return {name: store.get(f"{OUTPUTS_STAGE}-{key}") for name, key in keys.items()}
        files = {file: split for split in splits for file in split_files(data, split, execute)}
        total = sum(sum(class_counts(data, split)) for split in splits)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(_writer(store, what, _parents(model, data), keys[name]))
                for name, model in missing.items()
            }
            _fill(writers, compute(list(files), missing, ["id", "label"], gpu), files, total, report)
    return {name: store.get(f"{OUTPUTS_STAGE}-{key}") for name, key in keys.items()}


def _missing(models: Mapping[str, Artifact], keys: Mapping[str, str], store: ArtifactStore) -> dict[str, Artifact]:
    """Models without outputs; of those that are one and the same model under several names, one."""
    once = {keys[name]: name for name in models}
    return {name: models[name] for key, name in once.items() if store.find(OUTPUTS_STAGE, key) is None}


def _parents(model: Artifact, data: Artifact) -> dict[str, str]:
    return {"model": model.digest, "data": data.digest}


class _SplitWriter:
    """Writes `<split>.parquet` files of one model."""

    def __init__(self, directory: Any) -> None:
        self._directory = directory
        self._open: dict[str, pq.ParquetWriter] = {}

    def write(self, split: str, table: pa.Table) -> None:
        if split not in self._open:
            self._open[split] = pq.ParquetWriter(self._directory / f"{split}.parquet", table.schema)
        self._open[split].write_table(table)

    def close(self) -> None:
        for writer in self._open.values():
            writer.close()


@contextmanager
def _writer(store: ArtifactStore, what: dict[str, Any], parents: dict[str, str], key: str) -> Iterator[_SplitWriter]:
    with store.create(OUTPUTS_STAGE, what, parents, key) as draft:
        writer = _SplitWriter(draft.path)
        try:
            yield writer
        finally:
            writer.close()


def _fill(
    writers: dict[str, _SplitWriter], tables: Iterator[pa.Table], files: dict[str, str], total: int, report: Report
) -> None:
    by_name = {_tail(file): split for file, split in files.items()}
    done = 0
    for table in tables:
        done += table.num_rows
        report(f"outputs of {len(writers)} model(s): {done}/{total} rows")
        paths = table["path"].to_pylist()
        for split in dict.fromkeys(by_name[_tail(path)] for path in paths):
            mask = pa.array([by_name[_tail(path)] == split for path in paths])
            part = table.filter(mask)
            for name, writer in writers.items():
                columns = {"id": part["id"], "label": part["label"], "logits": part[name]}
                writer.write(split, pa.table(columns))


def _tail(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def teach(
    teacher: Artifact,
    data: Artifact,
    store: ArtifactStore,
    column: str,
    report: Report,
    compute: Infer = infer_on_ray,
    execute: Execute | None = None,
    gpu: bool | None = None,
    rows: int | None = None,
) -> Artifact:
    """The training split with the teacher's logits in `column`: computed once, for every student.

    Args:
        teacher: the full model.
        data: the prepared corpus.
        store: where the artifact goes.
        column: of the logits.
        report: progress.
        compute: runs the teacher; by default Ray Data on the connected cluster.
        execute: checks large shards; by default the same.
        gpu: whether to use GPUs; None for those of the cluster, if it has any.
        rows: that `data` has, where it is no prepared corpus but has files of training rows like one.

    Returns:
        An artifact with `train/part-*.parquet`: input_ids, label, `column`, rows in the order of the training split.
    """

    def build(draft: Any) -> None:
        # A student learns as well from logits that were rounded: any GPU will do.
        on_gpu = totals()["GPU"] >= 1 if gpu is None else gpu
        total = sum(class_counts(data, "train")) if rows is None else rows
        (draft.path / "train").mkdir()
        done = 0
        tables = compute(split_files(data, "train", execute), {column: teacher}, ["label"], on_gpu)
        for number, table in enumerate(tables):
            file = draft.path / "train" / f"part-{number:05d}.parquet"
            pq.write_table(table.select(["input_ids", "label", column]), file, compression="zstd")
            done += table.num_rows
            report(f"teacher's outputs: {done}/{total} training rows")

    return store.make(TEACH_STAGE, {}, _parents(teacher, data), build)


def logits_array(logits: NDArray[np.float32]) -> pa.Array:
    """Logits [rows, labels] as an Arrow column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(logits).ravel(), type=pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, logits.shape[1])


def read_outputs(outputs: Artifact, split: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
    """ids, labels [rows] and logits [rows, labels] of one split, verified against the manifest.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    table = pq.read_table(pa.BufferReader(outputs.read_bytes(f"{split}.parquet")))
    logits = table["logits"].combine_chunks()
    if isinstance(logits, pa.ChunkedArray):
        logits = logits.chunk(0)
    width = logits.type.list_size
    matrix = logits.flatten().to_numpy().reshape(-1, width)
    return table["id"].to_pylist(), table["label"].to_numpy(), matrix
