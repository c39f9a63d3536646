"""Overload: the cascade and the engine with points to fall back on, in virtual time."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.selection.plan import ModelRef, OperatingPoint, Plan, PlanStage
from lspm_ray.selection.queueing import Draws, Floats, Station, batch_seconds, simulate
from lspm_ray.serving.budget import Budget
from lspm_ray.serving.cascade import (
    Cascade,
    CascadeAnswer,
    Logits,
    Needs,
    NotServed,
    QueueFull,
    Rules,
    StageDown,
)
from lspm_ray.serving.config import Limits, ServeConfig
from lspm_ray.serving.engine import Engine
from lspm_ray.serving.metrics import Metrics
from lspm_ray.tasks import Encoded
from tests.serving.virtual_time import run
from tests.toys import toy_point

POINTS = [
    toy_point(0.95, 0.005, default=False),
    toy_point(0.9, 0.01),
    toy_point(0.8, 0.02, default=False),
    toy_point(0.7, 0.05, default=False),
]
THRESHOLDS = {point.alpha: point.threshold or 0.0 for point in POINTS}


def plan(points: Sequence[OperatingPoint] = tuple(POINTS), last: str = "full", rows_per_s: float | None = None) -> Plan:
    default = next(point for point in points if point.default)
    small, full = (ModelRef(name=name, uri=f"/models/{name}", digest=name) for name in ("small", last))
    first = PlanStage(model=small, temperature=1, threshold=default.threshold, batch_1_latency_ms=1, cost=0.02)
    second = PlanStage(model=full, temperature=1, threshold=None, batch_1_latency_ms=9, cost=1, rows_per_s=rows_per_s)
    return Plan(
        labels=["no", "yes"],
        task={"task": "text_classification"},
        validator={"validator": "max_probability"},
        stages=[first] if default.threshold is None else [first, second],
        points=list(points),
        certificate_id="c",
        expected={},
        reasons={},
    )


async def encode(texts: Sequence[str]) -> list[Encoded]:
    """A text is its score in thousandths."""
    return [np.array([int(text)]) for text in texts]


@dataclass
class Model:
    """Answers a row in `row_s`; the first variant is as sure as the text says, the last is always right."""

    row_s: float = 0.0
    sure: bool = False
    rows: list[int] = field(default_factory=list)
    failure: Exception | None = None

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        self.rows.append(len(inputs))
        await asyncio.sleep(self.row_s * len(inputs))
        if self.failure is not None:
            raise self.failure
        scores = np.array([0.999 if self.sure else row[0] / 1000 for row in inputs])
        return np.stack([np.log(scores), np.log1p(-scores)], axis=1).astype(np.float32)


class Encoder:
    async def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        return await encode(texts)


def engine(
    first: Model, last: Model, budget: Budget | None = None, max_alpha: float | None = None, max_waiting: int = 1000
) -> Engine:
    return Engine(
        plan(),
        None,
        Encoder(),  # type: ignore[arg-type]
        [first, last],
        limits=Limits(),
        metrics=Metrics(),
        max_batch_size=8,
        max_waiting=max_waiting,
        budget=budget,
        max_alpha=max_alpha,
    )


def now() -> float:
    return asyncio.get_running_loop().time()


class Closed:
    """A gate that lets at most some rows through."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def enter(self, rows: int, deadline: float | None) -> None:
        if rows > self.left:
            raise QueueFull("closed", retry_after_s=1.0)
        self.left -= rows

    def give_back(self, rows: int) -> None:
        self.left += rows


def ask(scores: str, tokens: int, needs: Needs | None = None, max_alpha: float | None = None) -> list[CascadeAnswer]:
    cascade = Cascade(Rules.of(plan()), encode, [Model(), Model(sure=True)], gate=Closed(tokens), max_alpha=max_alpha)
    return run(cascade.answer(scores.split(), needs or Needs()))


def given_under(answers: Sequence[CascadeAnswer]) -> list[tuple[bool, bool, float | None]]:
    return [(a.escalated, a.degraded, a.alpha) for a in answers]


def test_with_capacity_every_answer_is_given_under_the_default_point() -> None:
    answers = ask("960 910 850 650", 2)
    assert given_under(answers) == [
        (False, False, 0.01),
        (False, False, 0.01),
        (True, False, 0.01),
        (True, False, 0.01),
    ]


