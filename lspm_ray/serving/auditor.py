"""One router's part of the audit: draws the sample, asks the full model when it is idle, and tells the keeper.

What an answer costs its user: a coin and an append. Everything else happens in two tasks of their own. Samples are
settled in the order in which they were drawn, those that need no full model too; otherwise what is settled at any time
would have too few accepted answers among them. A sample that finds the queue full is dropped, whatever it is: whether
there is room depends on earlier answers alone, so what is sampled remains a fair sample.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from lspm_ray.audit.config import AuditConfig
from lspm_ray.audit.drift import Reference, Window, pooled
from lspm_ray.audit.keeper import Report, Standing
from lspm_ray.audit.ledger import WINDOW_BLOCKS, Feedback, Revocation, Sample, Tally
from lspm_ray.evaluation.calibration import softmax
from lspm_ray.serving.cascade import CascadeAnswer, Full, QueueFull, Rules, clean, usable
from lspm_ray.serving.metrics import Metrics
from lspm_ray.tasks import Encoded

Encode = Callable[[Sequence[str]], Awaitable[list[Encoded]]]
Matched = Literal["right", "wrong", "unknown"]

_IDLE_POLL_S = 0.02
_RETRY_S = 1.0
_ATTEMPTS = 3
_MOST_FEEDBACK = 10_000
"""Labels that wait for a keeper that cannot be reached."""

_log = logging.getLogger("ray.serve")


class Peer(Protocol):
    """The keeper, wherever it lives."""

    async def report(self, given: Report) -> Standing:
        """See `Keeper.report`; durable once it has returned a revocation."""

    async def status(self) -> dict[str, Any]:
        """See `Keeper.status`."""


@dataclass(frozen=True)
class _Drawn:
    request_id: str
    index: int
    text: str
    answer: CascadeAnswer | None
    """None where nobody got a worse answer than full's under the default point, whatever the models say."""
    block: int


