"""Estimates and limits on synthetic outputs whose truth is known."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.profiling.pareto import Constraints
from lspm_ray.profiling.table import Company, Speed
from lspm_ray.selection.options import (
    TIES,
    Option,
    Promise,
    Rows,
    broken_limits,
    choose,
    estimate,
    triples,
    worth_a_third,
)
from lspm_ray.selection.scorer import Scorer
from lspm_ray.validators import Training, Validator
from tests.selection.three_stages import three

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


LADDER = {name: Model(name, cost) for name, cost in [("bag", 0.02), ("small", 0.2), ("large", 0.5), ("full", 1.0)]}


def pair(first: str, last: str | None, cost: float, escalation_rate: float, rejected: str = "") -> Option:
    return Option(first=first, last=last, cost=cost, escalation_rate=escalation_rate, rejected=rejected)


def test_the_best_pairs_are_extended_by_every_model_in_its_place() -> None:
    pairs = [pair("small", "full", 0.3, 0.1), pair("bag", "full", 0.42, 0.4), pair("large", "full", 0.6, 0.1)]
    assert list(triples(pairs, LADDER, 0.0, 0.1)) == [
        ["bag", "small", "full"],
        ["small", "large", "full"],
        ["bag", "large", "full"],
    ]


def test_what_is_not_allowed_is_not_extended() -> None:
    pairs = [pair("small", "full", 0.3, 0.1, "too large"), pair("bag", "full", 0.42, 0.4)]
    assert ["small", "large", "full"] not in list(triples(pairs, LADDER, 0.0, 0.0))
    assert list(triples([pair("bag", "full", 0.42, 0.4, "no share")], LADDER, 0.0, 0.0)) == []


def test_few_triples_are_tried_however_many_variants_there_are() -> None:
    models = LADDER | {f"v{n}": Model(f"v{n}", 0.1 + n / 1000) for n in range(50)}
    pairs = [pair(name, "full", 0.9, 0.1) for name in models if name != "full"]
    assert 0 < len(list(triples(pairs, models, 0.0, 0.0))) <= 3 * 52


def test_a_triple_that_cannot_save_enough_is_not_estimated() -> None:
    """Bag and the share that it passes on to `small` cost 0.02 + 0.4 * 0.2 = 0.1, whatever reaches full."""
    pairs = [pair("bag", "full", 0.42, 0.4), pair("bag", "small", 0.1111, 0.45)]
    assert ["bag", "small", "full"] in list(triples(pairs, LADDER, 0.0, 0.09))
    assert list(triples(pairs, LADDER, 0.0, 0.11)) == []
    assert list(triples(pairs, LADDER, 0.02, 0.09)) == []


def test_a_third_model_that_saves_too_little_is_rejected_in_words() -> None:
    triple = Option(first="bag", middle=["small"], last="full", cost=0.28, escalation_rate=0.4,
                    middle_escalation_rates=[0.1])  # fmt: skip
    assert worth_a_third(triple, 0.32, 0.1) == triple
    rejected = worth_a_third(triple, 0.3, 0.1)
    assert rejected.rejected == (
        "would cost 0.280 of full (escalating 40% to small and 10% to full): "
        "saves less than 10% of the 0.300 that need fewer models"
    )
    chosen, reasons = choose([pair("small", "full", 0.3, 0.1), rejected], 0.1)
    assert chosen is not None and chosen.names == ["small", "full"]
    assert reasons == {"bag": rejected.rejected}
    chosen, _ = choose([pair("small", "full", 0.3, 0.1), triple], 0.1)
    assert chosen == triple


def estimated_three(rows: Rows, names: tuple[str, ...], costs: tuple[float, ...], **limits: float | None) -> Option:
    order = {"cheap": 0, "middle": 1, "full": 2}
    some = Rows(rows.labels, [rows.stages[order[name]] for name in names], rows.full, rows.inputs)
    models = [Model(name, cost) for name, cost in zip(names, costs, strict=True)]
    scorers = [Scorer(NAMES, Validator.make("max_probability"))] * (len(names) - 1)
    return estimate(models, some, scorers, promise(**limits).model_copy(update={"alpha": 0.02}))


def test_three_models_cost_what_each_is_asked_and_judged() -> None:
    option = estimated_three(three(1000), ("cheap", "middle", "full"), (0.05, 0.2, 1.0))
    assert option.rejected == "" and option.tie in TIES
    e1, (e2,) = option.escalation_rate, option.middle_escalation_rates
    assert 0 < e2 < e1 < 1
    assert option.cost == pytest.approx(0.05 + 0.01 + e1 * (0.2 + 0.01) + e2 * 1.0)
    assert option.cost < estimated_three(three(1000), ("middle", "full"), (0.2, 1.0)).cost


@given(st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_before_a_middle_model_the_first_passes_on_no_less_than_before_full(seed: int) -> None:
    """This is why some triples need no estimate."""
    rows = three(400, seed)
    before_full = estimated_three(rows, ("cheap", "full"), (0.05, 1.0))
    before_both = estimated_three(rows, ("cheap", "middle", "full"), (0.05, 0.2, 1.0))
    assert before_both.escalation_rate >= before_full.escalation_rate


def test_limits_are_those_of_all_three() -> None:
    """Each takes 1 ms, and an escalated request waits for all of them."""
    rows = three(500)
    used = [Model(name, 1.0, restless(0)) for name in ("cheap", "middle", "full")]
    by = np.zeros(500, dtype=np.int64)
    limits = Constraints.parse({"max_p99_ms": 2.5, "max_accuracy_drop": None, "max_recall_drop": None})
    assert broken_limits(used[:2], rows, by, limits, NAMES) == []
    assert len(broken_limits(used, rows, by, limits, NAMES)) == 1


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