def test_without_it_answers_are_degraded_as_little_as_will_do() -> None:
    answers = ask("960 850 750 650", 2)
    assert given_under(answers) == [(False, False, 0.01), (False, True, 0.02), (True, False, 0.01), (True, False, 0.01)]
    answers = ask("960 850 750 650", 1)
    assert given_under(answers) == [(False, False, 0.01), (False, True, 0.02), (False, True, 0.05), (True, False, 0.01)]


def test_nothing_is_accepted_below_the_most_lenient_point() -> None:
    with pytest.raises(QueueFull):
        ask("960 650", 0)


def test_the_operator_may_forbid_degrading() -> None:
    assert given_under(ask("850", 0, max_alpha=0.02)) == [(False, True, 0.02)]
    for max_alpha in (0.0, 0.01):
        with pytest.raises(QueueFull):
            ask("850", 0, max_alpha=max_alpha)
    with pytest.raises(QueueFull):
        ask("750", 0, max_alpha=0.02)


def test_a_request_may_ask_for_a_risk() -> None:
    assert given_under(ask("960 910", 1, Needs(max_risk=0.005))) == [(False, False, 0.005), (True, False, 0.005)]
    assert given_under(ask("850", 0, Needs(max_risk=0.03))) == [(False, False, 0.02)]
    assert given_under(ask("750", 0, Needs(max_risk=1.0))) == [(False, False, 0.05)]


def test_a_request_that_asks_for_a_risk_is_refused_rather_than_degraded() -> None:
    with pytest.raises(QueueFull):
        ask("910", 0, Needs(max_risk=0.005))


def test_a_risk_that_no_point_keeps_is_refused_with_those_that_are_kept() -> None:
    with pytest.raises(NotServed, match=r"0\.001 or less") as caught:
        ask("960", 9, Needs(max_risk=0.001))
    assert caught.value.field == "max_risk"
    assert caught.value.hint == "Certified here: 0.005, 0.01, 0.02, 0.05; or ask for the full model (`full`)"


def test_the_full_model_answers_who_asks_for_it_but_not_beyond_its_capacity() -> None:
    first, last = Model(), Model(sure=True)
    cascade = Cascade(Rules.of(plan()), encode, [first, last], gate=Closed(2))
    answers = run(cascade.answer(["960", "650"], Needs(full=True)))
    assert [(a.variant, a.reason, a.alpha, a.validator_score) for a in answers] == [
        ("full", "requested", None, None)
    ] * 2
    assert (first.rows, last.rows) == ([], [2])
    with pytest.raises(QueueFull):
        run(cascade.answer(["960"], Needs(full=True)))


def test_a_plan_without_the_full_model_says_so() -> None:
    with pytest.raises(NotServed, match="medium has the last word") as caught:
        Rules.of(plan(last="medium")).check(Needs(full=True))
    assert caught.value.field == "full"
    with pytest.raises(NotServed):
        Rules.of(plan([toy_point(None)])).check(Needs(full=True))


def test_a_variant_that_serves_alone_keeps_the_points_at_which_it_does() -> None:
    rules = Rules.of(plan([toy_point(0.9, 0.005, default=False), toy_point(None, 0.01)]))
    with pytest.raises(NotServed, match=r"0\.005") as caught:
        rules.check(Needs(max_risk=0.005))
    assert caught.value.hint == "Certified here: 0.01"
    (answer,) = run(Cascade(rules, encode, [Model()]).answer(["510"], Needs(max_risk=0.01)))
    assert (answer.escalated, answer.degraded, answer.alpha) == (False, False, 0.01)


def test_tokens_of_rows_that_the_last_model_did_not_take_come_back() -> None:
    gate = Closed(5)
    last = Model(failure=QueueFull("busy"))
    cascade = Cascade(Rules.of(plan()), encode, [Model(), last], gate=gate)
    with pytest.raises(QueueFull):
        run(cascade.answer(["650"]))
    assert gate.left == 5
    (answer,) = run(cascade.answer(["850"]))  # refused by the model itself: the next point will do
    assert answer.degraded
    last.failure = StageDown("gone")
    with pytest.raises(StageDown):
        run(cascade.answer(["850"]))  # a fault, not overload: never a reason to accept more
    assert gate.left == 4


