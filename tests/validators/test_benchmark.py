"""`benchmarks/validators.py` on toy outputs."""

import numpy as np

from lspm_ray.selection.options import Rows
from lspm_ray.validators import Training
from tests.benchmarks import imported
from tests.selection.three_stages import three


def test_an_oracle_escalates_least_and_chance_most():
    with imported("validators") as validators:
        cheap, middle, full = (rows := three(900)).stages
        random = np.random.default_rng(0)
        inputs = [random.integers(5, 60, random.integers(3, 20)) for _ in rows.labels]
        held = validators.Held(
            Rows(rows.labels, [cheap, full], full, inputs), middle, ["no", "yes"], Training(inputs, rows.labels), None
        )
        found = validators.measure(held, [0.05], 1)["levels"]["regret 0.05"]
    rates = {name: entry["escalation_rate"]["mean"] for name, entry in found.items()}
    assert rates["oracle"] < rates["max_probability"] == rates["margin"] < rates["random"]
