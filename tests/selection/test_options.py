"""Estimates and limits on synthetic outputs whose truth is known."""

from dataclasses import dataclass

import numpy as np

from lspm_ray.profiling.pareto import Constraints
from lspm_ray.profiling.table import Company, Speed
from lspm_ray.selection.options import Promise, Rows, broken_limits, choose, estimate
from lspm_ray.selection.scorer import Scorer
from lspm_ray.validators import Training, Validator

NAMES = ["common", "rare"]
RARE = slice(900, 1000)


@dataclass(frozen=True)
class Model:
    name: str
    cost: float
    speed: Speed | None = None


FULL, CHEAP = Model("full", 1.0), Model("cheap", 0.1)


def forgetful(*, sure: bool) -> Rows:
    """Full is right; the cheap model answers a quarter of the rare class wrongly: 2.5 % of all rows."""
    labels = np.repeat([0, 1], [900, 100])
    full = np.where(labels[:, None] == np.arange(2), 3.0, -3.0).astype(np.float32)
    cheap = full.copy()
    cheap[RARE][:25] *= -1.0 if sure else -0.01
    return Rows(labels, [cheap, full], full, [np.array([1])] * 1000)


def promise(**limits: float | None) -> Promise:
    return Promise(
        risk="regret", alpha=0.05, delta=0.05, grid_size=50, validator_cost=0.01,
        constraints=Constraints.parse(limits), labels=NAMES,
    )  # fmt: skip


def estimated(*, sure: bool, **limits: float | None):
    rows = forgetful(sure=sure)
    return estimate([CHEAP, FULL], rows, [scorer(rows)], promise(**limits))


def scorer(rows: Rows) -> Scorer:
    validator, training = Validator.make("max_probability"), Training([], np.zeros(0, dtype=np.int64))
    return rows.fit_scorer(validator, [], "temperature", "regret", NAMES, lambda: training)


def test_a_variant_that_loses_a_class_is_rejected_by_the_name_of_the_class_however_good_its_average() -> None:
    option = estimated(sure=True)
    assert option.rejected == (
        "forgets class `rare`: 25 of its 100 rows lost and 0 gained, a drop in recall of 25 points, 5 are allowed"
    )
    assert choose([option], 0.1) == (None, {"cheap": option.rejected})


def test_without_the_gate_the_average_would_let_it_pass() -> None:
    assert estimated(sure=True, max_recall_drop=None, max_accuracy_drop=0.03).rejected == ""
    assert estimated(sure=True, max_recall_drop=0.25).rejected == ""


def test_what_is_escalated_is_not_forgotten() -> None:
    """The gate looks at the answers that leave the cascade: here the last model gives those that would be lost."""
    found = forgetful(sure=False)
    scores = found.scores(Scorer(NAMES, Validator.make("max_probability")))
    by = np.where(scores > 0.9, 0, 1)
    assert broken_limits([CHEAP, FULL], found, by, Constraints(), NAMES) == []
    assert len(broken_limits([CHEAP], found, np.zeros_like(by), Constraints(), NAMES)) == 1
    assert [c.verdict for c in found.changes(by, NAMES, 0.05)] == ["kept", "cannot be told"]


def test_a_drop_that_could_be_chance_rejects_nothing() -> None:
    found = forgetful(sure=True)
    found.first[RARE][9:25] *= -1  # 9 of 100 are left
    everything = np.zeros(1000, dtype=np.int64)
    assert found.changes(everything, NAMES, 0.05)[1].lost == 9
    assert broken_limits([CHEAP], found, everything, Constraints(), NAMES) == []


def restless(changed: int) -> Speed:
    company = Company(rows=256, changed=changed, largest=0.1)
    return Speed(
        p50_ms=1, p99_ms=1, rows_per_s={1: 1.0}, load_s=1, peak_memory_mb=1, size_mb=1, threads=1, company=company
    )


def test_a_variant_whose_answers_depend_on_the_batch_is_rejected_the_full_model_is_not() -> None:
    found, nobody = forgetful(sure=False), np.ones(1000, dtype=np.int64)
    full, cheap = Model("full", 1.0, restless(9)), Model("cheap", 0.1, restless(2))
    assert broken_limits([full], found, nobody, Constraints(), NAMES) == []
    reasons = broken_limits([cheap, full], found, nobody, Constraints(), NAMES)
    assert reasons == ["at least 0.14 % of its answers change with the rows they are computed with, 0.1 % may"]
    calm = Model("cheap", 0.1, restless(1))
    assert broken_limits([calm, full], found, nobody, Constraints(), NAMES) == []
