"""The router's engine: the cascade over local models and remote ones, with the batching in between. No Ray here."""

import asyncio
import copy
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lspm_ray.audit.ledger import Feedback
from lspm_ray.inference.predictor import Predictor
from lspm_ray.selection.plan import Certificate, Plan
from lspm_ray.serving.auditor import Auditor, Matched
from lspm_ray.serving.batching import Batcher
from lspm_ray.serving.budget import Budget, Gate, check_deadline
from lspm_ray.serving.cascade import (
    NO_NEEDS,
    Cascade,
    CascadeAnswer,
    Full,
    Logits,
    Needs,
    Rules,
    Stage,
    Verdicts,
    clean,
    within,
)
from lspm_ray.serving.config import Limits
from lspm_ray.serving.metrics import Metrics
from lspm_ray.tasks import Encoded, Task
from lspm_ray.validators import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INLINE_CHARACTERS = 5_000
"""Tokenised on the event loop: about 1 ms; passing them to a thread and back would cost as much."""
INLINE_MS = 2.0
"""Inference expected to take no longer runs on the event loop, for the same reason."""
LONG_CHARACTERS = 20_000
"""Requests longer than this do not share a batch with others, who would have to wait for them."""

NotReady = Callable[[], Awaitable[str | None]]
MakeAuditor = Callable[[Full, Callable[[], bool]], Auditor | str]


class LocalStage:
    """A model in this process. What takes long is computed in a thread, so that the event loop stays free.

    Args:
        predictor: the model.
        row_ms: upper estimate of the time per row; what takes about 1 ms or less does not need the thread.
    """

    def __init__(self, predictor: Predictor, row_ms: float = math.inf) -> None:
        self._predictor = predictor
        self._row_ms = row_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._since: float | None = None

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        """Logits [rows, labels]."""
        if len(inputs) * self._row_ms <= INLINE_MS:
            return self._predictor.predict(inputs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, inputs)

    def _predict(self, inputs: Sequence[Encoded]) -> Logits:
        self._since = time.monotonic()
        try:
            return self._predictor.predict(inputs)
        finally:
            self._since = None

    def busy_s(self) -> float:
        """How long the call in progress has been running; 0 when there is none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


class Encoder:
    """Tokenises: a little on the event loop, more in a thread.

    Args:
        task: says how.
        tokenizer: may not be shared between threads, so the thread gets a copy.
    """

    def __init__(self, task: Task, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._copy = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    async def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each text."""
        if _characters(texts) <= INLINE_CHARACTERS:
            return self._task.encode(texts, self._tokenizer)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._task.encode, texts, self._copy)


def _timed(stage: Stage, name: str, metrics: Metrics) -> Stage:
    async def timed(inputs: Sequence[Encoded]) -> Logits:
        started = time.perf_counter()
        logits = await stage(inputs)
        metrics.observe("lspm_variant_seconds", time.perf_counter() - started, variant=name)
        return logits

    return timed


def _now() -> float:
    return asyncio.get_running_loop().time()


