"""What each step of a recipe does to quality and size, measured on a few validation rows as soon as it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.compression.method import Method
from lspm_ray.config import Config
from lspm_ray.corpus.shards import read_split
from lspm_ray.evaluation.outputs import logits_array
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.sparse import SPARSE_FILE
from lspm_ray.tasks import Encoded
from lspm_ray.training.loop import validation_metrics

REFERENCE_STAGE = "reference"
MOST_ROWS = 1000
"""Validation rows that a step is measured on: a few seconds of a small model, half a minute of a large one."""
_LOGITS_FILE = "logits.parquet"
_LOOKUP = ".rows"
"""Of trimmed embeddings: where the vector of a token stands, which is no weight."""


class StepEffect(Config):
    """A model after a step of a recipe.

    Attributes:
        step: its YAML form; None for the full model, before any step.
        rows: validation rows that it was measured on.
        accuracy: on them.
        balanced_accuracy: the mean recall of the classes that occur.
        loss: mean negative log-likelihood, in nats.
        agreement: share of rows answered as the full model answers.
        files_mb: of all its files, in MB (10^6 bytes).
        parameters: numbers in its weights; after a final step, which only writes them in another way, those of before.
    """

    step: dict[str, Any] | None
    rows: int
    accuracy: float
    balanced_accuracy: float
    loss: float
    agreement: float
    files_mb: float
    parameters: int


def reference(full: Artifact, data: Artifact, store: ArtifactStore, threads: int) -> Artifact:
    """What the full model says about the rows that steps are measured on; its summary is its own effect."""

    def build(draft: Draft) -> None:
        directory = full.local()
        examples, labels = _rows(data)
        logits = load_predictor(directory, threads).predict(examples)
        pq.write_table(pa.table({"logits": logits_array(logits)}), draft.path / _LOGITS_FILE)
        draft.summary = _effect(None, directory, parameters(directory), logits, labels, logits).model_dump(mode="json")

    return store.make(REFERENCE_STAGE, {"rows": MOST_ROWS}, {"model": full.digest, "data": data.digest}, build)


def effect_of(
    step: dict[str, Any], directory: Path, before: StepEffect, full: Artifact, data: Artifact, threads: int
) -> StepEffect:
    """Measure the result of a step, with the runtime that it will be served by.

    Args:
        step: its YAML form.
        directory: of the model that it made.
        before: the effect of the step before.
        full: what `reference` returned.
        data: the prepared corpus.
        threads: CPU threads.
    """
    examples, labels = _rows(data)
    method = Method.make(step)
    logits = load_predictor(directory, threads, method.needs_gpu).predict(examples)
    table = pq.read_table(pa.BufferReader(full.read_bytes(_LOGITS_FILE)))
    expected = np.array(table["logits"].to_pylist(), dtype=np.float32)
    count = before.parameters if method.final else parameters(directory)
    return _effect(step, directory, count, logits, labels, expected)


def effects_of(artifact: Artifact, full: Artifact) -> list[StepEffect]:
    """Those of all steps that led to a model, the full model first.

    Args:
        artifact: the model: full itself, or the result of a step.
        full: what `reference` returned.
    """
    steps: Sequence[dict[str, Any]] = artifact.manifest.summary.get("steps", [full.manifest.summary])
    return [StepEffect.parse(step) for step in steps]


def parameters(directory: Path) -> int:
    """Weights in the safetensors files of a model directory, zeros included; 0 if it has none.

    Only headers are read, and of weights that are stored sparse how large they are.
    """
    from safetensors import safe_open

    total = 0
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = name.partition("/")[0] if file.name == SPARSE_FILE else ""
                if part == "shape":
                    total += math.prod(tensors.get_tensor(name).tolist())
                elif part in ("", "dense") and not name.endswith(_LOOKUP):
                    total += math.prod(tensors.get_slice(name).get_shape())
    return total


def _rows(data: Artifact) -> tuple[list[Encoded], NDArray[np.int64]]:
    table = read_split(data, "validation", ["input_ids", "label"]).slice(0, MOST_ROWS)
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()], table["label"].to_numpy()


def _effect(
    step: dict[str, Any] | None,
    directory: Path,
    count: int,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    full: NDArray[np.float32],
) -> StepEffect:
    quality = validation_metrics(logits, labels)
    return StepEffect(
        step=step,
        rows=len(labels),
        accuracy=quality["accuracy"],
        balanced_accuracy=quality["balanced_accuracy"],
        loss=quality["loss"],
        agreement=float((logits.argmax(axis=1) == full.argmax(axis=1)).mean()),
        files_mb=sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6,
        parameters=count,
    )