def test_a_request_whose_deadline_cannot_be_kept_is_refused_before_any_work() -> None:
    async def scenario() -> None:
        first = Model(row_s=0.1)
        made = engine(first, Model(sure=True))
        await made.answer(["960"])
        waiting = [asyncio.create_task(made.answer(["960"])) for _ in range(21)]
        await asyncio.sleep(0.05)
        started = now()
        with pytest.raises(QueueFull, match="left of deadline_ms") as caught:
            await made.answer(["960"], Needs(deadline=now() + 0.2))
        assert (now(), caught.value.cause) == (started, "deadline")
        assert caught.value.retry_after_s
        assert await made.answer(["960"], Needs(deadline=now() + 60))
        await asyncio.gather(*waiting)

    run(scenario())


def test_what_the_full_model_cannot_answer_in_time_is_degraded_or_refused() -> None:
    async def scenario() -> None:
        made = engine(Model(), Model(row_s=0.1, sure=True))
        await made.answer(["650"])
        waiting = [asyncio.create_task(made.answer(["650"])) for _ in range(21)]
        await asyncio.sleep(0.05)
        (answer,) = await made.answer(["850"], Needs(deadline=now() + 0.2))
        assert answer.degraded
        with pytest.raises(QueueFull) as caught:
            await made.answer(["650"], Needs(deadline=now() + 0.2))
        assert caught.value.cause == "deadline"
        await asyncio.gather(*waiting)

    run(scenario())


def test_the_budget_comes_from_what_was_measured_or_from_the_settings() -> None:
    measured, unknown = plan(rows_per_s=300.0), plan()
    assert ServeConfig().escalation_budget(measured) == (600.0, 600)
    assert ServeConfig().escalation_budget(unknown) is None
    assert ServeConfig().escalation_budget(plan([toy_point(None)])) is None
    three = ServeConfig.parse({"ingress": {"max_replicas": 3}, "escalation": {"rate": 90.0}})
    assert three.escalation_budget(measured) == (30.0, 256)
    own = ServeConfig.parse({"limits": {"max_texts": 16}, "escalation": {"rate": 90.0, "burst": 20}})
    assert own.escalation_budget(unknown) == (90.0, 20)


@dataclass
class Asked:
    """A request in a trace: when, what, and what came of it."""

    at: float
    scores: list[int]
    needs: Needs
    answers: list[CascadeAnswer] | None = None
    refused: QueueFull | None = None
    took_s: float = 0.0


async def play(made: Engine, trace: Sequence[Asked]) -> None:
    async def one(asked: Asked) -> None:
        await asyncio.sleep(asked.at)
        started = now()
        try:
            asked.answers = await made.answer([str(score) for score in asked.scores], asked.needs)
        except QueueFull as error:
            asked.refused = error
        asked.took_s = now() - started

    await asyncio.gather(*(one(asked) for asked in trace))


def check_answers(trace: Sequence[Asked], floor: float) -> None:
    """What holds under any load: nobody is accepted under a point that is not certified or that the request forbids."""
    for asked in trace:
        assert (asked.answers is None) != (asked.refused is None)
        if asked.refused is not None:
            assert asked.refused.retry_after_s is not None
            assert asked.refused.retry_after_s >= 0
        for score, answer in zip(asked.scores, asked.answers or [], strict=bool(asked.answers)):
            own = 0.01 if asked.needs.max_risk is None else 0.005
            if answer.escalated:
                assert (answer.variant, answer.degraded) == ("full", False)
                continue
            assert not asked.needs.full
            assert answer.alpha is not None
            assert score / 1000 >= THRESHOLDS[answer.alpha] >= floor
            assert answer.degraded == (answer.alpha > own) == (score / 1000 < THRESHOLDS[own])
            assert asked.needs.max_risk is None or not answer.degraded


