"""Whole files of texts through the endpoint: Parquet, CSV or JSON Lines in, JSON Lines or Parquet out."""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.corpus.config import CsvFormat, DataConfig
from lspm_ray.corpus.read import Rejected, check_present, peek, read_unit
from lspm_ray.corpus.sources import SourceFile, Unit, resolve
from lspm_ray.errors import DataError
from lspm_ray.serving.client import Client, EndpointError

if TYPE_CHECKING:
    from lspm_ray.serving.schema import ServedAnswer

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("place", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("variant", pa.string()),
        ("escalated", pa.bool_()),
        ("validator_score", pa.float64()),
        ("reason", pa.string()),
        ("alpha", pa.float64()),
        ("degraded", pa.bool_()),
        ("certificate_id", pa.string()),
        ("label_set", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)
TARGETS = (".jsonl", ".parquet")
_BATCH_ROWS = 64
_IN_FLIGHT = 4
_TOO_MUCH = (413, 422)
_OF_ALL = ("max_risk", "full")
"""What is refused for these is refused for every text."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the input.

    Attributes:
        file: the file it comes from.
        place: where in the file.
        text: None when there is none, or the row cannot be read.
        error: why there is no text.
    """

    file: str
    place: str
    text: str | None
    error: str | None = None

    def result(self, **answer: Any) -> dict[str, Any]:
        """The output row: the item and the answer, or its error."""
        return dict.fromkeys(SCHEMA.names) | asdict(self) | answer


@dataclass(frozen=True)
class Summary:
    """What became of the rows."""

    rows: int
    answered: int
    escalated: int
    errors: int


def source_config(source: str | list[str], text: str | list[str], csv: CsvFormat | None = None) -> DataConfig:
    """How to read a source that needs no labels."""
    column = text if isinstance(text, str) else text[0]
    return DataConfig.parse({"source": source, "text": text, "label": column, "csv": csv or CsvFormat()})


def check_source(config: DataConfig) -> list[SourceFile]:
    """The files of a source, once every one of them is known to have the columns.

    Raises:
        DataError: no such file, unknown format, or a missing column.
    """
    files = resolve(config)
    for file in files:
        check_present(config, peek(file, config)[0], file)
    return files


def check_target(target: str) -> Path:
    """The path of an output file.

    Raises:
        DataError: its format is unknown or its directory missing.
    """
    path = Path(target)
    if path.suffix not in TARGETS:
        raise DataError("the format cannot be told from the file name", field="output", value=target, valid=TARGETS)
    if not path.parent.is_dir():
        raise DataError("no such directory", field="output", value=str(path.parent))
    return path


def read_items(file: SourceFile, config: DataConfig) -> Iterator[Item]:
    """The rows of one file, in order; unreadable ones too, with the reason."""
    for row in read_unit(Unit(0, file, 0, 1), config):
        if isinstance(row, Rejected):
            yield Item(file.name, row.place, None, row.reason)
        else:
            yield Item(file.name, row.place, row.text, None if row.text else "no text")


class Asks(Protocol):
    """The part of a `Client` that is needed here."""

    def predict(self, texts: Sequence[str], *, max_risk: float | None = None, full: bool = False) -> list[ServedAnswer]:
        """An answer for each text, in order."""


def predict_file(
    client: Client,
    source: str | list[str],
    target: str,
    text_columns: str | list[str],
    progress: Callable[[int], None] | None = None,
    csv: CsvFormat | None = None,
    *,
    max_risk: float | None = None,
    full: bool = False,
) -> Summary:
    """Ask the endpoint about every row of a file; the output has one row per input row, in the same order.

    Rows that cannot be read or have no text get an `error` instead of an answer.

    Args:
        client: of the endpoint.
        source: file, directory, glob or URI.
        target: `.jsonl` or `.parquet`; written completely or not at all.
        text_columns: the column with the text, or several to be joined.
        progress: told the number of rows done so far.
        csv: how CSV files are written.
        max_risk: see `Client.predict`.
        full: see `Client.predict`.

    Raises:
        DataError: the source or target cannot be used.
        EndpointError: the endpoint cannot be reached, or fails.
    """
    path = check_target(target)
    config = source_config(source, text_columns, csv)
    items = (item for file in check_source(config) for item in read_items(file, config))
    with writer(path) as write, ThreadPoolExecutor(_IN_FLIGHT) as pool:
        counts = Counts(progress)
        pending: deque[Future[list[dict[str, Any]]]] = deque()
        for batch in _batches(items):
            pending.append(pool.submit(answer_items, client, batch, max_risk, full))
            if len(pending) == _IN_FLIGHT:
                counts.add(write(pending.popleft().result()))
        while pending:
            counts.add(write(pending.popleft().result()))
    return counts.summary()


def answer_items(
    client: Asks, items: Sequence[Item], max_risk: float | None = None, full: bool = False
) -> list[dict[str, Any]]:
    """Output rows for some items. A text that the endpoint refuses does not cost the others their answer."""
    asked = [item for item in items if item.text is not None]
    answers = iter(_ask(client, [item.text or "" for item in asked], max_risk, full))
    rows = []
    for item in items:
        found = next(answers) if item.text is not None else None
        if found is None:
            rows.append(item.result())
        elif isinstance(found, str):
            rows.append(item.result(error=found))
        else:
            rows.append(item.result(**found.model_dump(exclude={"request_id"})))
    return rows


def _ask(client: Asks, texts: list[str], max_risk: float | None, full: bool) -> list[ServedAnswer | str]:
    """Answers, or the endpoint's refusal in its own words."""
    if not texts:
        return []
    try:
        return list(client.predict(texts, max_risk=max_risk, full=full))
    except EndpointError as error:
        if error.status not in _TOO_MUCH or error.field in _OF_ALL:
            raise
        if len(texts) == 1:
            return [error.args[0]]
        return [answer for text in texts for answer in _ask(client, [text], max_risk, full)]


@contextmanager
def writer(path: Path) -> Iterator[Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    """Writes output rows; the file appears when the block ends, and does not when it raises.

    Yields:
        A function that takes rows of `SCHEMA` and gives them back.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            if path.suffix == ".parquet":
                with pq.ParquetWriter(stream, SCHEMA) as parquet:
                    yield lambda rows: _write_parquet(parquet, rows)
            else:
                yield lambda rows: _write_jsonl(stream, rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_parquet(parquet: pq.ParquetWriter, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return rows


def _write_jsonl(stream: IO[bytes], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        given = {name: value for name, value in row.items() if value is not None}
        stream.write(json.dumps(given, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return rows


class Counts:
    """Counts output rows as they are written.

    Args:
        progress: told the number of rows so far.
    """

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._rows = self._answered = self._escalated = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Count some rows."""
        self._rows += len(rows)
        self._answered += sum(row["label"] is not None for row in rows)
        self._escalated += sum(bool(row["escalated"]) for row in rows)
        if self._progress is not None:
            self._progress(self._rows)

    def summary(self) -> Summary:
        """What there has been."""
        return Summary(self._rows, self._answered, self._escalated, self._rows - self._answered)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
