"""The plan of `documents`: which steps run on which pieces of work. How they run (Ray, or one by one) is handed in.

    evaluation sets --CollectRuns--> runs of words
    files --ScanDocuments--> staged documents + index --Match--> near-equal pairs --Connect--> superfluous documents
    --WriteDocuments--> shards + word counts --MergeCounts--> word frequencies

Between the steps only counts, and the most frequent words, reach this process; never a document.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lspm_ray.artifact import Draft, filesystem, join
from lspm_ray.corpus.consolidate import Match, read_pairs, write_superfluous
from lspm_ray.corpus.dedup import superfluous
from lspm_ray.corpus.execute import Execute, Item, Step
from lspm_ray.corpus.sources import Layout, resolve
from lspm_ray.corpus.staging import Staging
from lspm_ray.corpus.stats import add_counts
from lspm_ray.documents.config import SPLITS, DocumentsConfig
from lspm_ray.documents.contamination import CollectRuns, Contamination, items
from lspm_ray.documents.lengths import Lengths
from lspm_ray.documents.scan import ScanDocuments, group_units
from lspm_ray.documents.words import COUNTS, MergeCounts, coverage, most_frequent
from lspm_ray.documents.write import WriteDocuments, write_table
from lspm_ray.errors import DataError
from lspm_ray.progress import Report

STATS_FILE = "stats.json"
WORDS_FILE = "words.parquet"
DUPLICATES_FILE = "duplicates.json"

Line = Callable[[Sequence[dict[str, Any]], float], str]
"""Says in a few words what the results so far hold, given the seconds they took."""

_CLUSTERS_SHOWN = 20
_MOST_WORD_PARTITIONS = 64


@dataclass(frozen=True)
class Connect:
    """Joins the near-equal pairs of all partitions into clusters (there is one item).

    Attributes:
        staging: where the pairs are, and the superfluous documents go.
        partitions: of the shuffles.
        seed: of the final order.
    """

    staging: Staging
    partitions: int
    seed: int

    def __call__(self, item: Item) -> dict[str, Any]:
        """Write the superfluous documents; returns the largest clusters as [id of the one that stays, documents]."""
        done = "connect.json"
        return self.staging.read_result(done) or self.staging.write_result(done, self._connect())

    def _connect(self) -> dict[str, Any]:
        pairs = (read_pairs(self.staging, partition) for partition in range(self.partitions))
        gone, stays = superfluous(pairs)
        write_superfluous(self.staging, gone, stays, self.seed, self.partitions)
        roots, others = np.unique(stays, return_counts=True)
        sizes = others + 1
        order = np.lexsort((roots, -sizes))[:_CLUSTERS_SHOWN]
        largest = [[bytes(roots[i]).ljust(16, b"\0").hex(), int(sizes[i])] for i in order]
        return {"clusters": len(roots), "largest": largest}


@dataclass(frozen=True)
class CopyRejects:
    """Moves what an item of the scan put aside into the artifact (an item is `{"number": n}`)."""

    staging: Staging
    target: str

    def __call__(self, item: Item) -> dict[str, Any]:
        """Copy; returns whether there was anything."""
        name = f"quarantine/{item['number']:06d}.jsonl"
        if not self.staging.exists(name):
            return {"written": 0}
        fs, path = filesystem(join(self.target, f"quarantine/part-{item['number']:05d}.jsonl"))
        fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self.staging.open_input(name) as source, fs.open_output_stream(path, compression=None) as sink:
            while chunk := source.read(1 << 20):
                sink.write(chunk)
        return {"written": 1}


@dataclass(frozen=True)
class Build:
    """One run of `documents`.

    Attributes:
        config: what the user says.
        staging: for files between the steps.
        layout: how the work is cut.
        execute: runs the steps.
        progress: takes one line for a person, now and then.
    """

    config: DocumentsConfig
    staging: Staging
    layout: Layout
    execute: Execute
    progress: Report

    def run(self, draft: Draft) -> None:
        """Write the documents into `draft`.

        Raises:
            DataError: the files cannot be used as they are, or no document is left.
        """
        files = resolve(self.config)
        units, unit_bytes = self.layout.units(files), self.layout.bytes_per_unit(files)
        scan_items = group_units(units, unit_bytes)
        # As many partitions as pieces of work: both grow with the square root of the corpus.
        partitions = max(2, -(-self.layout.text_bytes(files) // unit_bytes))
        layout = self.layout.grown(files)
        step = ScanDocuments(self.config, self.staging, layout, partitions, self._contamination())
        scans = self._run("read and clean", step, scan_items, _scan_line)
        chunks = [chunk for scan in scans for chunk in scan["chunks"]]
        dropped, quarantined = (add_counts(scan[kind] for scan in scans) for kind in ("dropped", "quarantined"))
        _check_any(scans, dropped, quarantined)
        clusters = self._near(chunks, partitions)
        written, words = self._write(draft, chunks, partitions, clusters)
        self._run("put aside", CopyRejects(self.staging, draft.uri), [{"number": i["number"]} for i in scan_items])
        facts = {
            "documents_read": sum(scan["documents"] for scan in scans),
            "characters_read": sum(scan["characters"] for scan in scans),
            "dropped": add_counts([dropped, _duplicates(written)]),
            "quarantined": quarantined,
            "near_clusters": clusters["clusters"],
        }
        self._describe(draft, facts, written, clusters, words)

    def _run(self, what: str, step: Step, items: Sequence[Item], line: Line | None = None) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}
        started = reported = time.monotonic()
        for index, result in self.execute(step, items):
            results[index] = result
            now = time.monotonic()
            if now - reported >= 1 or len(results) == len(items):
                reported = now
                left = (now - started) / len(results) * (len(items) - len(results))
                detail = line(list(results.values()), now - started) if line else ""
                clock = f", {int(left) // 60}:{int(left) % 60:02d} left" if len(results) < len(items) else ""
                self.progress(f"{what}: {len(results)} of {len(items)} parts{detail}{clock}")
        return [results[index] for index in range(len(items))]

    def _contamination(self) -> Contamination | None:
        sets = self.config.decontaminate
        if not sets:
            return None
        work = items({name: self.layout.units(resolve(chosen)) for name, chosen in sets.items()})
        found = self._run("read evaluation sets", CollectRuns(sets, self.staging, self.config.overlap_words), work)
        numbers: dict[str, list[int]] = {name: [] for name in sets}
        texts: Counter[str] = Counter()
        for item, result in zip(work, found, strict=True):
            numbers[item["set"]].append(item["number"])
            texts[item["set"]] += result["texts"]
        for name, chosen in sets.items():
            if not texts[name]:
                field = f"documents.decontaminate.{name}"
                raise DataError("the evaluation set has no text", field=field, value=str(chosen.source))
        return Contamination(self.staging, numbers, self.config.overlap_words)

    def _near(self, chunks: list[str], partitions: int) -> dict[str, Any]:
        if not self.config.near_duplicates:
            return {"clusters": 0, "largest": []}
        match = Match(self.staging, chunks, self.config.similarity)
        self._run("compare", match, [{"partition": p} for p in range(partitions)])
        return self._run("connect", Connect(self.staging, partitions, self.config.seed), [{}])[0]

    def _write(
        self, draft: Draft, chunks: list[str], partitions: int, clusters: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        config, word_partitions = self.config, min(partitions, _MOST_WORD_PARTITIONS)
        step = WriteDocuments(
            staging=self.staging,
            chunks=chunks,
            target=draft.uri,
            validation=config.validation,
            seed=config.seed,
            near_duplicates=config.near_duplicates,
            word_partitions=word_partitions,
            shown=frozenset(document for document, _ in clusters["largest"]),
            quarantine=config.quarantine,
        )
        written = self._run("write", step, [{"partition": p} for p in range(partitions)])
        names = [f"{partition:06d}.arrow" for partition in range(partitions)]
        merge = MergeCounts(self.staging, names, config.top_words)
        merged = self._run("count words", merge, [{"partition": p} for p in range(word_partitions)])
        occurrences = sum(result["occurrences"] for result in merged)
        frequent = most_frequent(self.staging, word_partitions, config.top_words)
        columns = [pa.array([w for w, _ in frequent], pa.string()), pa.array([c for _, c in frequent], pa.int64())]
        write_table(pa.Table.from_arrays(columns, schema=COUNTS), join(draft.uri, WORDS_FILE), 1 << 17)
        return written, {
            "different": sum(result["different"] for result in merged),
            "occurrences": occurrences,
            "coverage": coverage(frequent, occurrences),
            "most_frequent": frequent[:20],
        }

    def _describe(
        self,
        draft: Draft,
        facts: dict[str, Any],
        written: list[dict[str, Any]],
        clusters: dict[str, Any],
        words: dict[str, Any],
    ) -> None:
        splits, lengths = {}, {}
        for split in SPLITS:
            parts = [result["splits"][split] for result in written]
            splits[split] = {kind: sum(part[kind] for part in parts) for kind in ("documents", "bytes")}
            lengths[split] = sum((Lengths.from_raw(part["characters"]) for part in parts), Lengths()).to_dict()
            if not splits[split]["documents"]:
                raise DataError(
                    f"the {split} split has no document; there are {splits['train']['documents']} in all",
                    field="documents.validation",
                    value=self.config.validation,
                    hint="Give more documents (documents.document=line makes more of the same text), or another share",
                )
        stats = {**facts, "splits": splits, "characters": lengths, "words": words}
        _write_json(draft, STATS_FILE, stats)
        _write_json(draft, DUPLICATES_FILE, _duplicate_report(written, clusters))
        short = {split: {k: v for k, v in lengths[split].items() if k != "bins"} for split in SPLITS}
        draft.summary |= {**facts, "splits": splits, "characters": short, "words": words}


def _scan_line(scans: Sequence[dict[str, Any]], seconds: float) -> str:
    documents = sum(scan["documents"] for scan in scans)
    characters = sum(scan["characters"] for scan in scans)
    dropped = add_counts(scan["dropped"] for scan in scans)
    reasons = sorted(dropped.items(), key=lambda entry: -entry[1])[:3]
    shown = "".join(f", {100 * count / max(1, documents):.1f} % {reason}" for reason, count in reasons)
    pace = f"{documents / seconds:,.0f}/s, {characters / 1e6 / seconds:.1f} million characters/s"
    return f", {documents:,} documents ({pace}{'; dropped' + shown[1:] if shown else ''})"


def _check_any(scans: Sequence[dict[str, Any]], dropped: dict[str, int], quarantined: dict[str, int]) -> None:
    read = sum(scan["documents"] for scan in scans)
    if read > sum(dropped.values()):
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in {**dropped, **quarantined}.items())
    raise DataError(
        f"no document is left of {read + sum(quarantined.values())}: {reasons or 'the files are empty'}",
        field="documents.source",
        hint="Look at documents.rules and documents.format",
    )


def _duplicates(written: Sequence[dict[str, Any]]) -> dict[str, int]:
    found = {f"{kind} duplicate": sum(result[kind] for result in written) for kind in ("exact", "near")}
    return {reason: count for reason, count in found.items() if count}


def _duplicate_report(written: Sequence[dict[str, Any]], clusters: dict[str, Any]) -> dict[str, Any]:
    excerpts = {document: text for result in written for document, text in result["excerpts"].items()}
    copied = sorted((entry for result in written for entry in result["copied"]), key=lambda e: (-e[1], e[0]))
    return {
        "exact": [
            {"id": document, "copies": copies, "excerpt": excerpts.get(document, "")}
            for document, copies in copied[:_CLUSTERS_SHOWN]
        ],
        "near": [
            {"id": document, "documents": documents, "excerpt": excerpts.get(document, "")}
            for document, documents in clusters["largest"]
        ],
    }


def _write_json(draft: Draft, name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (draft.path / name).write_text(text, encoding="utf-8")
