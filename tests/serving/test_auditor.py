import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.audit.config import AuditConfig
from lspm_ray.audit.keeper import Keeper, Place, Report, Standing
from lspm_ray.audit.ledger import Feedback, Revocation
from lspm_ray.errors import CertificateError
from lspm_ray.selection.plan import Certificate, DisagreementBound
from lspm_ray.serving.app import build
from lspm_ray.serving.auditor import Auditor
from lspm_ray.serving.bundle import Bundle, load_bundle
from lspm_ray.serving.cascade import NO_NEEDS, Full, Logits, Needs, QueueFull, Rules
from lspm_ray.serving.config import Limits, ServeConfig, why_unaudited
from lspm_ray.serving.engine import Encoder, Engine, LocalStage
from lspm_ray.serving.metrics import Metrics
from lspm_ray.serving.render import render
from lspm_ray.tasks import Encoded
from tests.toys import toy_plan, toy_texts


class Here:
    """A keeper in this process; unreachable on demand."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.down = False

    async def report(self, given: Report) -> Standing:
        if self.down:
            raise ConnectionError("nobody there")
        standing = self.keeper.report(Report.parse(given.model_dump(mode="json")))
        self.keeper.flush()
        return standing

    async def status(self) -> dict[str, Any]:
        return self.keeper.status().model_dump(mode="json")


class Endpoint:
    """Routers of one plan with a keeper between them."""

    def __init__(self, bundle: Bundle, certificate: Certificate, place: Place, **config: Any) -> None:
        self.bundle, self.certificate, self.place = bundle, certificate, place
        self.config = AuditConfig.parse({"share": 1.0, "sync_s": 0.01} | config)
        self.peer = Here(Keeper(place, certificate, self.config.delta, lambda: 1000.0))
        self.asked: list[int] = []
        self.metrics = Metrics()
        self.busy = False

    def router(self, name: str, shadow: Callable[[Sequence[Encoded]], Awaitable[Logits]] | None = None) -> Engine:
        predictors = [self.bundle.predictor(stage, 1) for stage in range(len(self.bundle.plan.stages))]
        alone = len(predictors) == 1
        first = LocalStage(predictors[0])

        async def counted(inputs: Sequence[Encoded]) -> Logits:
            self.asked.append(len(inputs))
            return await first(inputs)

        def audit(full: Full, idle: Callable[[], bool]) -> Auditor:
            if shadow is not None:
                full = Full(full.name, full.temperature, shadow)
            return Auditor(
                self.config,
                name,
                Rules.of(self.bundle.plan),
                encoder,
                full,
                lambda: idle() and not self.busy,
                self.peer,
                self.metrics,
                self.place.load().revoked,
            )

        encoder = Encoder(Rules.of(self.bundle.plan).task, self.bundle.tokenizer())
        return Engine(
            self.bundle.plan,
            self.certificate,
            encoder,
            [counted, *map(LocalStage, predictors[1:])],
            limits=Limits(),
            metrics=self.metrics,
            max_batch_size=64,
            max_waiting=1000,
            full=Full("full", 1.0, LocalStage(self.bundle.full_predictor(1))) if alone else None,
            audit=audit,
        )


async def ask(router: Engine, texts: Sequence[str], request_id: str = "r") -> list[Any]:
    answers = await router.answer(texts)
    router.answered(request_id, texts, answers)
    return answers


async def until(done: Callable[[], Any], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not done():  # noqa: ASYNC110 - it is not told
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def bundle(toy_select: Artifact) -> Bundle:
    return load_bundle(toy_select.uri)


@pytest.fixture
def strict(bundle: Bundle) -> Certificate:
    assert bundle.certificate is not None
    return bundle.certificate.model_copy(update={"risk": "disagreement"})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("c", "p", str(tmp_path / "audit"))


def test_disagreements_revoke_for_all_routers_and_after_a_restart(
    bundle: Bundle, strict: Certificate, place: Place
) -> None:
    endpoint = Endpoint(bundle, strict, place)

    async def scenario() -> None:
        one, other = endpoint.router("one"), endpoint.router("other")
        before = await ask(one, toy_texts(60))
        await ask(other, ["love it"])
        assert any(not answer.escalated for answer in before)
        await until(lambda: one.certificate_id is None and other.certificate_id is None)
        asked = len(endpoint.asked)
        for router in (one, other):
            answers = await ask(router, toy_texts(5, seed=1))
            assert {(a.variant, a.escalated, a.reason) for a in answers} == {("full", True, "revoked")}
        assert len(endpoint.asked) == asked
        status = await one.audit()
        assert (status["verdict"], status["revoked"]["loss"]) == ("revoked", "disagreement")

    asyncio.run(scenario())
    assert "lspm_certificate_revoked" in endpoint.metrics.text()

    async def restarted() -> None:
        again = Endpoint(bundle, strict, place)
        router = again.router("third")
        assert router.certificate_id is None
        assert {answer.reason for answer in await ask(router, ["love it"])} == {"revoked"}
        assert again.asked == []

    asyncio.run(restarted())


def test_answers_like_full_s_revoke_nothing_and_all_are_counted(
    bundle: Bundle, strict: Certificate, place: Place
) -> None:
    endpoint = Endpoint(bundle, strict, place)

    async def scenario() -> None:
        first = LocalStage(bundle.predictor(0, 1))
        router = endpoint.router("one", shadow=first)
        answers = [answer for start in range(4) for answer in await ask(router, toy_texts(50, seed=start))]
        await until(lambda: endpoint.peer.keeper.ledger.rows == 200)
        ledger = endpoint.peer.keeper.ledger
        assert (ledger.revoked, ledger.losses("disagreement")) == (None, 0)
        accepted = sum(not answer.escalated for answer in answers)
        assert (ledger.total("answers"), ledger.total("accepted")) == (200, accepted)
        # What the full model answered itself need not be computed twice.
        assert ledger.total("shadowed") == accepted

    asyncio.run(scenario())


def test_users_come_first_and_a_full_queue_drops(bundle: Bundle, strict: Certificate, place: Place) -> None:
    endpoint = Endpoint(bundle, strict, place, max_queue=10)

    async def scenario() -> None:
        endpoint.busy = True
        router = endpoint.router("one")
        for start in range(3):
            assert len(await ask(router, toy_texts(20, seed=start))) == 20
        await asyncio.sleep(0.1)
        assert (await router.audit())["rows"] == 0
        endpoint.busy = False
        await until(lambda: endpoint.peer.keeper.ledger.rows == 10)
        assert (await router.audit())["totals"]["dropped"] == 50

    asyncio.run(scenario())
    assert 'lspm_audit_total{event="dropped",replica="local"} 50' in endpoint.metrics.text()


def test_no_answer_of_the_full_model_is_no_loss(
    bundle: Bundle, strict: Certificate, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspm_ray.serving.auditor._RETRY_S", 0.0)
    endpoint = Endpoint(bundle, strict, place)
    refused = iter([QueueFull("busy")] * 5)

    async def broken(inputs: Sequence[Encoded]) -> Logits:
        raise next(refused, RuntimeError("broken"))

    async def scenario() -> None:
        answers = await ask(endpoint.router("one", shadow=broken), toy_texts(20))
        await until(lambda: endpoint.peer.keeper.ledger.rows == 20)
        ledger = endpoint.peer.keeper.ledger
        assert ledger.total("failed") == sum(not answer.escalated for answer in answers)
        assert ledger.losses("disagreement") == 0

    asyncio.run(scenario())


def test_without_its_keeper_a_router_goes_on_and_loses_nothing(
    bundle: Bundle, strict: Certificate, place: Place
) -> None:
    endpoint = Endpoint(bundle, strict, place)

    async def scenario() -> None:
        endpoint.peer.down = True
        router = endpoint.router("one")
        await ask(router, toy_texts(60))
        assert (await router.audit())["verdict"] == "unknown"
        await asyncio.sleep(0.1)
        assert router.certificate_id is not None
        endpoint.peer.down = False
        await until(lambda: router.certificate_id is None)

    asyncio.run(scenario())


@pytest.mark.parametrize("keep", [False, True])
def test_texts_are_stored_only_if_wanted(bundle: Bundle, strict: Certificate, place: Place, keep: bool) -> None:
    endpoint = Endpoint(bundle, strict, place, keep_texts=keep)
    texts = toy_texts(60)

    async def scenario() -> None:
        await ask(endpoint.router("one"), texts)
        await until(lambda: endpoint.peer.keeper.ledger.samples)

    asyncio.run(scenario())
    written = (Path(place.uri) / "ledger.json").read_text(encoding="utf-8")
    sample = endpoint.peer.keeper.ledger.samples[0]
    assert sample.text_sha256 == hashlib.sha256(texts[sample.index].encode()).hexdigest()
    assert (texts[sample.index] in written) is keep


def test_labels_feed_regret_and_only_where_full_was_right(bundle: Bundle, strict: Certificate, place: Place) -> None:
    wide = DisagreementBound(losses=1, rows=10, thresholds=1, delta=0.005, level=0.99)
    endpoint = Endpoint(bundle, strict.model_copy(update={"risk": "regret", "disagreement": wide}), place)

    async def scenario() -> None:
        router = endpoint.router("one")
        texts = toy_texts(100)
        answers = await ask(router, texts, "q1")
        await until(lambda: endpoint.peer.keeper.ledger.rows == 100)
        differing = {sample.index: sample for sample in endpoint.peer.keeper.ledger.samples}
        assert len(differing) > 20
        # As the cheap model says: nothing but "right", and no regret.
        agree = [Feedback(label=answers[i].label, request_id="q1", index=i) for i in list(differing)[:5]]
        assert router.feedback(agree) == ["right"] * 5
        await until(lambda: sum(s.label is not None for s in endpoint.peer.keeper.ledger.samples) == 5)
        assert endpoint.peer.keeper.ledger.losses("regret") == 0
        regret = [Feedback(label=differing[i].full, text_sha256=differing[i].text_sha256) for i in list(differing)[5:]]
        assert set(router.feedback(regret)) == {"wrong"}
        await until(lambda: router.certificate_id is None)
        revoked = endpoint.peer.keeper.ledger.revoked
        assert revoked is not None
        assert revoked.loss == "regret"
        assert router.feedback([Feedback(label="yes", request_id="nobody")]) == ["unknown"]

    asyncio.run(scenario())


def test_a_variant_alone_is_audited_by_a_full_model_beside_it(own_store: ArtifactStore) -> None:
    select = toy_plan(own_store, threshold=None)
    bundle = load_bundle(select.uri)
    assert bundle.certificate is not None
    strict = bundle.certificate.model_copy(update={"risk": "disagreement"})
    endpoint = Endpoint(bundle, strict, Place.of(bundle.certificate, select))
    expected = bundle.full_predictor(1).predict(Rules.of(bundle.plan).task.encode(["love it"], bundle.tokenizer()))

    async def scenario() -> None:
        router = endpoint.router("one")
        assert {answer.variant for answer in await ask(router, toy_texts(60))} == {"variant-toy"}
        await until(lambda: router.certificate_id is None)
        (answer,) = await ask(router, ["love it"])
        assert (answer.variant, answer.escalated, answer.reason) == ("full", True, "revoked")
        assert answer.label == bundle.plan.labels[int(np.argmax(expected))]

    asyncio.run(scenario())
    assert (Path(own_store.root) / "audit").is_dir()
    assert own_store.get(select.uri).digest == select.digest
    assert len(own_store.artifacts()) == 4


def test_why_there_is_no_audit(own_store: ArtifactStore, bundle: Bundle) -> None:
    alone = load_bundle(toy_plan(own_store, threshold=None).uri)

    def why(of: Bundle, **audit: Any) -> str | None:
        return why_unaudited(of.plan, of.certificate, ServeConfig.parse({"audit": audit}))

    assert why(bundle) is None
    assert why(alone) is None
    assert "share is 0" in str(why(bundle, share=0))
    assert "deploy_full" in str(why(alone, deploy_full=False))
    assert "serves alone" in str(why_unaudited(bundle.plan, None, ServeConfig()))


def test_a_revoked_plan_is_not_served_without_its_audit(own_store: ArtifactStore) -> None:
    select = toy_plan(own_store)
    bundle = load_bundle(select.uri)
    assert bundle.certificate is not None
    off = ServeConfig.parse({"audit": {"share": 0}})
    render(select.uri, off)
    place = Place.of(bundle.certificate, select)
    found = Revocation(time=1.0, loss="regret", level=0.01, rows=100, losses=20, log_wealth=9.0)
    place.save(place.load().model_copy(update={"revoked": found}))
    render(select.uri, ServeConfig())
    with pytest.raises(CertificateError, match=r"revoked the certificate \(regret is above 1.00%: 20 in 100"):
        render(select.uri, off)
    with pytest.raises(CertificateError, match=r"serve\.audit\.share is 0"):
        build({"plan": select.uri, "serve": {"audit": {"share": 0}}})


def test_what_overload_does_counts_as_no_loss_and_other_points_are_left_out(
    bundle: Bundle, strict: Certificate, place: Place
) -> None:
    endpoint = Endpoint(bundle, strict, place)

    async def scenario() -> None:
        router = endpoint.router("one")
        found = next(answer for answer in await router.answer(toy_texts(60)) if not answer.escalated)
        lenient = replace(found, alpha=2 * strict.alpha)
        router.answered("a", ["love it"], [lenient])
        router.answered("b", ["love it"], [replace(found, variant="full", reason="requested", alpha=None)])
        router.unanswered(5, Needs(full=True))
        router.unanswered(5, Needs(max_risk=1e-6))
        router.unanswered(2, Needs(max_risk=0.5))  # the default point is the one that is used
        router.answered("c", ["love it"], [replace(lenient, degraded=True)])
        router.unanswered(3, NO_NEEDS)
        await until(lambda: endpoint.peer.keeper.ledger.rows == 6)
        status = await router.audit()
        assert (status["rows"], status["totals"]["shadowed"]) == (6, 0)
        assert [evidence["losses"] for evidence in status["evidence"]] == [0]

    asyncio.run(scenario())


def test_the_full_model_that_is_there_for_the_audit_answers_those_who_ask_for_it(
    bundle: Bundle, strict: Certificate, place: Place
) -> None:
    first = bundle.plan.stages[0].model_copy(update={"threshold": None})
    default = bundle.plan.points[0].model_copy(update={"threshold": None, "escalation_rate": 0.0})
    alone = replace(bundle, plan=bundle.plan.model_copy(update={"stages": [first], "points": [default]}))

    async def scenario() -> None:
        router = Endpoint(alone, strict, place).router("one")
        (answer,) = await router.answer(["love it"])
        assert (answer.variant, answer.escalated, answer.alpha) == (first.model.name, False, default.alpha)
        (answer,) = await router.answer(["love it"], Needs(full=True))
        assert (answer.variant, answer.reason, answer.alpha) == ("full", "requested", None)

    asyncio.run(scenario())


def test_routers_report_by_the_clock_and_not_because_of_what_they_saw(
    bundle: Bundle, strict: Certificate, place: Place
) -> None:
    endpoint = Endpoint(bundle, strict, place, sync_s=60.0)

    async def scenario() -> None:
        router = endpoint.router("one")
        router.start()
        await until(lambda: "one" in endpoint.peer.keeper.ledger.routers)
        await ask(router, toy_texts(60))
        await until(lambda: endpoint.metrics.total("lspm_audit_total", event="disagreed") > 0)
        await asyncio.sleep(0.05)
        assert endpoint.peer.keeper.ledger.rows == 0
        assert (await router.audit())["rows"] > 0

    asyncio.run(scenario())
