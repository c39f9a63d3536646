import pytest

from lspm_ray.selection.break_even import BreakEven, break_even, largest_share, slower
from lspm_ray.selection.options import Option
from lspm_ray.selection.risk import cost_of_stages
from tests.profiling.toy_table import toy_table

ENCODE_S = 0.001


def table():
    """Full takes 10 ms a row alone and 5 in batches of 8; `int8` gains little from batches, `bag` is cheap."""
    rates = {
        "full": {1: 100.0, 8: 200.0},
        "int8": {1: 200.0, 8: 190.0},
        "bag": {1: 10_000.0, 8: 50_000.0, 32: 90_000.0},
    }
    return toy_table(rates, encode_ms=1e3 * ENCODE_S)


OPTIONS = [
    Option(first="bag", last="full", escalation_rate=0.3, cost=0.4),
    Option(first="bag", last="int8", escalation_rate=0.2, cost=0.3),
    Option(first="int8", last=None, escalation_rate=0.0, cost=0.6),
]


def found(options=OPTIONS, min_saving=0.1):
    made = break_even(table(), options, 0.0005, min_saving)
    return {(entry.first, entry.batch_size): entry for entry in made}


def test_costs_hold_at_one_batch_size_with_tokenising_and_validator() -> None:
    entries = found()
    assert set(entries) == {("int8", 1), ("int8", 8), ("bag", 1), ("bag", 8)}  # full was not measured at 32
    assert entries["int8", 1].cost == pytest.approx((0.005 + 0.001 + 0.0005) / (0.010 + 0.001))
    assert entries["int8", 8].cost == pytest.approx((1 / 190 + 0.0015) / (0.005 + 0.001))


def test_at_the_largest_share_exactly_so_much_is_saved() -> None:
    for entry in found(min_saving=0.2).values():
        if entry.most_for_saving is not None:
            assert cost_of_stages([entry.cost, 1.0], 0.0, [entry.most_for_saving]) == pytest.approx(0.8)
            assert cost_of_stages([entry.cost, 1.0], 0.0, [entry.most]) == pytest.approx(1.0)


def test_a_model_slower_than_full_has_no_share() -> None:
    assert largest_share(1.0) is None
    assert largest_share(0.95, 0.1) is None
    assert largest_share(0.25, 0.1) == pytest.approx(0.65)
    entry = found()["int8", 8]
    assert (entry.most, entry.most_for_saving, entry.finding()) == (None, None, "slower than full")
    assert slower(list(found().values())) == {"int8": [8]}


def test_what_is_needed_is_that_of_the_pair_with_full() -> None:
    entries = found()
    assert entries["bag", 8].needed == 0.3
    assert entries["int8", 1].needed == 0.0
    assert entries["bag", 1].pays and entries["bag", 8].pays and entries["int8", 1].pays


@pytest.mark.parametrize(
    ("rate", "finding"),
    [
        (0.3, "pays"),
        (0.75, "pays"),
        (0.8, "saves less than asked for"),
        (0.9, "saves nothing: too much has to be escalated"),
        (None, "no share of its answers is known to keep the promise"),
    ],
)
def test_findings(rate, finding) -> None:
    cost = 0.15
    entry = BreakEven(
        first="a", batch_size=1, cost=cost, most=largest_share(cost), most_for_saving=largest_share(cost, 0.1),
        needed=rate,
    )  # fmt: skip
    assert entry.finding() == finding
    assert entry.pays is (finding == "pays")


def test_what_the_gate_rejects_does_not_pay() -> None:
    options = [Option(first="bag", last="full", escalation_rate=0.3, cost=0.4, rejected="forgets class `rare`")]
    entry = found(options)["bag", 8]
    assert not entry.pays and entry.needed == 0.3
    assert entry.finding() == "not allowed: forgets class `rare`"


def test_a_variant_that_must_escalate_everything_or_was_not_tried_has_no_needed_share() -> None:
    entries = found([Option(first="bag", last="full", escalation_rate=1.0, cost=1.1, rejected="x")])
    assert entries["bag", 1].needed is None and entries["int8", 1].needed is None
