import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact
from lspm_ray.inference.predictor import Predictor
from lspm_ray.serving import engine
from lspm_ray.serving.bundle import Bundle, load_bundle
from lspm_ray.serving.cascade import CascadeAnswer, Logits, QueueFull, Rules
from lspm_ray.serving.client import EndpointError
from lspm_ray.serving.config import Limits
from lspm_ray.serving.engine import LONG_CHARACTERS, Encoder, Engine, LocalStage
from lspm_ray.serving.metrics import Metrics
from lspm_ray.serving.offline import LocalClient
from lspm_ray.tasks import Encoded
from tests.toys import toy_texts


class Recording:
    """A stage that remembers how many rows each call had."""

    def __init__(self, stage: LocalStage) -> None:
        self.stage = stage
        self.calls: list[int] = []

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        self.calls.append(len(inputs))
        return await self.stage(inputs)


@pytest.fixture(scope="module")
def bundle(toy_select: Artifact) -> Bundle:
    return load_bundle(toy_select.uri)


@pytest.fixture(scope="module")
def predictors(bundle: Bundle) -> list[Predictor]:
    return [bundle.predictor(stage, 1) for stage in range(2)]


def make(bundle: Bundle, predictors: list[Predictor], **options: Any) -> tuple[Engine, list[Recording]]:
    stages = [Recording(LocalStage(predictor)) for predictor in predictors]
    encoder = Encoder(Rules.of(bundle.plan).task, bundle.tokenizer())
    settings: dict[str, Any] = {
        "limits": Limits(),
        "metrics": Metrics(),
        "max_batch_size": 64,
        "max_waiting": 1000,
    } | options
    return Engine(bundle.plan, bundle.certificate, encoder, stages, **settings), stages


def test_answers_do_not_depend_on_how_requests_are_batched(bundle: Bundle, predictors: list[Predictor]) -> None:
    texts = toy_texts(60)
    made, stages = make(bundle, predictors)

    async def scenario() -> list[list[CascadeAnswer]]:
        return list(await asyncio.gather(*(made.answer(texts[start : start + 3]) for start in range(0, 60, 3))))

    together = [answer for answers in asyncio.run(scenario()) for answer in answers]
    apart = [asyncio.run(make(bundle, predictors)[0].answer([text]))[0] for text in texts]
    assert [(a.label, a.variant) for a in together] == [(a.label, a.variant) for a in apart]
    np.testing.assert_allclose([a.probability for a in together], [a.probability for a in apart], atol=1e-6)
    assert stages[0].calls == [60]
    assert 0 < sum(stages[1].calls) == sum(a.escalated for a in together) < 60


def test_offline_gives_the_same_answers(bundle: Bundle, predictors: list[Predictor]) -> None:
    texts = toy_texts(40, seed=1)
    online = asyncio.run(make(bundle, predictors)[0].answer(texts))
    offline = LocalClient(bundle, predictors, bundle.tokenizer()).predict(texts)
    for served, local in zip(online, offline, strict=True):
        assert (served.label, served.probability, served.variant) == (local.label, local.probability, local.variant)
        assert (served.validator_score, served.reason) == (local.validator_score, local.reason)


def test_offline_takes_the_same_needs(bundle: Bundle, predictors: list[Predictor]) -> None:
    local = LocalClient(bundle, predictors, bundle.tokenizer())
    texts = toy_texts(5)
    assert {(a.variant, a.reason, a.alpha) for a in local.predict(texts, full=True)} == {("full", "requested", None)}
    assert {a.alpha for a in local.predict(texts, max_risk=0.5)} == {0.01}
    with pytest.raises(EndpointError, match="certified") as caught:
        local.predict(texts, max_risk=0.001)
    assert (caught.value.status, caught.value.field) == (422, "max_risk")


@pytest.mark.parametrize("tail", ["", " " + "again " * LONG_CHARACTERS])
def test_texts_are_cut_where_the_plan_says(bundle: Bundle, predictors: list[Predictor], tail: str) -> None:
    short = dataclasses.replace(bundle, plan=bundle.plan.model_copy(update={"max_characters": len("love it")}))
    expected = asyncio.run(make(bundle, predictors)[0].answer(["love it"]))
    assert asyncio.run(make(short, predictors)[0].answer(["love it, terrible, bad" + tail])) == expected
    (local,) = LocalClient(short, predictors, bundle.tokenizer()).predict(["love it, terrible, bad" + tail])
    assert (local.label, local.probability) == (expected[0].label, expected[0].probability)


