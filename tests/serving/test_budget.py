import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.serving.budget import Budget, Gate
from lspm_ray.serving.cascade import QueueFull


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(rate: float = 10.0, burst: int = 5) -> tuple[Budget, Clock]:
    clock = Clock()
    return Budget(rate, burst, clock), clock


def test_a_burst_passes_at_once_and_then_the_rate() -> None:
    budget, clock = make()
    assert [budget.take(1) for _ in range(6)] == [True] * 5 + [False]
    clock.now = 0.05
    assert not budget.take(1)
    clock.now = 0.1
    assert budget.take(1)
    clock.now = 1000.0
    assert budget.tokens == 5


def test_rows_are_taken_together_or_not_at_all() -> None:
    budget, _ = make()
    assert budget.take(3)
    assert not budget.take(3)
    assert budget.tokens == 2
    assert budget.take(2)


def test_what_was_not_sent_comes_back() -> None:
    budget, _ = make()
    budget.take(4)
    budget.give_back(2)
    assert budget.tokens == 3
    budget.give_back(100)
    assert budget.tokens == 5


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (float("inf"), 1), (float("nan"), 1), (1, 0)])
def test_a_budget_that_makes_no_sense_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate must be"):
        Budget(rate, burst)


steps = st.lists(st.tuples(st.floats(-1, 5), st.integers(0, 12), st.booleans()), max_size=60)


@given(st.floats(0.1, 100), st.integers(1, 10), steps)
def test_tokens_stay_between_nothing_and_the_burst_and_never_more_than_the_rate_passes(
    rate: float, burst: int, steps: list[tuple[float, int, bool]]
) -> None:
    budget, clock = make(rate, burst)
    passed, forward = 0, 0.0
    for gap, rows, returned in steps:
        clock.now += gap  # also backwards
        forward += max(0.0, gap)
        if budget.take(rows):
            passed += rows
            if returned:
                budget.give_back(rows)
                passed -= rows
        assert 0 <= budget.tokens <= burst
        assert passed <= burst + rate * forward + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 10), st.integers(0, 10), st.integers(1, 10))
def test_after_the_time_it_names_there_are_enough(rate: float, burst: int, spent: int, rows: int) -> None:
    budget, clock = make(rate, burst)
    budget.take(min(spent, burst))
    wanted = min(rows, burst)
    wait = budget.wait_s(wanted)
    assert (wait == 0) == (budget.tokens >= wanted)
    clock.now += wait + 1e-9
    assert budget.take(wanted)


class Waiting:
    def __init__(self, rows: int, room: int, row_s: float) -> None:
        self.waiting_rows, self._room, self._row_s = rows, room, row_s

    def has_room(self, rows: int) -> bool:
        return rows <= self._room

    def wait_s(self) -> float:
        return self.waiting_rows * self._row_s


def refusal(gate: Gate, rows: int, deadline: float | None = None) -> QueueFull:
    with pytest.raises(QueueFull) as caught:
        gate.enter(rows, deadline)
    return caught.value


def test_each_obstacle_is_named_with_the_time_it_takes() -> None:
    budget, clock = make()
    full = refusal(Gate(Waiting(8, 1, 0.5), budget, clock), 2)
    assert (full.cause, full.retry_after_s, str(full)) == ("queue", 4.0, "8 rows are waiting for the last model")
    late = refusal(Gate(Waiting(8, 9, 0.5), budget, clock), 2, deadline=3.0)
    assert (late.cause, late.retry_after_s) == ("deadline", 4.0)
    assert "about 4000 ms; 3000 ms are left" in str(late)
    assert budget.tokens == 5  # what did not pass cost nothing
    gate = Gate(Waiting(8, 9, 0.5), budget, clock)
    gate.enter(4, deadline=5.0)
    dry = refusal(gate, 2)
    assert (dry.cause, dry.retry_after_s) == ("budget", pytest.approx(0.1))
    gate.give_back(4)
    gate.enter(2)


def test_without_a_budget_only_the_queue_counts() -> None:
    gate = Gate(Waiting(0, 1000, 0.0), None, Clock())
    gate.enter(1000)
    gate.give_back(1000)
    assert refusal(gate, 1001).cause == "queue"