def _characters(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


class Engine:
    """Answers requests: the router's `Core`.

    Requests that arrive together share one pass of the first variant, and what these escalate shares one call of each
    later model; each request is answered as soon as its own texts are.

    Args:
        plan: what to serve.
        certificate: what `/v1/plan` shows.
        encode: tokenises.
        stages: one function per stage of the plan.
        limits: what a request may ask for.
        metrics: counts.
        max_batch_size: rows of one call.
        max_waiting: texts that may wait for a stage; beyond, requests are refused, or what has been escalated is looked
            at under a more lenient point.
        calls: calls of a remote stage at the same time.
        first_is_local: the first stage computes in this process, one call at a time.
        first_timeout_s: after this a stage but the last counts as silent; what waits for its turn is not counted.
        not_ready: asks the remote stages.
        budget: of rows that may be sent to the last of several stages; None for no limit but that of the queue.
        max_alpha: overload leads to no more lenient point than this; None: to every certified one.
        state: what validator and checks have learnt.
        full: the full model, where it is not the plan's last one.
        audit: makes the auditor, given the full model and whether no user waits here; it may say why there is none.
    """

    def __init__(
        self,
        plan: Plan,
        certificate: Certificate | None,
        encode: Encoder,
        stages: Sequence[Stage],
        *,
        limits: Limits,
        metrics: Metrics,
        max_batch_size: int,
        max_waiting: int,
        calls: int = 1,
        first_is_local: bool = True,
        first_timeout_s: float | None = None,
        not_ready: NotReady | None = None,
        budget: Budget | None = None,
        max_alpha: float | None = None,
        state: State | None = None,
        full: Full | None = None,
        audit: MakeAuditor | None = None,
    ) -> None:
        self.plan = plan
        self.certificate = certificate
        self.limits = limits
        self.metrics = metrics
        self._not_ready = not_ready
        names = [stage.model.name for stage in plan.stages]
        stages = [_timed(stage, name, metrics) for stage, name in zip(stages, names, strict=True)]
        last: Batcher[Encoded, Logits] = Batcher(stages[-1], max_batch_size, calls, max_waiting)
        middle = [
            Batcher[Encoded, Logits](within(stage, first_timeout_s), max_batch_size, calls, max_waiting)
            for stage in stages[1:-1]
        ]
        behind = last
        if full is not None:
            full = dataclasses.replace(full, stage=_timed(full.stage, full.name, metrics))
            behind = Batcher(full.stage, max_batch_size, calls, max_waiting)
        self._cascade = Cascade(
            Rules.of(plan, state),
            encode,
            [*stages[:-1][:1], *(batcher.submit for batcher in middle), last.submit],
            first_timeout_s,
            gate=Gate(last, budget, _now),
            max_alpha=max_alpha,
            full=None if full is None else dataclasses.replace(full, stage=behind.submit),
            full_gate=Gate(behind, None, _now, "the full model"),
            middle_gates=[Gate(batcher, None, _now, "a middle model") for batcher in middle],
        )
        self._first: Batcher[str, Verdicts] = Batcher(
            self._cascade.judge, max_batch_size, 1 if first_is_local else calls, max_waiting
        )
        own = plan.stages[-1]
        end = full or Full(own.model.name, own.temperature, stages[-1], own.calibrator)
        self._audit = self._audited(audit, end, behind, [*middle, last])

    def _audited(
        self,
        make: MakeAuditor | None,
        end: Full,
        behind: Batcher[Encoded, Logits],
        others: Sequence[Batcher[Encoded, Logits]],
    ) -> Auditor | str:
        """The auditor, or why there is none; `behind` is the queue before `end`, the full model."""
        if make is None:
            return "no audit"
        # Models that share a machine share its CPUs: the full model waits for the users of all of them.
        queues = [behind, *others]
        made = make(end, lambda: self._first.idle and all(queue.idle for queue in queues))
        if isinstance(made, Auditor):
            batched = dataclasses.replace(end, stage=behind.submit)
            made.on_revoked(lambda: self._cascade.revoke(batched))
        return made

    async def answer(self, texts: Sequence[str], needs: Needs = NO_NEEDS) -> list[CascadeAnswer]:
        """See `Core.answer`."""
        self._cascade.check(needs)
        if not needs.full:
            check_deadline(self._first.wait_s(), self._first.waiting_rows, needs.deadline, _now)
        return await self._cascade.finish(await self._judge(texts, needs), needs)

    async def _judge(self, texts: Sequence[str], needs: Needs) -> Verdicts:
        long = _characters(texts) > LONG_CHARACTERS
        if long:
            cleaned = await asyncio.to_thread(clean, texts, self.plan.max_characters)
        else:
            cleaned = clean(texts, self.plan.max_characters)
        if needs.full and not (self._cascade.rules.alone and self._cascade.full is None):
            return await self._cascade.skip(cleaned)
        return await (self._cascade.judge(cleaned) if long else self._first.submit(cleaned))

    @property
    def certificate_id(self) -> str | None:
        """See `Core.certificate_id`."""
        return None if isinstance(self._audit, Auditor) and self._audit.revoked else self.plan.certificate_id

    def start(self) -> None:
        """See `Core.start`."""
        if isinstance(self._audit, Auditor):
            self._audit.start()

    def answered(self, request_id: str, texts: Sequence[str], answers: Sequence[CascadeAnswer]) -> None:
        """See `Core.answered`."""
        if isinstance(self._audit, Auditor):
            self._audit.observe(request_id, texts, answers)

    def unanswered(self, rows: int, needs: Needs) -> None:
        """See `Core.unanswered`."""
        default = self.plan.default
        if isinstance(self._audit, Auditor) and default is not None and self._cascade.alpha(needs) == default.alpha:
            self._audit.observe_unanswered(rows)

    def feedback(self, given: Sequence[Feedback]) -> list[Matched]:
        """See `Core.feedback`."""
        return self._audit.feedback(given) if isinstance(self._audit, Auditor) else ["unknown"] * len(given)

    async def audit(self) -> dict[str, Any]:
        """See `Core.audit`."""
        if isinstance(self._audit, str):
            return {"verdict": "off", "why": self._audit}
        return await self._audit.status()

    async def not_ready(self) -> str | None:
        """See `Core.not_ready`."""
        return None if self._not_ready is None else await self._not_ready()