# Away from the thresholds, where float32 decides.
some_scores = st.lists(st.integers(510, 990).filter(lambda score: score % 50 not in (0, 1, 49)), min_size=1, max_size=6)
some_needs = st.sampled_from([Needs(), Needs(), Needs(max_risk=0.005), Needs(full=True)])
arrivals = st.lists(st.tuples(st.floats(0, 2), some_scores, some_needs), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    arrivals,
    st.none() | st.tuples(st.floats(0.5, 50), st.integers(1, 8)),
    st.integers(1, 20),
    st.sampled_from([None, 0.0, 0.02]),
)
def test_no_load_and_no_budget_makes_an_answer_leave_below_the_floor(
    arrivals: list[tuple[float, list[int], Needs]],
    limits: tuple[float, int] | None,
    max_waiting: int,
    max_alpha: float | None,
) -> None:
    trace = [Asked(at, scores, needs) for at, scores, needs in arrivals]
    last = Model(row_s=0.05, sure=True)

    async def scenario() -> None:
        budget = Budget(*limits, clock=now) if limits else None
        await play(engine(Model(row_s=0.001), last, budget, max_alpha, max_waiting), trace)
        if budget is not None:
            assert 0 <= budget.tokens <= budget.burst
            assert sum(last.rows) <= budget.burst + budget.rate * now() + 1e-6

    run(scenario())
    check_answers(trace, floor={None: 0.7, 0.0: 0.9, 0.02: 0.8}[max_alpha])


def test_at_twice_the_capacity_the_excess_is_refused_at_once_and_nothing_leaves_below_the_floor() -> None:
    capacity, seconds = 100.0, 20.0
    rng = np.random.default_rng(0)
    # 300 requests a second of which two thirds score below the floor: 200 a second for a model that takes 100.
    times = np.cumsum(rng.exponential(1 / 300, int(300 * seconds)))
    scores = np.where(rng.random(len(times)) < 2 / 3, 650, rng.choice([850, 750, 970], len(times)))
    trace = [Asked(float(at), [int(score)], Needs()) for at, score in zip(times, scores, strict=True)]
    last = Model(row_s=1 / capacity, sure=True)

    async def scenario() -> None:
        await play(engine(Model(row_s=0.0005), last, Budget(capacity, 10, now)), trace)

    run(scenario())
    check_answers(trace, floor=0.7)
    refused = [asked for asked in trace if asked.refused]
    answered = [asked for asked in trace if asked.answers]
    assert max(asked.took_s for asked in refused) < 0.02
    assert all(asked.scores == [650] for asked in refused)
    assert np.quantile([asked.took_s for asked in answered], 0.99) < 0.3
    assert sum(last.rows) > 0.95 * capacity * seconds
    assert any(answer.degraded for asked in answered for answer in asked.answers or [])


@dataclass
class Replicas:
    """A model on some replicas, which compute one call at a time."""

    seconds: Floats
    servers: int
    sure: bool = False

    def __post_init__(self) -> None:
        self.free = asyncio.Semaphore(self.servers)

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        async with self.free:
            await asyncio.sleep(self.seconds[len(inputs) - 1])
        return await Model(sure=self.sure)(inputs)


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_the_planner_s_queues_are_the_engine_s(servers: int, calls: int, load: float) -> None:
    largest = 16
    first_s, last_s = batch_seconds({1: 800}, largest), batch_seconds({1: 50, 8: 150, 16: 160}, largest)
    stations = [Station(first_s), Station(last_s, servers, reach=0.3, calls=calls)]
    rate = load * min(station.capacity for station in stations)
    draws = Draws.of(1200, seed=3)
    times = np.cumsum(draws.gaps) / rate
    scores = np.where(draws.depth < 0.3, 650, 970)
    trace = [Asked(float(at), [int(score)], Needs()) for at, score in zip(times, scores, strict=True)]

    async def scenario() -> None:
        stages = [Replicas(first_s, 1), Replicas(last_s, servers, sure=True)]
        options = {"limits": Limits(), "metrics": Metrics(), "max_batch_size": largest, "max_waiting": 10_000}
        made = Engine(plan(), None, Encoder(), stages, calls=calls * servers, **options)  # type: ignore[arg-type]
        await play(made, trace)

    run(scenario())
    seen_ms = 1e3 * np.array([asked.took_s for asked in trace])[120:]
    expected = simulate(stations, rate, draws)
    assert expected.p50_ms == pytest.approx(np.quantile(seen_ms, 0.5), rel=1e-6)
    # Rows that one batch escalates arrive at one moment, which the engine and the planner may split otherwise.
    assert expected.p99_ms == pytest.approx(np.quantile(seen_ms, 0.99), rel=0.005)
