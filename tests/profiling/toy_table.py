"""A profile table of made-up speeds. `from tests.profiling.toy_table import toy_table`."""

from collections.abc import Mapping

import numpy as np

from lspm_ray.evaluation.metrics import compare, evaluate
from lspm_ray.profiling.table import ProfileTable, Speed, VariantProfile

ROWS = np.eye(2)[[0, 1]]


def toy_table(rates: Mapping[str, Mapping[int, float]], encode_ms: float = 0.0) -> ProfileTable:
    """Perfect models with these rates: name -> batch size -> rows per second."""
    metrics = evaluate(ROWS, np.array([0, 1]), ["no", "yes"], resamples=1)
    right = np.array([True, True])
    variants = [
        VariantProfile(
            name=name, uri=name, digest=name, runtime="torch", precision="fp32", recipe=[], selection=metrics,
            test=metrics, recall_change={}, agreement=1.0, against_full=None, cost=1.0,
            speed=Speed(
                p50_ms=1, p99_ms=2, rows_per_s=dict(rate), load_s=1, peak_memory_mb=1, size_mb=1, threads=1
            ),
        )
        for name, rate in rates.items()
    ]  # fmt: skip
    return ProfileTable(
        variants=variants, labels=["no", "yes"], encode_ms=encode_ms, linear=compare(right, right),
        baseline_verdict="", rounds=1, hardware={},
    )  # fmt: skip
