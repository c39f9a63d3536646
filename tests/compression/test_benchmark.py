"""The arithmetic and the peers of benchmarks/compression.py."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lspm_ray.inference.predictor import load_predictor
from lspm_ray.profiling.table import Speed
from tests.toys import toy_model_dir

FILE = Path(__file__).parents[2] / "benchmarks" / "compression.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_compression", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules[spec.name]


def speed(rate: float, megabytes: float = 10.0) -> Speed:
    return Speed(
        p50_ms=1.0,
        p99_ms=2.0,
        rows_per_s={1: rate, 8: 3 * rate},
        load_s=1.0,
        peak_memory_mb=100.0,
        size_mb=megabytes,
        threads=1,
    )


def test_everything_is_compared_with_eager_at_the_same_batch_size(benchmark: ModuleType) -> None:
    found = benchmark.figures({"eager": speed(10), "full": speed(20), "int8": speed(50, 2.5)})
    assert found["eager"]["times_eager"] == {1: 1.0, 8: 1.0}
    assert found["int8"]["times_eager"] == {1: 5.0, 8: 5.0}
    assert found["int8"]["size_of_full"] == 0.25


def test_quality_is_compared_with_full_row_by_row(benchmark: ModuleType) -> None:
    labels = np.arange(100) % 2
    worse = labels.copy()
    worse[:10] = 1 - worse[:10]
    found = benchmark.quality({"full": labels, "bag": worse}, labels)
    assert found["bag"]["accuracy"]["value"] == pytest.approx(90)
    assert found["bag"]["against_full"]["value"] == pytest.approx(-10)
    assert found["bag"]["distinguishable"] and not found["full"]["distinguishable"]


def test_the_best_transformer_is_the_fastest_that_is_as_good_as_full(benchmark: ModuleType) -> None:
    kinds = {"full": "bert", "int8": "bert", "fast": "bert", "bag": "lspm_bag_of_ngrams", "lstm": "lspm_lstm"}
    rates = {"full": 1.0, "int8": 2.5, "fast": 9.0, "bag": 300.0, "lstm": 20.0}
    points = {"full": 0.0, "int8": -0.4, "fast": -0.6, "bag": -3.0, "lstm": 0.0}
    rows = {name: {"times_eager": {1: rate, 8: rate}, "size_of_full": 0.25} for name, rate in rates.items()}
    quality = {name: {"against_full": {"value": value}} for name, value in points.items()}
    found = benchmark.targets({1: rows}, quality, kinds)[1]
    assert found["transformer"] == {"variant": "int8", "times_eager": {1: 2.5, 8: 2.5}}
    assert found["bag"]["times_eager"][8] == 300.0
    assert found["int8_size"] == 0.25


@pytest.mark.filterwarnings("ignore")  # of the exporter: whoever does it by hand sees them
def test_peers_answer_as_the_full_model_does(benchmark: ModuleType, tmp_path: Path) -> None:
    directory = toy_model_dir(tmp_path / "model")
    rows = [np.arange(5, 5 + length) for length in (3, 9, 5, 4)]
    expected = load_predictor(directory, 1).predict(rows)
    eager = benchmark.on_torch(directory, 1, quantized=False, compiled=False)
    np.testing.assert_allclose(eager.predict(rows), expected, atol=1e-5)
    quantized = benchmark.on_onnx(directory, benchmark.by_hand(directory, tmp_path)[1], 1).predict(rows)
    assert 0 < np.abs(quantized - expected).max() < 0.5
    torchao = benchmark.on_torch(directory, 1, quantized=True, compiled=False).predict(rows)
    assert 0 < np.abs(torchao - expected).max() < 0.5
    assert benchmark.torchao_mb(directory) > 0
