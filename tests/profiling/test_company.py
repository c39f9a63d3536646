"""Variants whose answers depend on the rows they are computed with are found; the others are not accused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.export import export
from lspm_ray.compression.graph import rewrite
from lspm_ray.compression.int8 import Int8
from lspm_ray.compression.method import Context, Method
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.inference.runtimes.torch import TorchPredictor
from lspm_ray.models.directory import Variant, write_variant
from lspm_ray.profiling.company import Company, company
from lspm_ray.profiling.measure import Bench
from lspm_ray.tasks import Encoded, Task
from tests.sociable import RUNTIME, register
from tests.toys import LABELS, toy_model, toy_model_dir


def examples(count: int = 200) -> list[Encoded]:
    random = np.random.default_rng(0)
    return [random.integers(5, 90, random.integers(1, 40)) for _ in range(count)]


@pytest.fixture(scope="module")
def torch_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model_dir(tmp_path_factory.mktemp("models") / "torch")


def test_a_runtime_that_looks_at_the_whole_batch_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch, tmp_path)
    store = ArtifactStore(str(tmp_path / "store"))
    variant = Variant(runtime=RUNTIME)
    model = store.make("variant", {}, {}, lambda draft: write_variant(draft.path, variant))
    found = Bench(model.uri, 1, False, examples(), cell_s=0.01).company(32)
    assert found.rows == 200 and found.changed > 10 and found.largest > 0.5
    assert 0.02 < found.proven < found.changed / 200 < found.possible < 0.5


def test_a_model_with_batch_statistics_is_found() -> None:
    from torch import nn

    model: Any = toy_model()
    classify, normalise = model.classifier, nn.BatchNorm1d(32, track_running_stats=False)
    model.classifier = nn.Sequential(normalise, classify).train()
    predictor = TorchPredictor(model, list(LABELS), pad_id=0)
    batch = examples(64)

    def predict(rows):  # batch normalisation refuses a single row: it gets itself for company
        return predictor.predict([*rows, *rows] if len(rows) == 1 else rows)[: len(rows)]

    assert company(predict, batch, 32).proven > 0.05


@pytest.mark.parametrize("name", ["torch", "onnx", "int8", "bag", "lstm"])
def test_what_computes_rows_alone_or_in_float32_is_not_accused(name: str, torch_dir: Path, tmp_path: Path) -> None:
    directory = torch_dir
    if name in ("onnx", "int8"):
        file = export(torch_dir, tmp_path, "fp32" if name == "onnx" else "int8")
        if name == "int8":
            rewrite(file, lambda graph: Int8(graph, reduce_range=True))
        directory = tmp_path
    elif name in ("bag", "lstm"):
        directory = toy_model_dir(tmp_path / "m", kind="bag" if name == "bag" else "lstm")
    found = company(load_predictor(directory, 1).predict, examples(), 32)
    assert (found.rows, found.changed, found.proven) == (200, 0, 0.0)
    assert found.largest < (1e-5 if name not in ("onnx", "int8") else 1e-9)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_int8_whose_roundings_flip_moves_far_more_than_float32(torch_dir: Path, tmp_path: Path) -> None:
    context = Context(Task.make("text_classification"), None, lambda *_: None, 1, lambda _: None)
    Method.make({"method": "torchao", "scheme": "int8_dynamic", "compile": False}).apply(torch_dir, tmp_path, context)
    found = company(load_predictor(tmp_path, 1).predict, examples(), 32)
    assert 1e-4 < found.largest < 0.1
    assert found.changed <= 2


def test_rows_are_compared_with_themselves_whatever_the_order_and_the_size_of_the_last_batch() -> None:
    def predict(batch: Any) -> Any:
        return np.array([[row[0], 50.0] for row in batch], dtype=np.float32)

    assert company(predict, examples(45), 32) == Company(rows=45, changed=0, largest=0.0)
    assert company(predict, examples(1), 32) == Company(rows=1, changed=0, largest=0.0)


def test_every_row_is_computed_alone_and_once_in_a_shuffled_batch() -> None:
    seen: list[list[int]] = []

    def predict(batch: Any) -> Any:
        seen.append([int(row[0]) for row in batch])
        return np.zeros((len(batch), 2), dtype=np.float32)

    company(predict, [np.array([n]) for n in range(10)], 4)
    assert seen[:10] == [[n] for n in range(10)] and [len(batch) for batch in seen[10:]] == [4, 4, 2]
    together = [row for batch in seen[10:] for row in batch]
    assert sorted(together) == list(range(10)) != together


@given(st.data(), st.integers(1, 400))
def test_bounds_are_those_of_clopper_and_pearson(data: st.DataObject, rows: int) -> None:
    changed = data.draw(st.integers(0, rows))
    found = Company(rows=rows, changed=changed, largest=0.0)
    assert 0 <= found.proven <= changed / rows <= found.possible <= 1
    if changed:
        assert binom.sf(changed - 1, rows, found.proven) == pytest.approx(0.05)
    if changed < rows:
        assert binom.cdf(changed, rows, found.possible) == pytest.approx(0.05)