def test_a_long_request_does_not_share_a_batch(bundle: Bundle, predictors: list[Predictor]) -> None:
    made, stages = make(bundle, predictors)
    long = ["love " * (LONG_CHARACTERS // 5 + 1)]

    async def scenario() -> Any:
        return await asyncio.gather(made.answer(long), made.answer(["love it"]), made.answer(["bad fit"]))

    assert all(asyncio.run(scenario()))
    assert sorted(stages[0].calls) == [1, 2]


def test_tokens_are_the_same_in_the_thread_and_on_the_loop(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(Rules.of(bundle.plan).task, bundle.tokenizer())
    texts = toy_texts(10)

    async def scenario() -> None:
        inline = await encoder(texts)
        monkeypatch.setattr(engine, "INLINE_CHARACTERS", 0)
        threaded = await asyncio.gather(*(encoder(texts) for _ in range(5)), encoder(texts[:1]))
        assert [row.tolist() for row in threaded[0]] == [row.tolist() for row in inline]

    asyncio.run(scenario())


class Blocking(Predictor):
    """Computes until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(["no", "yes"])
        self.threads: list[int] = []
        self.entered = threading.Event()
        self.leave = threading.Event()

    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        self.threads.append(threading.get_ident())
        self.entered.set()
        assert self.leave.wait(10)
        return np.zeros((len(batch), 2), dtype=np.float32)


ROW = np.arange(3, dtype=np.int64)


def test_long_inference_leaves_the_event_loop_free_and_can_be_watched() -> None:
    predictor = Blocking()
    stage = LocalStage(predictor)

    async def scenario() -> None:
        call = asyncio.create_task(stage([ROW]))
        await asyncio.to_thread(predictor.entered.wait, 10)
        assert stage.busy_s() > 0
        predictor.leave.set()
        assert (await call).shape == (1, 2)
        assert stage.busy_s() == 0

    asyncio.run(scenario())
    assert predictor.threads != [threading.get_ident()]


def test_quick_inference_stays_on_the_event_loop() -> None:
    predictor = Blocking()
    predictor.leave.set()
    stage = LocalStage(predictor, row_ms=0.1)
    asyncio.run(stage([ROW]))
    assert predictor.threads == [threading.get_ident()]
    asyncio.run(stage([ROW] * 100))
    assert predictor.threads[1] != threading.get_ident()


def test_a_first_variant_that_hangs_costs_its_requests_the_timeout_and_the_full_model_answers(
    bundle: Bundle, predictors: list[Predictor]
) -> None:
    hanging = Blocking()
    made, _ = make(bundle, [hanging, predictors[1]], first_timeout_s=0.05)
    answers = asyncio.run(_released(made.answer(["love it", "bad"]), hanging))
    assert {a.reason for a in answers} == {"timeout"}
    assert {a.variant for a in answers} == {"full"}


async def _released(answer: Any, hanging: Blocking) -> list[CascadeAnswer]:
    try:
        found: list[CascadeAnswer] = await answer
        return found
    finally:
        hanging.leave.set()


def test_too_many_waiting_escalations_are_refused(bundle: Bundle, predictors: list[Predictor]) -> None:
    full = Blocking()
    made, _ = make(bundle, [predictors[0], full], max_batch_size=1, max_waiting=1)
    escalated = [text for text in toy_texts(40) if asyncio.run(_escalates(bundle, predictors, text))][:3]

    async def scenario() -> None:
        waiting = []
        for text in escalated[:2]:
            waiting.append(asyncio.create_task(made.answer([text])))
            await asyncio.to_thread(full.entered.wait, 10)
            for _ in range(20):
                await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="1 rows are waiting"):
            await made.answer([escalated[2]])
        full.leave.set()
        assert len(await asyncio.gather(*waiting)) == 2

    asyncio.run(scenario())


async def _escalates(bundle: Bundle, predictors: list[Predictor], text: str) -> bool:
    made, _ = make(bundle, predictors)
    return (await made.answer([text]))[0].escalated


def test_readiness_is_asked_of_the_remote_models(bundle: Bundle, predictors: list[Predictor]) -> None:
    async def down() -> str | None:
        return "model full does not answer"

    assert asyncio.run(make(bundle, predictors)[0].not_ready()) is None
    assert asyncio.run(make(bundle, predictors, not_ready=down)[0].not_ready()) == "model full does not answer"
