"""Outputs are computed in company like that of traffic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.corpus.shards import read_split
from lspm_ray.evaluation.outputs import SERVED_ROWS, InferHere, outputs, read_outputs
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import Variant, write_variant
from lspm_ray.serving.config import ServeConfig
from tests.sociable import RUNTIME, register
from tests.toy_corpus import toy_corpus

ROWS = 300


def test_batches_are_as_large_as_those_of_a_busy_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ServeConfig().max_batch_size == SERVED_ROWS
    register(monkeypatch, tmp_path)
    store = ArtifactStore(str(tmp_path / "store"))
    variant = Variant(runtime=RUNTIME)
    model = store.make("variant", {}, {}, lambda draft: write_variant(draft.path, variant))
    data = toy_corpus(store, {"selection": ROWS})
    predictor: Any = load_predictor(model.local(), 1)
    predictor.sizes.clear()
    found = outputs({"m": model}, data, store, lambda _: None, splits=("selection",), compute=InferHere(1))["m"]
    assert max(predictor.sizes) == SERVED_ROWS and sum(predictor.sizes) == ROWS
    table = read_split(data, "selection", ["id", "input_ids"])
    rows = [np.asarray(row) for row in table["input_ids"].to_numpy()]
    ids, _, logits = read_outputs(found, "selection")
    assert ids == table["id"].to_pylist()
    assert np.array_equal(logits[:SERVED_ROWS], predictor.predict(rows[:SERVED_ROWS]))