class Auditor:
    """Audits the answers of one router.

    Args:
        config: settings.
        router: a name that no other router has or had.
        rules: of the plan.
        encode: tokenises.
        full: the full model; asked for one text at a time.
        idle: whether no user of this router waits for a model.
        keeper: of the ledger.
        metrics: counts.
        revoked: what is known at the start.
        coin: uniform in [0, 1), unknown to clients.
    """

    def __init__(
        self,
        config: AuditConfig,
        router: str,
        rules: Rules,
        encode: Encode,
        full: Full,
        idle: Callable[[], bool],
        keeper: Peer,
        metrics: Metrics,
        revoked: Revocation | None = None,
        coin: Callable[[], float] | None = None,
    ) -> None:
        self._config, self._router, self._rules, self._encode = config, router, rules, encode
        self._full, self._idle, self._keeper, self._metrics = full, idle, keeper, metrics
        self._coin = coin or random.SystemRandom().random
        self._alpha = None if rules.plan.default is None else rules.plan.default.alpha
        self._queue: deque[_Drawn] = deque()
        self._filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._recent: OrderedDict[tuple[str, int], tuple[str, str]] = OrderedDict()
        self._tally = Tally()
        self._unconfirmed: list[Sample] = []
        self._disagreements = 0
        self._feedback: list[Feedback] = []
        self._block = 0
        self._reference: Reference | None = None
        self._asked_reference = False
        self._unreachable = False
        self._warned: tuple[str, ...] = ()
        self._tell: list[Callable[[], None]] = []
        self.revoked = revoked
        metrics.gauge("lspm_certificate_revoked", float(revoked is not None))

    def on_revoked(self, tell: Callable[[], None]) -> None:
        """Call this once the certificate is revoked; at once if it is already."""
        self._tell.append(tell)
        if self.revoked is not None:
            tell()

    def start(self) -> None:
        """Begin to work, in the running event loop. Calling it again changes nothing."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            # Contexts of their own: what runs in that of a request is cancelled with it.
            self._tasks = [
                loop.create_task(work(), context=contextvars.Context()) for work in (self._settle_all, self._sync_all)
            ]

    async def stop(self) -> None:
        """End the work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def observe(self, request_id: str, texts: Sequence[str], answers: Sequence[CascadeAnswer]) -> None:
        """Take note of the answers of one request, and draw the sample among them.

        Args:
            request_id: of the request.
            texts: as they were sent.
            answers: in the same order.
        """
        self.start()
        if self.revoked is not None:
            return
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            self._recent[request_id, index] = (_sha256(text), answer.label)
            # Answers under another point than the default one, on request, are no part of what is tested.
            if (answer.degraded or answer.alpha == self._alpha) and self._coin() < self._config.share:
                # Under the default point a later model would have answered what is degraded. Where that is not full, a
                # loss may be missed, which can delay a revocation and never cause one.
                self._draw(_Drawn(request_id, index, text, None if answer.degraded else answer, self._block))
        while len(self._recent) > self._config.recent_answers:
            self._recent.popitem(last=False)
        accepted = sum(answer.variant != self._full.name for answer in answers)
        self._change(answers=self._tally.answers + len(answers), accepted=self._tally.accepted + accepted)
        self._score(answers)

    def observe_unanswered(self, rows: int) -> None:
        """Take note of texts that got no answer for lack of capacity, none of which is a loss.

        Those that no full model is needed for are answered all the same: left out, the sample would have too many of
        them.
        """
        self.start()
        if self.revoked is not None:
            return
        for _ in range(rows):
            if self._coin() < self._config.share:
                self._draw(_Drawn("", 0, "", None, self._block))

    def feedback(self, given: Sequence[Feedback]) -> list[Matched]:
        """Take labels in: how each compares with this router's own recent answer, if it was the one to give it."""
        self.start()
        self._feedback += given[: max(0, _MOST_FEEDBACK - len(self._feedback))]
        found = [self._match(one) for one in given]
        for one in found:
            self._metrics.count("lspm_feedback_total", result=one)
        return found

    async def status(self) -> dict[str, Any]:
        """How the audit stands, over all routers; as far as this one knows if the keeper cannot be reached."""
        try:
            await self.sync()
            return await self._keeper.status()
        except Exception as error:
            verdict = "unknown" if self.revoked is None else "revoked"
            return {"verdict": verdict, "why": f"the audit's keeper cannot be reached: {type(error).__name__}"}

    async def sync(self) -> None:
        """Tell the keeper what is new and take over what it knows.

        Raises:
            Exception: the keeper cannot be reached; nothing is lost by that.
        """
        samples, feedback = tuple(self._unconfirmed), tuple(self._feedback)
        asked = self._reference is None and not self._asked_reference
        given = Report(
            router=self._router, tally=self._tally, samples=samples, feedback=feedback, wants_reference=asked
        )
        standing = await self._keeper.report(given)
        self._asked_reference = True
        del self._unconfirmed[: len(samples)], self._feedback[: len(feedback)]
        self._reference = standing.reference or self._reference
        self._block = max(self._block, standing.block)
        self._tally = self._tally.compacted(self._block)
        for loss, value in standing.log_wealth.items():
            self._metrics.gauge("lspm_audit_log_wealth", value, loss=loss)
        self._warn(standing.warnings)
        if standing.revoked is not None:
            self._revoke(standing.revoked)

    async def _settle_all(self) -> None:
        while True:
            while self._queue and self.revoked is None:
                try:
                    await self._settle(self._queue[0])
                except Exception as error:
                    _log.error("audit: an answer could not be settled, it counts as no loss: %r", error)
                    self._change(failed=self._tally.failed + 1)
                    self._count(self._queue[0], differs=False)
                self._queue.popleft()
            self._queue.clear()
            self._filled.clear()
            await self._filled.wait()

    async def _settle(self, drawn: _Drawn) -> None:
        if drawn.answer is None:
            self._count(drawn, differs=False)
            return
        while not self._idle():  # noqa: ASYNC110 - a batcher has no event for it, and needs none for anybody else
            await asyncio.sleep(_IDLE_POLL_S)
        inputs = await self._encode(clean([drawn.text], self._rules.plan.max_characters))
        self._embed(inputs)
        full: str | None = drawn.answer.label
        if drawn.answer.variant != self._full.name:
            full = await self._ask(inputs)
            self._change(shadowed=self._tally.shadowed + 1, failed=self._tally.failed + (full is None))
            self._metrics.count("lspm_audit_total", event="shadowed" if full is not None else "failed")
        differs = full is not None and full != drawn.answer.label
        self._count(drawn, differs=differs)
        if full is not None and differs:
            self._disagree(drawn, drawn.answer, full)

    def _count(self, drawn: _Drawn, *, differs: bool) -> None:
        rows, losses = self._tally.blocks.get(drawn.block, (0, 0))
        self._change(blocks=self._tally.blocks | {drawn.block: (rows + 1, losses + differs)})

    async def _ask(self, inputs: Sequence[Encoded]) -> str | None:
        """The full model's label; None when it gives none."""
        plan, attempt = self._rules.plan, 0
        while attempt < _ATTEMPTS:
            try:
                logits = await self._full.stage(inputs)
                if usable(logits, 1, len(plan.labels)).all():
                    return self._rules.task.decode(softmax(logits, 1.0), plan.labels)[0].label
                attempt += 1
            except QueueFull:
                await asyncio.sleep(_RETRY_S)  # users first
            except Exception as error:
                attempt += 1
                _log.warning("audit: the full model gave no answer: %r", error)
                await asyncio.sleep(_RETRY_S)
        return None

    async def _sync_all(self) -> None:
        while True:
            try:
                await self.sync()
                self._unreachable = False
            except Exception as error:
                if not self._unreachable:
                    _log.warning("audit: the keeper cannot be reached, what is counted waits here: %r", error)
                self._unreachable = True
            # By the clock alone: a report that a disagreement hurries on would be read before what others saw
            # meanwhile, and the evidence is only fair in an order that losses have no part in.
            await asyncio.sleep(self._config.sync_s)

    def _draw(self, drawn: _Drawn) -> None:
        if len(self._queue) >= self._config.max_queue:
            self._change(dropped=self._tally.dropped + 1)
            self._metrics.count("lspm_audit_total", event="dropped")
            return
        self._metrics.count("lspm_audit_total", event="sampled")
        self._queue.append(drawn)
        self._filled.set()

    def _disagree(self, drawn: _Drawn, answer: CascadeAnswer, full: str) -> None:
        self._metrics.count("lspm_audit_total", event="disagreed")
        self._disagreements += 1
        self._unconfirmed.append(
            Sample(
                block=drawn.block,
                router=self._router,
                number=self._disagreements,
                text_sha256=_sha256(drawn.text),
                request_id=drawn.request_id,
                index=drawn.index,
                variant=answer.variant,
                answer=answer.label,
                full=full,
                text=drawn.text if self._config.keep_texts else None,
            )
        )

    def _match(self, given: Feedback) -> Matched:
        if given.text_sha256 is None:
            found = self._recent.get((given.request_id or "", given.index))
        else:
            found = next((seen for seen in reversed(self._recent.values()) if seen[0] == given.text_sha256), None)
        if found is None:
            return "unknown"
        return "right" if found[1] == given.label else "wrong"

    def _score(self, answers: Sequence[CascadeAnswer]) -> None:
        scores = [answer.validator_score for answer in answers if answer.validator_score is not None]
        if self._reference is not None and scores:
            bins = np.bincount(self._reference.bins(np.array(scores)), minlength=len(self._reference.shares))
            self._add(Window(scores=tuple(bins.tolist())))

    def _embed(self, inputs: Sequence[Encoded]) -> None:
        if self._reference is not None:
            features = self._reference.embed(inputs).sum(axis=0)
            self._add(Window(rows=len(inputs), features=tuple(features.tolist())))

    def _add(self, window: Window) -> None:
        number = self._block // WINDOW_BLOCKS
        before = self._tally.windows.get(number, Window())
        self._change(windows=self._tally.windows | {number: pooled([before, window])})

    def _change(self, **values: Any) -> None:
        self._tally = self._tally.model_copy(update={"version": self._tally.version + 1, **values})

    def _warn(self, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            if warning.partition(":")[0] not in {old.partition(":")[0] for old in self._warned}:
                _log.warning("audit: %s; an early warning, nothing is revoked by it", warning)
        self._warned = warnings
        self._metrics.gauge("lspm_audit_drift_warnings", float(len(warnings)))

    def _revoke(self, revoked: Revocation) -> None:
        if self.revoked is not None:
            return
        self.revoked = revoked
        _log.error(
            "certificate %s is revoked, the full model answers everything: %s",
            self._rules.plan.certificate_id,
            revoked.sentence(),
        )
        self._metrics.gauge("lspm_certificate_revoked", 1.0)
        for tell in self._tell:
            tell()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
