"""The plan of `prepare`: which steps run on which pieces of work. How they run (Ray, or one by one) is handed in.

    units --Scan--> staged rows + index --Match--> near-equal pairs --Keep--> who stays where --Pack--> shards

Between the steps only counts and the near-equal pairs reach this process, never a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, Draft
from lspm_ray.corpus.config import SPLITS, DataConfig
from lspm_ray.corpus.consolidate import Keep, Match, count_classes, read_kept, read_pairs, write_superfluous
from lspm_ray.corpus.dedup import superfluous
from lspm_ray.corpus.execute import Execute, Item, Step
from lspm_ray.corpus.labels import LabelSet, check_count
from lspm_ray.corpus.pack import Pack, group_shards, plan_shards
from lspm_ray.corpus.quarantine import collect
from lspm_ray.corpus.scan import Scan
from lspm_ray.corpus.sources import Layout, Unit, resolve
from lspm_ray.corpus.split import shares_by_hash
from lspm_ray.corpus.staging import Staging
from lspm_ray.corpus.stats import Histogram, add_counts, majority_share
from lspm_ray.errors import DataError
from lspm_ray.progress import Report
from lspm_ray.tasks import Task

LABELS_FILE = "labels.json"
STATS_FILE = "stats.json"
QUARANTINE_FILE = "quarantine.jsonl"

_TASKS_PER_PARTITION = 8


@dataclass(frozen=True)
class Kept:
    """Which rows stay.

    Attributes:
        counts: rows of each partition, split and class, shape [partitions, splits, classes].
        limits: how many of the rows of each partition count (all, unless `max_rows` cuts).
        dropped: dropped rows by reason.
        conflicts: texts that came with different labels.
    """

    counts: NDArray[np.int64]
    limits: list[int]
    dropped: dict[str, int]
    conflicts: int


@dataclass(frozen=True)
class Build:
    """One run of `prepare`.

    Attributes:
        config: what the user says about the data.
        task: how texts become token ids.
        model: model directory with the tokenizer.
        staging: for files between the steps.
        layout: how the work is cut.
        execute: runs the steps.
        progress: takes one line for a person, now and then.
    """

    config: DataConfig
    task: Task
    model: Artifact
    staging: Staging
    layout: Layout
    execute: Execute
    progress: Report

    def run(self, draft: Draft) -> None:
        """Write the corpus into `draft`.

        Raises:
            DataError: the data cannot be used as they are.
        """
        files = resolve(self.config)
        units, partitions = self.layout.units(files), self.layout.partitions(files)
        scans = self._scan(units, partitions, self.layout.grown(files))
        chunks = [chunk for scan in scans for chunk in scan["chunks"]]
        found = add_counts(scan["labels"] for scan in scans)
        check_count(found)
        read = sum(scan["rows"] for scan in scans)
        rejected = add_counts(scan["quarantined"] for scan in scans)
        dropped = add_counts(scan["dropped"] for scan in scans)
        _check_any(read, dropped, rejected)
        labels = LabelSet.of(self.config.labels).ordered(found)
        if self.config.near_duplicates:
            self._match(chunks, partitions)
        kept = self._keep(chunks, partitions, labels, {name for scan in scans for name in scan["splits"]})
        counts = kept.counts.sum(axis=0)
        warnings = check_counts(counts, labels, self.config)
        for warning in warnings:
            self.progress(f"! {warning}")
        lengths = self._pack(draft.uri, chunks, kept)
        by_file = groupby(units, key=lambda unit: unit.file.uri)
        collect(self.staging, ([unit.number for unit in parts] for _, parts in by_file), draft.path / QUARANTINE_FILE)
        notes = add_counts([scan["notes"] for scan in scans])
        facts = {
            "rows_read": read + sum(rejected.values()),
            "rows_kept": int(counts.sum()),
            "dropped": add_counts([dropped, kept.dropped]),
            "quarantined": rejected,
            "notes": {**notes, "texts with different labels": kept.conflicts},
            "warnings": warnings,
        }
        _write_results(draft, facts, labels, counts, lengths)

    def _run(self, what: str, step: Step, items: Sequence[Item]) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}
        reported = 0
        for index, result in self.execute(step, items):
            results[index] = result
            percent = 100 * len(results) // len(items)
            if percent >= reported + 10 or percent == 100:
                reported = percent
                self.progress(f"{what}: {len(results)} of {len(items)} parts")
        return [results[index] for index in range(len(items))]

    def _scan(self, units: list[Unit], partitions: int, layout: Layout) -> list[dict[str, Any]]:
        step = Scan(self.config, self.staging, layout, partitions)
        return self._run("read and clean", step, [unit.to_dict() for unit in units])

    def _match(self, chunks: list[str], partitions: int) -> None:
        step = Match(self.staging, chunks, self.config.similarity)
        self._run("compare", step, [{"partition": p} for p in range(partitions)])
        gone, stays = superfluous(read_pairs(self.staging, p) for p in range(partitions))
        write_superfluous(self.staging, gone, stays, self.config.seed, partitions)

    def _keep(self, chunks: list[str], partitions: int, labels: list[str], given: set[str]) -> Kept:
        shares = shares_by_hash(self.config.splits.shares(), given)
        step = Keep(self.staging, chunks, labels, shares, self.config.seed, self.config.near_duplicates)
        results = self._run("divide", step, [{"partition": p} for p in range(partitions)])
        counts = np.array([result["counts"] for result in results], dtype=np.int64)
        dropped = {
            "exact duplicate": sum(result["exact"] for result in results),
            "near duplicate": sum(result["near"] for result in results),
        }
        conflicts = sum(result["conflicts"] for result in results)
        limits = [int(rows) for rows in counts.sum(axis=(1, 2))]
        surplus = sum(limits) - (self.config.max_rows or sum(limits))
        if surplus > 0:
            self._limit(counts, limits)
            dropped["beyond max_rows"] = surplus
        return Kept(counts, limits, {reason: n for reason, n in dropped.items() if n}, conflicts)

    def _limit(self, counts: NDArray[np.int64], limits: list[int]) -> None:
        """Let only the first `max_rows` rows of the whole order count."""
        left = self.config.max_rows or 0
        for partition, rows in enumerate(limits):
            if rows > left:
                limits[partition] = left
                _, labels, splits = read_kept(self.staging, partition, left)
                counts[partition] = count_classes(splits, labels, counts.shape[2])
            left -= limits[partition]

    def _pack(self, target: str, chunks: list[str], kept: Kept) -> dict[str, dict[str, Histogram]]:
        by_split = kept.counts.sum(axis=2)
        # A task reads whole partitions, so it should write a good part of one.
        rows_per_task = int(by_split.sum(axis=1).mean()) // _TASKS_PER_PARTITION
        items: list[Item] = []
        for index, split in enumerate(SPLITS):
            shards = plan_shards(by_split[:, index], kept.limits, self.config.rows_per_shard)
            items += ({"split": split, "shards": some} for some in group_shards(shards, rows_per_task))
        step = Pack(self.staging, chunks, target, self.task, self.model)
        lengths = {split: {"tokens": Histogram(1), "characters": Histogram(100)} for split in SPLITS}
        for result in self._run("tokenise and write", step, items):
            for kind, histogram in lengths[result["split"]].items():
                lengths[result["split"]][kind] = histogram + Histogram.from_raw(result[kind])
        return lengths


def check_counts(counts: NDArray[np.int64], labels: Sequence[str], config: DataConfig) -> list[str]:
    """Whether a classifier can be trained and judged on these rows.

    Args:
        counts: rows of each split and class, shape [splits, classes].
        labels: names of the classes.
        config: says where the rows of a split come from.

    Returns:
        Warnings: labels that are missing from a split.

    Raises:
        DataError: a split has no row, or the training split has only one class.
    """
    rows = dict(zip(SPLITS, counts.sum(axis=1).tolist(), strict=True))
    for split in SPLITS:
        if not rows[split]:
            raise _no_row(split, sum(rows.values()), config)
    train = counts[SPLITS.index("train")]
    if np.count_nonzero(train) < 2:
        only = labels[int(train.argmax())]
        raise DataError("only one class has rows in the train split", field="data.label", value=only)
    warnings = []
    for index, split in enumerate(SPLITS):
        missing = [label for label, count in zip(labels, counts[index], strict=True) if not count]
        if missing and rows[split]:
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            warnings.append(f"no row in {split} has label {names}")
    return warnings


def _no_row(split: str, rows: int, config: DataConfig) -> DataError:
    message = f"the {split} split has no row; there are {rows} rows in all"
    share = config.splits.shares()[split]
    if config.split_column is not None:
        hint = f"Name it in rows of this column, or give data.splits.{split} a share above 0 (now {share:g})"
        return DataError(message, field="data.split_column", value=config.split_column, hint=hint)
    if split == "test" and config.test_source is not None:
        hint = "Give it rows that can be used"
        return DataError(message, field="data.test_source", value=config.test_source, hint=hint)
    return DataError(message, field=f"data.splits.{split}", value=share, hint="Give more rows or a larger share")


def _check_any(read: int, dropped: Mapping[str, int], rejected: Mapping[str, int]) -> None:
    if read > sum(dropped.values()):
        return
    if not read and not rejected:
        raise DataError("the data set is empty", field="data.source")
    reasons = {**dropped, **rejected}
    raise DataError(
        f"no row is usable: of {read + sum(rejected.values())} rows "
        + ", ".join(f"{count} {reason}" for reason, count in reasons.items()),
        field="data.source",
        hint="Check data.text, data.label and the format",
    )


def _write_results(
    draft: Draft,
    facts: dict[str, Any],
    labels: list[str],
    counts: NDArray[np.int64],
    lengths: Mapping[str, Mapping[str, Histogram]],
) -> None:
    by_split = dict(zip(SPLITS, counts.tolist(), strict=True))
    stats = {
        **facts,
        "labels": labels,
        "class_counts": {s: dict(zip(labels, row, strict=True)) for s, row in by_split.items()},
        "majority_share": {split: round(majority_share(row), 6) for split, row in by_split.items()},
        "token_length": {split: lengths[split]["tokens"].to_dict() for split in SPLITS},
        "character_length": {split: lengths[split]["characters"].to_dict() for split in SPLITS},
    }
    for name, content in ((LABELS_FILE, labels), (STATS_FILE, stats)):
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (draft.path / name).write_text(text, encoding="utf-8")
    short = ("mean", "p50", "p95", "p99", "max")
    draft.summary |= {
        **facts,
        "labels": labels,
        "rows": {split: sum(row) for split, row in by_split.items()},
        "class_counts": by_split,
        "majority_share": stats["majority_share"],
        "token_length": {s: {k: stats["token_length"][s][k] for k in short} for s in SPLITS},
    }
