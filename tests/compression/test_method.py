"""What every method says of itself."""

import pytest

from lspm_ray.compression.method import Method


@pytest.mark.parametrize(
    ("step", "uses"),
    [
        ({"method": "distill_bag"}, True),
        ({"method": "prune"}, True),
        ({"method": "quantize_int8"}, False),
        ({"method": "trim_vocabulary"}, False),
        ({"method": "onnx"}, False),
    ],
)
def test_only_what_trains_or_runs_on_a_gpu_takes_one(step, uses):
    assert Method.make(step).uses_gpu is uses
