"""Variants whose answers depend on the rows they are computed with are found; the others are not accused."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.export import export
from lspm_ray.compression.graph import rewrite
from lspm_ray.compression.int8 import Int8
from lspm_ray.compression.method import Context, Method
from lspm_ray.inference.predictor import Predictor, load_predictor
from lspm_ray.inference.runtimes.onnxruntime import OnnxPredictor
from lspm_ray.inference.runtimes.torch import TorchPredictor
from lspm_ray.models.directory import Variant, write_variant
from lspm_ray.profiling.measure import Bench
from lspm_ray.profiling.pareto import Constraints, violations
from lspm_ray.profiling.table import Company
from lspm_ray.tasks import Encoded, Task
from tests.sociable import RUNTIME, register
from tests.toys import LABELS, Kind, toy_model, toy_model_dir


def examples(count: int = 200) -> list[Encoded]:
    random = np.random.default_rng(0)
    return [random.integers(5, 90, random.integers(1, 40)) for _ in range(count)]


@pytest.fixture(scope="module")
def torch_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model_dir(tmp_path_factory.mktemp("models") / "torch")


def measured(load: Callable[[], Predictor]) -> Company | None:
    return Bench(load, examples(), cell_s=0.01).company(32)


def rejected(found: Company) -> bool:
    return bool(violations(Constraints(), accuracy_drop=0, p99_ms=1, memory_mb=1, changed=found.proven))


def test_a_runtime_that_looks_at_the_whole_batch_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch, tmp_path)
    store = ArtifactStore(str(tmp_path / "store"))
    variant = Variant(runtime=RUNTIME)
    model = store.make("variant", {}, {}, lambda draft: write_variant(draft.path, variant))
    found = measured(lambda: load_predictor(model.local(), 1))
    assert found is not None and rejected(found)
    assert found.rows == 200 and found.largest > 0.5
    assert 0.02 < found.proven < found.share < 0.5


class Normalized(TorchPredictor):
    """Batch normalisation refuses a single row: it gets itself for company."""

    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        return super().predict([*batch, *batch] if len(batch) == 1 else batch)[: len(batch)]


def test_a_model_with_batch_statistics_is_rejected() -> None:
    from torch import nn

    model: Any = toy_model()
    model.classifier = nn.Sequential(nn.BatchNorm1d(32, track_running_stats=False), model.classifier).train()
    found = measured(lambda: Normalized(model, list(LABELS), pad_id=0))
    assert found is not None and found.proven > 0.05 and rejected(found)


@pytest.mark.parametrize("kind", ["bert", "bag", "lstm"])
def test_float32_is_not_accused(kind: Kind, tmp_path: Path) -> None:
    directory = toy_model_dir(tmp_path / "m", kind)
    found = measured(lambda: load_predictor(directory, 1))
    assert found is not None and (found.rows, found.changed) == (200, 0)
    assert found.largest < 1e-5 and not rejected(found)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_computes_rows_alone_is_the_same_to_the_last_bit(
    precision: Literal["fp32", "int8"], torch_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export(torch_dir, tmp_path, precision)
    if precision == "int8":
        rewrite(file, lambda graph: Int8(graph, reduce_range=True))
    assert measured(lambda: load_predictor(tmp_path, 1)) is None
    monkeypatch.setattr(OnnxPredictor, "joins_rows", True)
    assert measured(lambda: load_predictor(tmp_path, 1)) == Company(rows=200, changed=0, largest=0.0)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_int8_whose_roundings_flip_moves_far_more_than_float32(torch_dir: Path, tmp_path: Path) -> None:
    context = Context(Task.make("text_classification"), None, lambda *_: None, 1, lambda _: None)
    Method.make({"method": "torchao", "scheme": "int8_dynamic", "compile": False}).apply(torch_dir, tmp_path, context)
    found = measured(lambda: load_predictor(tmp_path, 1))
    assert found is not None and 1e-4 < found.largest < 0.1
    assert found.changed <= 2


@given(st.data(), st.integers(1, 400))
def test_the_proven_share_is_the_lower_bound_of_clopper_and_pearson(data: st.DataObject, rows: int) -> None:
    changed = data.draw(st.integers(0, rows))
    found = Company(rows=rows, changed=changed, largest=0.0)
    assert 0 <= found.proven <= found.share
    if changed:
        assert binom.sf(changed - 1, rows, found.proven) == pytest.approx(0.05)


def test_one_row_is_no_proof_and_none_is_no_accusation() -> None:
    found = [rejected(Company(rows=256, changed=changed, largest=0.0)) for changed in (0, 1, 2, 3)]
    assert found == [False, False, True, True]
