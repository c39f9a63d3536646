"""Stage `text_report`: one page about the way from raw text to a pretrained model, and the same as data."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.documents import blocks as blocks_stage
from lspm_ray.documents.build import DUPLICATES_FILE, STATS_FILE
from lspm_ray.report.build import write_report
from lspm_ray.report.findings import Source
from lspm_ray.report.text.findings import (
    RARE,
    Blocks,
    BlockSplit,
    Characters,
    Cluster,
    Documents,
    Point,
    Pretraining,
    Size,
    TextFindings,
    Words,
)
from lspm_ray.report.text.page import render
from lspm_ray.training.pretrain import HISTORY_FILE

STAGE = "text_report"

_SHOWN = 20
"""Words, tokens and clusters that are listed."""
_LONGEST = 200
"""Characters that are kept of a word, a token or an excerpt."""


def build_pretraining_report(
    documents: Artifact, blocks: Artifact | None, pretrain: Artifact | None, store: ArtifactStore
) -> Artifact:
    """Write the report.

    Args:
        documents: what stage `documents` returned.
        blocks: what stage `blocks` returned, if the run has it.
        pretrain: what stage `pretrain` returned, if the run has it; not without `blocks`.
        store: where the artifact goes.

    Returns:
        Artifact with `report.html` (self-contained, no JavaScript) and `report.json` (every number of the page).

    Raises:
        ArtifactError: a file of an input is missing or damaged.
    """
    named = {"documents": documents, "blocks": blocks, "pretrain": pretrain}
    parents = {role: artifact.digest for role, artifact in named.items() if artifact is not None}

    def build(draft: Draft) -> None:
        findings = gather(documents, blocks, pretrain)
        write_report(draft, findings, render(findings))

    return store.make(STAGE, {}, parents, build)


def gather(documents: Artifact, blocks: Artifact | None, pretrain: Artifact | None) -> TextFindings:
    """Read the artifacts and work out what the page shows. Arguments as in `build_pretraining_report`."""
    named = {"documents": documents, "blocks": blocks, "pretrained model": pretrain}
    there = {role: artifact for role, artifact in named.items() if artifact is not None}
    youngest = max((artifact.manifest for artifact in there.values()), key=lambda manifest: manifest.created_utc)
    return TextFindings(
        date=youngest.created_utc,
        code_version=youngest.code_version,
        documents=_documents(documents),
        blocks=None if blocks is None else _blocks(blocks),
        pretraining=None if pretrain is None else _pretraining(pretrain),
        lineage=[Source.of(role, artifact) for role, artifact in there.items()],
    )


def _documents(artifact: Artifact) -> Documents:
    stats, clusters, config = artifact.read_json(STATS_FILE), artifact.read_json(DUPLICATES_FILE), _config(artifact)
    sources = config.get("sources", {})
    words = stats["words"]
    return Documents(
        files=sources.get("files", 0),
        file_bytes=sources.get("bytes", 0),
        documents_read=stats["documents_read"],
        characters_read=stats["characters_read"],
        dropped=stats["dropped"],
        quarantined=stats["quarantined"],
        near_clusters=stats["near_clusters"],
        splits={name: Size(**_known(Size, split)) for name, split in stats["splits"].items()},
        characters={name: Characters(**_known(Characters, found)) for name, found in stats["characters"].items()},
        words=Words(
            different=words["different"],
            occurrences=words["occurrences"],
            coverage=words["coverage"],
            most_frequent=[(_cut(word), count) for word, count in words["most_frequent"][:_SHOWN]],
        ),
        exact=[_cluster(entry, entry["copies"]) for entry in clusters["exact"][:_SHOWN]],
        near=[_cluster(entry, entry["documents"]) for entry in clusters["near"][:_SHOWN]],
        settings=config.get(artifact.manifest.stage, {}),
    )


def _blocks(artifact: Artifact) -> Blocks:
    stats = artifact.read_json(blocks_stage.STATS_FILE)
    table = pq.read_table(pa.BufferReader(artifact.read_bytes(blocks_stage.TOKENS_FILE)))
    rows = zip(*(table[name].to_pylist() for name in ("id", "token", "count")), strict=True)
    named = (entry for entry in rows if entry[1] is not None)  # ids may have gaps
    ranked = sorted(named, key=lambda entry: (-entry[2], entry[0]))
    fields = _known(Blocks, stats) | {
        "splits": {name: BlockSplit(**_known(BlockSplit, split)) for name, split in stats["splits"].items()},
        "rare": sum(count < RARE for _, _, count in ranked),
        "most_frequent": [(number, _cut(token), count) for number, token, count in ranked[:_SHOWN]],
        "settings": _config(artifact).get(artifact.manifest.stage, {}),
    }
    return Blocks.parse(fields)


def _pretraining(artifact: Artifact) -> Pretraining:
    manifest, summary = artifact.manifest, artifact.manifest.summary
    history = artifact.read_json(HISTORY_FILE)
    points = [_point(entry | timings) for entry, timings in zip(history, summary["timings"], strict=True)]
    steps = [point.step for point in points]
    return Pretraining(
        objective=summary["objective"],
        parameters=summary["parameters"],
        points=points,
        best=steps.index(int(summary["best"]["step"])),
        perplexity=summary["perplexity"],
        unigram_perplexity=summary["unigram_perplexity"],
        hardware=manifest.hardware,
        settings=_config(artifact).get(manifest.stage, {}),
    )


def _point(entry: dict[str, float]) -> Point:
    norm = entry["gradient_norm"]
    known = _known(Point, entry)
    return Point.parse(known | {"gradient_norm": norm if math.isfinite(norm) else None})


def _known(kind: type[Size | Characters | Blocks | BlockSplit | Point], raw: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of what a stage wrote down."""
    return {name: raw[name] for name in kind.model_fields if name in raw}


def _config(artifact: Artifact) -> dict[str, Any]:
    return artifact.manifest.config


def _cluster(entry: dict[str, Any], documents: int) -> Cluster:
    return Cluster(documents=documents, excerpt=_cut(entry["excerpt"]))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
