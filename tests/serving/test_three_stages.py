"""A cascade of three: a middle model between the first variant and the last, in virtual time."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.artifact import ArtifactStore
from lspm_ray.audit.config import AuditConfig
from lspm_ray.audit.keeper import Keeper, Place
from lspm_ray.errors import CertificateError
from lspm_ray.inference.predictor import Predictor
from lspm_ray.selection.conformal import ConformalConfig, LabelSets
from lspm_ray.selection.plan import ModelRef, OperatingPoint, Plan, PlanStage
from lspm_ray.selection.queueing import Draws, Floats, Station, batch_seconds, simulate
from lspm_ray.serving.auditor import Auditor
from lspm_ray.serving.budget import Budget
from lspm_ray.serving.bundle import Bundle, check_certificate, load_bundle
from lspm_ray.serving.cascade import Cascade, CascadeAnswer, Full, Logits, Needs, QueueFull, Rules, StageDown
from lspm_ray.serving.config import Limits
from lspm_ray.serving.engine import Encoder, Engine, LocalStage
from lspm_ray.serving.metrics import Metrics
from lspm_ray.serving.offline import LocalClient
from lspm_ray.serving.router import model_infos
from lspm_ray.tasks import Encoded
from tests.serving.test_auditor import Here, until
from tests.serving.virtual_time import run
from tests.toys import toy_plan, toy_point, toy_texts

THRESHOLDS = {0.005: (0.95, 0.9), 0.01: (0.9, 0.8), 0.02: (0.8, 0.7), 0.05: (0.7, 0.6)}


def point(alpha: float) -> OperatingPoint:
    first, middle = THRESHOLDS[alpha]
    limits = {"middle_thresholds": [middle], "middle_escalation_rates": [0.1]}
    return toy_point(first, alpha, default=alpha == 0.01).model_copy(update=limits)


def plan(last: str = "full", **middle: Any) -> Plan:
    def stage(name: str, threshold: float | None, **numbers: Any) -> PlanStage:
        model = ModelRef(name=name, uri=f"/models/{name}", digest=name)
        given = {"temperature": 1.0, "batch_1_latency_ms": 1, "cost": 1} | numbers
        return PlanStage(model=model, threshold=threshold, **given)

    return Plan(
        labels=["no", "yes"],
        task={"task": "text_classification"},
        validator={"validator": "max_probability"},
        stages=[stage("small", 0.9), stage("middle", 0.8, **middle), stage(last, None)],
        points=[point(alpha) for alpha in THRESHOLDS],
        certificate_id="c",
        expected={},
        reasons={},
    )


async def encode(texts: Sequence[str]) -> list[Encoded]:
    """A text is what the first and the middle model will be sure of, in thousandths: `850/990`."""
    return [np.array([int(part) for part in text.split("/")]) for text in texts]


@dataclass
class Model:
    """Answers `label` as surely as the text says at `place`, in `row_s` per row."""

    place: int
    label: int = 0
    row_s: float = 0.0
    rows: list[int] = field(default_factory=list)
    fails: Exception | None = None
    gives: Callable[[Logits], Any] | None = None

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        self.rows.append(len(inputs))
        await asyncio.sleep(self.row_s * len(inputs))
        if self.fails is not None:
            raise self.fails
        sure = np.array([0.999 if self.place == 2 else row[self.place] / 1000 for row in inputs])
        logits = np.log(np.stack([sure, 1 - sure], axis=1)).astype(np.float32)[:, :: -1 if self.label else 1]
        return logits if self.gives is None else self.gives(logits)


def models() -> list[Model]:
    return [Model(0), Model(1, label=1), Model(2)]


def cascade(stages: Sequence[Model] | None = None, served: Plan | None = None, **options: Any) -> Cascade:
    return Cascade(Rules.of(served or plan()), encode, stages or models(), **options)


def ask(texts: str, *args: Any, needs: Needs | None = None, **options: Any) -> list[CascadeAnswer]:
    return run(cascade(*args, **options).answer(texts.split(), needs or Needs()))


class Closed:
    """A gate that lets at most some rows through; it remembers how many were at it."""

    def __init__(self, rows: int) -> None:
        self.left = rows
        self.asked: list[int] = []

    def enter(self, rows: int, deadline: float | None) -> None:
        self.asked.append(rows)
        if rows > self.left:
            raise QueueFull("closed", retry_after_s=1.0)
        self.left -= rows

    def give_back(self, rows: int) -> None:
        self.left += rows


def seen(answers: Sequence[CascadeAnswer]) -> list[tuple[str, str | None, float | None, bool]]:
    return [(a.variant, a.reason, a.alpha, a.degraded) for a in answers]


def test_what_a_stage_cannot_vouch_for_goes_on_to_the_next_in_one_call_each() -> None:
    stages = models()
    answers = ask("960/500 850/850 850/750 500/990", stages)
    assert seen(answers) == [
        ("small", None, 0.01, False),
        ("middle", "low_score", 0.01, False),
        ("full", "low_score", 0.01, False),
        ("middle", "low_score", 0.01, False),
    ]
    assert [stage.rows for stage in stages] == [[4], [3], [1]]
    assert [a.label for a in answers] == ["no", "yes", "no", "yes"]
    assert [a.escalated for a in answers] == [False, True, True, True]
    # The score is the first variant's, whoever answers: drift is watched in it.
    assert [a.validator_score for a in answers] == pytest.approx([0.96, 0.85, 0.85, 0.5], abs=1e-4)
    assert [a.probability for a in answers] == pytest.approx([0.96, 0.85, 0.999, 0.99], abs=1e-4)


def test_nothing_to_escalate_leaves_later_models_alone() -> None:
    stages = models()
    ask("960/500 500/900", stages)
    assert [stage.rows for stage in stages] == [[2], [1], []]
    ask("960/500", stages)
    assert [stage.rows for stage in stages] == [[2, 1], [1], []]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"fails": RuntimeError("out of memory")}, "error"),
        ({"fails": StageDown("gone")}, "error"),
        ({"fails": TimeoutError()}, "timeout"),
        ({"gives": lambda logits: logits * np.nan}, "invalid_output"),
        ({"gives": lambda logits: logits[:, :1]}, "invalid_output"),
    ],
)
def test_a_fault_of_any_stage_but_the_last_makes_the_next_one_answer(place: int, fault: Any, reason: str) -> None:
    stages = models()
    stages[place] = Model(place, **fault)
    answers = ask("960/500 500/990", stages)
    if place == 0:
        assert [(a.variant, a.reason) for a in answers] == [("full", "low_score"), ("middle", reason)]
    else:
        assert [(a.variant, a.reason) for a in answers] == [("small", None), ("full", reason)]


def test_one_unusable_row_of_the_middle_goes_on_alone() -> None:
    stages = models()
    stages[1].gives = lambda logits: np.where(np.array([[True], [False]]), np.nan, logits)
    answers = ask("500/990 500/980", stages)
    assert [(a.variant, a.reason) for a in answers] == [("full", "invalid_output"), ("middle", "low_score")]


def test_an_unusable_last_word_is_never_an_answer() -> None:
    with pytest.raises(StageDown, match="full"):
        ask("500/500", [*models()[:2], Model(2, gives=lambda logits: logits * np.nan)])


def test_checks_refuse_answers_of_every_stage_but_the_last() -> None:
    refusing = plan().model_copy(update={"checks": [{"check": "labels", "escalate": ["yes"]}]})
    assert [(a.variant, a.reason) for a in ask("960/500 500/990", served=refusing)] == [
        ("small", None),
        ("full", "label"),
    ]


def test_each_stage_has_its_own_temperature_and_label_sets() -> None:
    answers = ask("500/990", served=plan(temperature=10.0))
    assert (answers[0].variant, answers[0].reason) == ("full", "low_score")

    def sets(limit: float) -> LabelSets:
        return LabelSets(config=ConformalConfig(), level=0.98, limits=(limit, limit), rows=100)

    limits = zip(plan().stages, [0.97, 0.1, 0.99999], strict=True)
    stages = [stage.model_copy(update={"label_sets": sets(limit)}) for stage, limit in limits]
    covered = plan().model_copy(update={"stages": stages})
    answers = ask("960/500 500/950 500/500", served=covered)
    assert [a.label_set for a in answers] == [("no", "yes"), ("yes",), ("no", "yes")]


def test_full_and_the_end_of_the_certificate_go_past_the_middle() -> None:
    stages = models()
    answers = ask("960/990 500/990", stages, needs=Needs(full=True))
    assert seen(answers) == [("full", "requested", None, False)] * 2
    assert [stage.rows for stage in stages] == [[], [], [2]]
    revoked, other = cascade(stages), Model(2)
    revoked.revoke(Full("other", 1.0, other))
    assert seen(run(revoked.answer(["960/990"]))) == [("other", "revoked", None, False)]
    assert [stage.rows for stage in (*stages, other)] == [[], [], [2], [1]]


def test_a_request_may_ask_for_a_risk() -> None:
    answers = ask("960/500 910/910 910/850", needs=Needs(max_risk=0.005))
    assert seen(answers) == [
        ("small", None, 0.005, False),
        ("middle", "low_score", 0.005, False),
        ("full", "low_score", 0.005, False),
    ]


def test_without_room_for_the_last_model_a_more_lenient_point_lets_both_stages_accept_more() -> None:
    stages, gate = models(), Closed(1)
    answers = ask("850/650 500/750 500/500", stages, gate=gate)
    assert seen(answers) == [
        ("small", None, 0.02, True),
        ("middle", "low_score", 0.02, True),
        ("full", "low_score", 0.01, False),
    ]
    # Nobody is asked twice about the same text.
    assert [stage.rows for stage in stages] == [[3], [3], [1]]
    with pytest.raises(QueueFull):
        ask("500/500", gate=Closed(0))
    with pytest.raises(QueueFull):
        ask("850/650", gate=Closed(0), max_alpha=0.0)


def test_an_answer_names_the_strictest_point_under_which_it_would_have_been_the_same() -> None:
    """The request comes down to alpha = 5 % for one text; the others would have had theirs earlier."""
    answers = ask("500/650 500/750 850/650 750/500 960/500 500/810", gate=Closed(0))
    assert [(a.variant, a.alpha) for a in answers] == [
        ("middle", 0.05),
        ("middle", 0.02),
        ("small", 0.02),
        ("small", 0.05),
        ("small", 0.01),
        ("middle", 0.01),
    ]
    assert [a.degraded for a in answers] == [True, True, True, True, False, False]


def test_a_full_queue_of_the_middle_degrades_or_refuses_and_never_goes_past_it() -> None:
    stages, middle = models(), Closed(1)
    answers = ask("850/990 500/990", stages, middle_gates=[middle])
    assert seen(answers) == [("small", None, 0.02, True), ("middle", "low_score", 0.01, False)]
    with pytest.raises(QueueFull):
        ask("500/990", stages, middle_gates=[Closed(0)])
    assert stages[2].rows == []
    # A point that lets no fewer through is not tried.
    closed = Closed(0)
    with pytest.raises(QueueFull):
        ask("500/990", middle_gates=[closed])
    assert closed.asked == [1]
    refusing = [Model(0), Model(1, fails=QueueFull("busy")), Model(2)]
    with pytest.raises(QueueFull, match="busy"):
        ask("500/990", refusing)
    assert refusing[2].rows == []


class TextEncoder:
    async def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        return await encode(texts)


def engine(stages: Sequence[Model], **options: Any) -> Engine:
    given: dict[str, Any] = {"max_batch_size": 8, "max_waiting": 1000} | options
    return Engine(plan(), None, TextEncoder(), stages, limits=Limits(), metrics=Metrics(), **given)  # type: ignore[arg-type]


def now() -> float:
    return asyncio.get_running_loop().time()


def test_requests_share_calls_of_every_stage() -> None:
    stages = models()

    async def scenario() -> list[list[CascadeAnswer]]:
        made = engine(stages)
        return await asyncio.gather(*(made.answer([text]) for text in ["960/500", "500/990", "500/500", "500/980"]))

    answers = run(scenario())
    assert [a.variant for (a,) in answers] == ["small", "middle", "full", "middle"]
    assert [stage.rows for stage in stages] == [[4], [3], [1]]


def test_a_middle_model_that_hangs_costs_its_requests_the_timeout_but_waiting_for_it_does_not() -> None:
    async def scenario(row_s: float) -> list[CascadeAnswer]:
        made = engine([Model(0), Model(1, row_s=row_s), Model(2)], max_batch_size=1, first_timeout_s=2.0)
        answers = await asyncio.gather(*(made.answer(["500/990"]) for _ in range(4)))
        return [answer for (answer,) in answers]

    assert {(a.variant, a.reason) for a in run(scenario(3.0))} == {("full", "timeout")}
    assert {(a.variant, a.reason) for a in run(scenario(1.5))} == {("middle", "low_score")}


def test_what_the_middle_cannot_answer_in_time_is_degraded_or_refused() -> None:
    async def scenario() -> None:
        made = engine([Model(0), Model(1, row_s=0.1), Model(2)])
        await made.answer(["500/990"])
        waiting = [asyncio.create_task(made.answer(["500/990"])) for _ in range(21)]
        await asyncio.sleep(0.05)
        (answer,) = await made.answer(["850/990"], Needs(deadline=now() + 0.2))
        assert (answer.variant, answer.degraded) == ("small", True)
        with pytest.raises(QueueFull, match="left of deadline_ms") as caught:
            await made.answer(["500/990"], Needs(deadline=now() + 0.2))
        assert caught.value.cause == "deadline"
        await asyncio.gather(*waiting)

    run(scenario())


# Away from the thresholds, where float32 decides.
sure = st.integers(510, 990).filter(lambda score: score % 50 not in (0, 1, 49))
requests = st.lists(
    st.tuples(
        st.floats(0, 2),
        st.lists(st.tuples(sure, sure), min_size=1, max_size=5),
        st.sampled_from([Needs(), Needs(), Needs(max_risk=0.005), Needs(full=True)]),
    ),
    min_size=1,
    max_size=25,
)


def check(scores: tuple[int, int], answer: CascadeAnswer, own: float, floor: float) -> None:
    """Each answer is what its point gives, and no stage accepts below the most lenient one."""
    if answer.reason == "requested":
        assert (answer.variant, answer.alpha) == ("full", None)
        return
    assert answer.alpha is not None and own <= answer.alpha <= floor
    first, middle = (scores[stage] / 1000 >= THRESHOLDS[answer.alpha][stage] for stage in (0, 1))
    assert answer.variant == ("small" if first else "middle" if middle else "full")
    assert answer.degraded == (answer.alpha > own)
    if answer.degraded:
        stricter = list(THRESHOLDS)[list(THRESHOLDS).index(answer.alpha) - 1]
        stage = 0 if first else 1
        assert scores[stage] / 1000 < THRESHOLDS[stricter][stage]


@settings(max_examples=60, deadline=None)
@given(requests, st.none() | st.tuples(st.floats(0.5, 50), st.integers(1, 8)), st.integers(1, 20))
def test_under_any_load_every_answer_is_that_of_a_certified_point(
    arrivals: list[tuple[float, list[tuple[int, int]], Needs]], limits: tuple[float, int] | None, max_waiting: int
) -> None:
    stages = [Model(0, row_s=0.001), Model(1, row_s=0.02), Model(2, row_s=0.05)]

    async def scenario() -> None:
        budget = Budget(*limits, clock=now) if limits else None
        made = engine(stages, budget=budget, max_waiting=max_waiting)

        async def one(at: float, scores: list[tuple[int, int]], needs: Needs) -> None:
            await asyncio.sleep(at)
            own = 0.01 if needs.max_risk is None else 0.005
            try:
                answers = await made.answer(["/".join(map(str, pair)) for pair in scores], needs)
            except QueueFull as error:
                assert error.retry_after_s is not None and error.retry_after_s >= 0
                return
            for pair, answer in zip(scores, answers, strict=True):
                check(pair, answer, own, 0.05 if needs.max_risk is None else own)

        await asyncio.gather(*(one(*arrival) for arrival in arrivals))
        if budget is not None:
            assert sum(stages[2].rows) <= budget.burst + budget.rate * now() + 1e-6

    run(scenario())


@dataclass
class Replicas:
    """A model on one replica, which computes one call at a time."""

    model: Model
    seconds: Floats

    def __post_init__(self) -> None:
        self.free = asyncio.Semaphore(1)

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        async with self.free:
            await asyncio.sleep(self.seconds[len(inputs) - 1])
        return await self.model(inputs)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_the_planner_s_queues_are_the_engine_s(load: float) -> None:
    largest, reach = 16, (1.0, 0.3, 0.1)
    times_s = [batch_seconds(rates, largest) for rates in ({1: 800}, {1: 90, 8: 250}, {1: 30, 8: 60})]
    stations = [Station(seconds, reach=share) for seconds, share in zip(times_s, reach, strict=True)]
    rate = load * min(station.capacity for station in stations)
    draws = Draws.of(1500, seed=3)
    arrivals = np.cumsum(draws.gaps) / rate
    texts = ["500/500" if depth < 0.1 else "500/990" if depth < 0.3 else "960/500" for depth in draws.depth]
    took_s = np.zeros(len(texts))

    async def scenario() -> None:
        stages = [Replicas(model, seconds) for model, seconds in zip(models(), times_s, strict=True)]
        made = engine(stages, max_batch_size=largest, max_waiting=10_000)  # type: ignore[arg-type]

        async def one(number: int) -> None:
            await asyncio.sleep(arrivals[number])
            await made.answer([texts[number]])
            took_s[number] = now() - arrivals[number]

        await asyncio.gather(*(one(number) for number in range(len(texts))))

    run(scenario())
    expected = simulate(stations, rate, draws)
    assert expected.p50_ms == pytest.approx(1e3 * np.quantile(took_s[150:], 0.5), rel=1e-6)
    assert expected.p99_ms == pytest.approx(1e3 * np.quantile(took_s[150:], 0.99), rel=0.01)


@pytest.fixture(scope="module")
def bundle(toy_store: ArtifactStore) -> Bundle:
    return load_bundle(toy_plan(toy_store, threshold=0.95, middle=0.75).uri)


@pytest.fixture(scope="module")
def predictors(bundle: Bundle) -> list[Predictor]:
    return [bundle.predictor(stage, 1) for stage in range(3)]


def test_offline_gives_the_same_answers(bundle: Bundle, predictors: list[Predictor]) -> None:
    texts = toy_texts(60)
    stages = [LocalStage(predictor) for predictor in predictors]
    encoder = Encoder(Rules.of(bundle.plan).task, bundle.tokenizer())
    made = Engine(
        bundle.plan,
        bundle.certificate,
        encoder,
        stages,
        limits=Limits(),
        metrics=Metrics(),
        max_batch_size=64,
        max_waiting=1000,
    )
    online = asyncio.run(made.answer(texts))
    assert {answer.variant for answer in online} == {"variant-toy", "middle-toy", "full"}
    for served, local in zip(online, LocalClient(bundle, predictors, bundle.tokenizer()).predict(texts), strict=True):
        assert (served.label, served.probability, served.variant) == (local.label, local.probability, local.variant)
        assert (served.validator_score, served.reason) == (local.validator_score, local.reason)


def test_a_plan_whose_middle_differs_from_its_certificate_is_refused(bundle: Bundle) -> None:
    raw = bundle.plan.model_dump(mode="json")
    raw["stages"][1]["temperature"] = 1.0
    with pytest.raises(CertificateError, match="differs from its certificate") as caught:
        check_certificate(Plan.parse(raw), bundle.certificate)
    assert caught.value.field == "middle"
    raw = bundle.plan.model_dump(mode="json")
    raw["stages"][1]["threshold"] = 0.5
    with pytest.raises(CertificateError) as caught:
        check_certificate(Plan.parse(raw), bundle.certificate)
    assert caught.value.field == "middle thresholds"
    check_certificate(bundle.plan, bundle.certificate)


def test_clients_see_the_role_of_each_model(bundle: Bundle) -> None:
    assert [info.role for info in model_infos(bundle.plan)] == ["first", "middle", "last"]


def test_answers_of_the_first_and_the_middle_model_are_audited(
    bundle: Bundle, predictors: list[Predictor], tmp_path: Any
) -> None:
    assert bundle.certificate is not None
    certificate = bundle.certificate.model_copy(update={"risk": "disagreement"})
    keeper = Here(Keeper(Place("c", "p", str(tmp_path / "audit")), certificate, 0.01, lambda: 1000.0))
    encoder, metrics = Encoder(Rules.of(bundle.plan).task, bundle.tokenizer()), Metrics()
    shadowed: list[int] = []

    def audit(full: Full, idle: Callable[[], bool]) -> Auditor:
        async def counted(inputs: Sequence[Encoded]) -> Logits:
            shadowed.append(len(inputs))
            return await full.stage(inputs)

        shadow = Full(full.name, full.temperature, counted)
        config = AuditConfig.parse({"share": 1.0, "sync_s": 0.01})
        return Auditor(config, "one", Rules.of(bundle.plan), encoder, shadow, idle, keeper, metrics)

    async def scenario() -> None:
        made = Engine(
            bundle.plan,
            certificate,
            encoder,
            [LocalStage(predictor) for predictor in predictors],
            limits=Limits(),
            metrics=metrics,
            max_batch_size=64,
            max_waiting=1000,
            audit=audit,
        )
        texts = toy_texts(40)
        answers = await made.answer(texts)
        made.answered("r", texts, answers)
        own = [answer for answer in answers if answer.variant != "full"]
        assert {answer.variant for answer in own} == {"variant-toy", "middle-toy"}
        await until(lambda: len(shadowed) == len(own) or made.certificate_id is None)
        await until(lambda: made.certificate_id is None)  # toys that disagree by far more than was promised
        assert {answer.variant for answer in await made.answer(texts[:5])} == {"full"}

    asyncio.run(scenario())
