"""Certify a plan again on fresh labelled traffic: same models, same path of thresholds, new rows.

The path and the temperature come from the selection split as before (where the first variant serves alone, the path is
the one step that accepts everything; else it goes without that step). So nothing that is certified was chosen with a
look at the new rows, and the guarantee is that of the first certificate. Certifying on the same rows again and again
until the result pleases is not covered by it: every version is kept with its date, so that it can be seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, hardware
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.build import LABELS_FILE
from lspm_ray.corpus.clean import normalize, text_id
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.labels import LabelSet
from lspm_ray.corpus.read import Row, check_present, peek, read_unit
from lspm_ray.corpus.shards import read_split
from lspm_ray.corpus.sources import Unit, resolve
from lspm_ray.errors import CertificateError, DataError
from lspm_ray.evaluation.outputs import OUTPUTS_STAGE, as_served, logits_array
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.progress import Report
from lspm_ray.selection.options import limits_of
from lspm_ray.selection.plan import CERTIFICATE_FILE, PLAN_FILE, Certificate, ModelRef, OperatingPoint, Plan
from lspm_ray.selection.points import PointSet, answered_by, certify
from lspm_ray.selection.select import STAGE, SelectConfig, disagreement_bound
from lspm_ray.selection.verify import Evidence, expected_numbers, path_of, refitted, tried
from lspm_ray.tasks import Task

HISTORY_FILE = "certificates.json"
FRESH_STAGE = "labels"
USED = ("train", "validation", "selection", "calibration")
"""Splits that models, temperature and thresholds were chosen on, and the one that the first certificate is about: it is
spent, as a certificate may be wanted because that one was refuted."""
_ROWS_AT_ONCE = 256


class Version(Config):
    """One certificate in the list that is only ever added to."""

    id: str
    created_utc: str
    artifact: str
    """Digest of the select artifact it was issued with; empty for the one beside the list."""
    labels: str
    """Digest of the rows."""
    rows: int
    certificate: Certificate


def read_labels(config: DataConfig, plan: Plan, data: Artifact) -> tuple[list[str], list[int], dict[str, int]]:
    """Texts and classes of fresh rows, and how many were dropped for which reason.

    Args:
        config: the file and its columns.
        plan: names of the classes, and how long texts may be.
        data: the corpus; texts of its splits `USED` are dropped, as are those that occur twice.

    Raises:
        DataError: no such file or column, an unknown label, or no rows are left.
    """
    seen = {text_id(text): split for split in USED for text in read_split(data, split, ["text"])["text"].to_pylist()}
    names, index = LabelSet.of(config.labels), {name: number for number, name in enumerate(plan.labels)}
    texts: list[str] = []
    labels: list[int] = []
    dropped: Counter[str] = Counter()
    for row in _rows(config):
        text = normalize(row.text or "", plan.max_characters) if isinstance(row, Row) else ""
        if not isinstance(row, Row) or not text or row.label is None:
            dropped["without text or label"] += 1
            continue
        name = names.name(row.label, row.place)
        if name not in index:
            raise DataError("the plan has no such label", field="--labels", value=name, valid=plan.labels)
        key = text_id(text)
        if key in seen:
            dropped[f"occurs in {seen[key]}"] += 1
            continue
        seen[key] = "the file already"
        texts.append(text)
        labels.append(index[name])
    if not texts:
        raise DataError(f"no row is left: {dict(dropped)}", field="--labels", value=config.source)
    return texts, labels, dict(dropped)


def recertify(
    artifact: Artifact, labelled: DataConfig, store: ArtifactStore, report: Report, alpha: float | None = None
) -> Artifact:
    """Certify the plan of a select artifact again.

    Args:
        artifact: the plan and its present certificate.
        labelled: file of fresh rows.
        store: where the new version goes.
        report: progress.
        alpha: of the default point; None for what it was.

    Returns:
        A select artifact like the given one, with plan and certificate of the new rows, and the list of all versions.

    Raises:
        CertificateError: there is nothing to certify, too few rows, or no threshold keeps the promise on them.
        DataError: see `read_labels`.
    """
    evidence = Evidence(artifact)
    config = evidence.config
    if alpha is not None:
        config = SelectConfig.parse(config.model_dump(mode="json") | {"alpha": alpha})
    old = evidence.certificate
    if old is None:
        raise CertificateError("the full model serves alone, so there is nothing to certify", field="plan")
    texts, labels, dropped = read_labels(labelled, evidence.plan, evidence.open(old.data))
    report(f"certify: {len(texts)} fresh rows; dropped {dropped or 'none'}")
    fresh = _fresh(evidence.plan, evidence, texts, labels, store)
    models = _models(evidence.plan, old)
    outputs = {name: _outputs(name, evidence.open(ref), fresh, store, report) for name, ref in models.items()}
    certificate = _issue(evidence, old, config, fresh, outputs)
    what = artifact.manifest.config | {"select": config.model_dump(mode="json")}
    parents = artifact.manifest.parents | {"labels": fresh.digest, "before": artifact.digest}

    def build(draft: Draft) -> None:
        plan = _plan(evidence, certificate)
        for name in artifact.manifest.files:
            (draft.path / name).write_bytes(artifact.read_bytes(name))
        versions = [*history(artifact), _version(certificate, "", fresh)]
        _write(draft, PLAN_FILE, plan.model_dump(mode="json"))
        _write(draft, CERTIFICATE_FILE, certificate.model_dump(mode="json"))
        _write(draft, HISTORY_FILE, [version.model_dump(mode="json") for version in versions])
        draft.summary = artifact.manifest.summary | {"expected": plan.expected, "dropped": dropped}

    return store.make(STAGE, what, parents, build)


def history(artifact: Artifact) -> list[Version]:
    """Every certificate up to the one of this artifact, oldest first, each with the artifact that holds it."""
    if HISTORY_FILE in artifact.manifest.files:
        *before, last = [Version.parse(raw) for raw in artifact.read_json(HISTORY_FILE)]
        return [*before, last.model_copy(update={"artifact": artifact.digest})]
    certificate = Certificate.parse(artifact.read_json(CERTIFICATE_FILE))
    return [
        Version(
            id=certificate.id,
            created_utc=artifact.manifest.created_utc,
            artifact=artifact.digest,
            labels=certificate.data.digest,
            rows=certificate.calibration_rows,
            certificate=certificate,
        )
    ]


def latest(artifact: Artifact, store: ArtifactStore) -> Artifact:
    """The newest version of what selection wrote: the artifact itself, or what it was certified again as."""
    by_before: dict[str, list[Artifact]] = {}
    for found in store.artifacts():
        by_before.setdefault(found.manifest.parents.get("before", ""), []).append(found)
    while followers := by_before.get(artifact.digest):
        artifact = max(followers, key=lambda found: found.manifest.created_utc)
    return artifact


def _rows(config: DataConfig) -> Iterator[Any]:
    try:
        files = resolve(config)
    except DataError as error:
        error.field = "--labels"
        raise
    for file in files:
        check_present(config, peek(file, config)[0], file)
        yield from read_unit(Unit(0, file, 0, 1), config)


def _fresh(plan: Plan, evidence: Evidence, texts: list[str], labels: list[int], store: ArtifactStore) -> Artifact:
    """The rows as a corpus with a calibration split only."""
    full = evidence.open(plan.stages[-1].model)
    ids = Task.make(plan.task).encode(texts, load_tokenizer(full.local()))
    table = pa.table(
        {
            "id": [text_id(text).hex() for text in texts],
            "text": texts,
            "label": pa.array(labels, pa.int64()),
            "input_ids": pa.array([list(row) for row in ids], pa.list_(pa.int32())),
        }
    )

    def build(draft: Draft) -> None:
        (draft.path / "calibration").mkdir()
        pq.write_table(table, draft.path / "calibration" / "part-00000.parquet")
        (draft.path / LABELS_FILE).write_text(json.dumps(plan.labels), encoding="utf-8")

    rows = sorted(zip(table["id"].to_pylist(), labels, strict=True))
    return store.make(FRESH_STAGE, {"rows": rows, "task": plan.task}, {"tokenizer": full.digest}, build)


def _models(plan: Plan, certificate: Certificate) -> dict[str, ModelRef]:
    named = [certificate.first, certificate.full, *(stage.model for stage in plan.stages)]
    models = {ref.name: ref for ref in named}
    if not models.keys() >= set(tried(certificate)):
        # The first serves alone: full stands in for the models that are no longer part of the plan.
        return {certificate.first.name: certificate.first, FULL: certificate.full}
    return models


def _outputs(name: str, model: Artifact, fresh: Artifact, store: ArtifactStore, report: Report) -> Artifact:
    def build(draft: Draft) -> None:
        predictor, table = load_predictor(model.local(), 1), read_split(fresh, "calibration")
        ids = [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]
        parts = []
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            report(f"certify: {name}, {start}/{len(ids)} rows")
            parts.append(as_served(predictor, ids[start : start + _ROWS_AT_ONCE]))
        columns = {"id": table["id"], "label": table["label"], "logits": logits_array(np.concatenate(parts))}
        pq.write_table(pa.table(columns), draft.path / "calibration.parquet")

    return store.make(OUTPUTS_STAGE, {"splits": ["calibration"]}, {"model": model.digest, "data": fresh.digest}, build)


def _issue(
    evidence: Evidence, old: Certificate, config: SelectConfig, fresh: Artifact, outputs: Mapping[str, Artifact]
) -> Certificate:
    refs = {name: ModelRef(name=name, uri=made.uri, digest=made.digest) for name, made in outputs.items()}
    new = old.model_copy(
        update={
            "fresh": ModelRef(name="labels", uri=fresh.uri, digest=fresh.digest),
            "fresh_outputs": refs,
            "hardware": hardware(),
            "middle": [] if old.last is None else old.middle,
            "tie": 1.0 if old.last is None else old.tie,
        }
    )
    selection, calibration = evidence.rows(new, "selection"), evidence.rows(new, "calibration")
    scorers = evidence.scorers(new)
    path, scores = path_of(new, selection.all_scores(scorers)), calibration.all_scores(scorers)
    last_is_full, checked = tried(new)[-1] == FULL, bool(scorers[0].checks)
    walked = calibration.walk(old.risk, scores, path, last_is_full=last_is_full, checked=checked)
    found = certify(walked, config.wanted(evidence.plan.labels), evidence.plan.labels)
    points = _points(found, alone=new.last is None)
    default = next(point for point in points if point.default)
    by = answered_by(scores, limits_of(default, len(scores)))
    bound = disagreement_bound(calibration, by, len(path)) if old.risk == "regret" else None
    return new.model_copy(
        update={
            "points": points,
            "disagreement": bound,
            "multiplicity": found.multiplicity,
            "left_out": found.left_out,
            "calibration_rows": walked.rows,
        }
    )


def _points(found: PointSet, *, alone: bool) -> list[OperatingPoint]:
    if found.default is None:
        raise CertificateError(
            "no threshold keeps the promise on the fresh rows; the present certificate was left as it is",
            field="--labels",
            hint="Give a larger --alpha, or run the whole pipeline on newer data",
        )
    if alone and found.default.threshold is not None:
        raise CertificateError(
            "the first variant serves alone, but gave outputs that are not finite for some of the fresh rows",
            field="--labels",
        )
    return found.points


def _plan(evidence: Evidence, certificate: Certificate) -> Plan:
    thresholds, stages = certificate.default.thresholds, list(evidence.plan.stages)
    for number, threshold in enumerate(thresholds[: len(stages) - 1]):
        stages[number] = stages[number].model_copy(update={"threshold": threshold})
    stages = refitted(evidence, certificate, stages)
    return evidence.plan.model_copy(
        update={
            "stages": stages,
            "points": certificate.points,
            "certificate_id": certificate.id,
            "expected": evidence.plan.expected | expected_numbers(evidence, certificate, stages),
        }
    )


def _version(certificate: Certificate, artifact: str, fresh: Artifact) -> Version:
    return Version(
        id=certificate.id,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=artifact,
        labels=fresh.digest,
        rows=certificate.calibration_rows,
        certificate=certificate,
    )


def _write(draft: Draft, name: str, value: Any) -> None:
    (draft.path / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
