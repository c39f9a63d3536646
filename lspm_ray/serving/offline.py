"""The same plan over whole data sets, with Ray Data and without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lspm_ray.artifact import open_artifact
from lspm_ray.cluster import DATA_TASK_CPUS, preflight, totals
from lspm_ray.corpus.config import CsvFormat, DataConfig
from lspm_ray.corpus.sources import SourceFile
from lspm_ray.errors import CertificateError
from lspm_ray.serving.bundle import Bundle, load_bundle, revocation
from lspm_ray.serving.cascade import (
    Cascade,
    CascadeAnswer,
    EmptyText,
    Logits,
    Needs,
    NotServed,
    Rules,
    Stage,
    clean,
)
from lspm_ray.serving.client import EndpointError
from lspm_ray.serving.config import OfflineConfig
from lspm_ray.serving.files import (
    SCHEMA,
    Counts,
    Item,
    Summary,
    answer_items,
    check_source,
    check_target,
    read_items,
    source_config,
    writer,
)
from lspm_ray.serving.schema import ServedAnswer

if TYPE_CHECKING:
    from lspm_ray.inference.predictor import Predictor
    from lspm_ray.tasks import Encoded

_ITEMS = pa.schema([(name, pa.string()) for name in ("file", "place", "text", "error")])
_READ_ROWS = 1024
_BATCH_ROWS = 256
"""Rows that share one pass: enough for full length-sorted batches of both models, little enough to show progress."""


class LocalClient:
    """Answers as the endpoint would, from models in this process.

    Args:
        bundle: the plan.
        predictors: one per stage.
        tokenizer: of the bundle.
    """

    def __init__(self, bundle: Bundle, predictors: Sequence[Predictor], tokenizer: Any) -> None:
        rules = Rules.of(bundle.plan, bundle.state)

        async def encode(texts: Sequence[str]) -> list[Encoded]:
            return rules.task.encode(texts, tokenizer)

        self._certificate_id = bundle.plan.certificate_id
        self._max_characters = bundle.plan.max_characters
        self._cascade = Cascade(rules, encode, [_stage(predictor) for predictor in predictors])

    @classmethod
    def load(cls, plan_uri: str, threads: int) -> LocalClient:
        """With the models of a plan, verified.

        Raises:
            ArtifactError: see `load_bundle`.
            CertificateError: see `load_bundle`.
        """
        bundle = load_bundle(plan_uri)
        predictors = [bundle.predictor(stage, threads) for stage in range(len(bundle.plan.stages))]
        return cls(bundle, predictors, bundle.tokenizer())

    def predict(self, texts: Sequence[str], *, max_risk: float | None = None, full: bool = False) -> list[ServedAnswer]:
        """An answer for each text, in order.

        Args:
            texts: to be answered.
            max_risk: largest risk that the answers may have; None for the plan's default.
            full: let the full model answer.

        Raises:
            EndpointError: a text is empty, or the plan cannot give what is asked for; in the endpoint's words.
            StageDown: the model with the last word gave no usable output.
        """
        try:
            cleaned = clean(texts, self._max_characters)
        except EmptyText:
            error = EndpointError("the text is empty (empty_text)", field="text")
            error.status = 422
            raise error from None
        try:
            answers = asyncio.run(self._cascade.answer(cleaned, Needs(max_risk, full)))
        except NotServed as error:
            raise _refused(error) from None
        return [self._served(answer) for answer in answers]

    def _served(self, answer: CascadeAnswer) -> ServedAnswer:
        return ServedAnswer(**asdict(answer), certificate_id=self._certificate_id, request_id="")


def _refused(error: NotServed) -> EndpointError:
    refusal = EndpointError(f"{error} (not_served)", field=error.field, hint=error.hint)
    refusal.status = 422
    return refusal


def _stage(predictor: Predictor) -> Stage:
    async def predict(inputs: Sequence[Encoded]) -> Logits:
        return predictor.predict(inputs)

    return predict


def predict_offline(
    plan_uri: str,
    source: str | list[str],
    target: str,
    text_columns: str | list[str],
    *,
    config: OfflineConfig | None = None,
    progress: Callable[[int], None] | None = None,
    csv: CsvFormat | None = None,
) -> Summary:
    """Run the plan over every row of a source, on the connected cluster; the output is that of `predict_file`.

    Args:
        plan_uri: the select artifact.
        source: file, directory, glob or URI.
        target: `.jsonl` or `.parquet`; written completely or not at all.
        text_columns: the column with the text, or several to be joined.
        config: how much of the cluster to use.
        progress: told the number of rows done so far.
        csv: how CSV files are written.

    Raises:
        ArtifactError: see `load_bundle`.
        CertificateError: see `load_bundle`; or the audit has revoked the certificate.
        DataError: the source or target cannot be used.
        EndpointError: the plan cannot give what `config` asks for.
        ResourceError: the actors do not fit the cluster.
    """
    config = config or OfflineConfig()
    bundle = load_bundle(plan_uri)
    _check_needs(bundle, config)
    _check_not_revoked(bundle, config)
    path = check_target(target)
    reading = source_config(source, text_columns, csv)
    files = check_source(reading)
    actors = actors_for(config, totals())
    uri = open_artifact(plan_uri).uri
    counts = Counts(progress)
    with writer(path) as write:
        for table in _answers(uri, files, reading, actors, config):
            counts.add(write(table.to_pylist()))
    return counts.summary()


def _check_needs(bundle: Bundle, config: OfflineConfig) -> None:
    try:
        Rules.of(bundle.plan).check(Needs(config.max_risk, config.full))
    except NotServed as error:
        raise _refused(error) from None


def _check_not_revoked(bundle: Bundle, config: OfflineConfig) -> None:
    revoked = None if config.full else revocation(bundle)
    if revoked is not None:
        raise CertificateError(
            f"the audit has revoked the certificate ({revoked.sentence()})",
            field="predict",
            hint="Certify again on fresh rows (`lspm certify`)"
            + (", or let the full model answer (predict.full=true)" if Rules.of(bundle.plan).has_full else ""),
        )


def actors_for(config: OfflineConfig, have: dict[str, float]) -> int:
    """Processes that hold the models.

    Raises:
        ResourceError: they do not fit what the cluster has.
    """
    actors = config.actors or max(1, int(have["CPU"] - DATA_TASK_CPUS))
    need = {"CPU": DATA_TASK_CPUS * (actors + 1)}
    preflight(f"offline prediction with {actors} actors", need, have, setting="predict.actors")
    return actors


def _answers(
    plan_uri: str, files: list[SourceFile], reading: DataConfig, actors: int, config: OfflineConfig
) -> Iterator[pa.Table]:
    import ray

    rows = [{"source": json.dumps(asdict(file))} for file in files]
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            _Read,
            fn_constructor_args=(reading.model_dump(mode="json"),),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=DATA_TASK_CPUS,
            concurrency=1,
        )
        .map_batches(
            _Answer,
            fn_constructor_args=(plan_uri, config.threads, config.max_risk, config.full),
            batch_size=_BATCH_ROWS,
            batch_format="pyarrow",
            num_cpus=DATA_TASK_CPUS,
            concurrency=(1, actors) if actors > 1 else 1,
        )
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


class _Read:
    """Ray Data actor: files to items."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = DataConfig.parse(config)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for text in batch.column("source").to_pylist():
            rows: list[dict[str, Any]] = []
            for item in read_items(SourceFile(**json.loads(text)), self._config):
                rows.append(asdict(item))
                if len(rows) == _READ_ROWS:
                    yield pa.Table.from_pylist(rows, schema=_ITEMS)
                    rows = []
            yield pa.Table.from_pylist(rows, schema=_ITEMS)


class _Answer:
    """Ray Data actor: items to output rows."""

    def __init__(self, plan_uri: str, threads: int, max_risk: float | None, full: bool) -> None:
        self._client = LocalClient.load(plan_uri, threads)
        self._max_risk, self._full = max_risk, full

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = [Item(**row) for row in batch.to_pylist()]
        return pa.Table.from_pylist(answer_items(self._client, items, self._max_risk, self._full), schema=SCHEMA)
