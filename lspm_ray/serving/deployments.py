"""The Ray Serve deployments: the ingress with the router, and one per model that does not live in it.

Only this module and `app` are imported on the cluster.
"""

import asyncio
import gc
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Gauge

from lspm_ray.audit.keeper import Keeper, Place, Report, Standing, made_reference
from lspm_ray.serving.auditor import Auditor
from lspm_ray.serving.budget import Budget
from lspm_ray.serving.bundle import Bundle, load_bundle
from lspm_ray.serving.cascade import Full, Logits, QueueFull, Rules, Stage, StageDown, usable
from lspm_ray.serving.config import ReplicaConfig, ServeConfig, why_unaudited
from lspm_ray.serving.engine import Encoder, Engine, LocalStage
from lspm_ray.serving.metrics import FAMILIES, Growth, Metrics
from lspm_ray.serving.router import build_api
from lspm_ray.tasks import Encoded

Packed = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Token ids of several texts one after the other, and the length of each: two arrays pickle faster than hundreds."""

_log = logging.getLogger("ray.serve")
_PING_TIMEOUT_S = 2.0
_READY_CACHE_S = 1.0
_EXPORT_S = 5.0
_KEEPER_TIMEOUT_S = 30.0
AUDIT, FULL = "audit", "full"
"""Handles beside those of the stages: the audit's keeper, and the full model where the plan does not serve it."""


def pack(inputs: Sequence[Encoded]) -> Packed:
    """The form in which token ids travel between processes."""
    return np.concatenate(inputs).astype(np.int32), np.asarray([len(row) for row in inputs], dtype=np.int32)


def unpack(packed: Packed) -> list[Encoded]:
    """The inverse of `pack`."""
    ids, lengths = packed
    return np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1])


def packed_rows(calls: Sequence[Packed]) -> int:
    """How many texts some calls hold."""
    return sum(len(lengths) for _, lengths in calls)


class RemoteStage:
    """A model in another deployment.

    Args:
        name: of the model, for messages.
        handle: of its deployment.
        max_rows: per call.
    """

    def __init__(self, name: str, handle: DeploymentHandle, max_rows: int) -> None:
        self._name = name
        self._handle = handle
        self._max_rows = max_rows

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        """Logits [rows, labels].

        Raises:
            QueueFull: the deployment's queue is full.
            StageDown: it does not answer.
        """
        parts = [inputs[start : start + self._max_rows] for start in range(0, len(inputs), self._max_rows)]
        if len(parts) == 1:
            return await self._call(pack(parts[0]))
        return np.concatenate(await asyncio.gather(*(self._call(pack(part)) for part in parts)))

    async def _call(self, packed: Packed) -> Logits:
        try:
            return await self._once(packed)
        except RayActorError:
            # The replica died under it. Inference changes nothing, so another replica may be asked once.
            _log.warning("a replica of %s died, asking another one", self._name)
        try:
            return await self._once(packed)
        except RayActorError as error:
            raise StageDown(f"{self._name}: {_first_line(error)}") from None

    async def _once(self, packed: Packed) -> Logits:
        try:
            logits: Logits = await self._handle.predict.remote(packed)
            return logits
        except BackPressureError as error:
            raise QueueFull(f"{self._name}: {_first_line(error)}") from None
        except RayActorError:
            raise
        except (RayError, RayServeException) as error:
            raise StageDown(f"{self._name}: {_first_line(error)}") from None

    async def silent(self) -> str | None:
        """Why the model does not answer; None when it does."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await self._handle.ping.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            return f"model {self._name} does not answer: {_first_line(error) or 'no reply'}"
        return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


class VariantReplica:
    """One model of the plan.

    Args:
        plan_uri: the select artifact.
        stage: which of the plan's stages; None for the full model, where no stage is it.
        config: the `ServeConfig`, as JSON values.
    """

    def __init__(self, plan_uri: str, stage: int | None, config: dict[str, Any]) -> None:
        settings = ServeConfig.parse(config)
        bundle = load_bundle(plan_uri)
        threads, gpu = settings.variant.threads, settings.variant.gpus > 0
        predictor = bundle.full_predictor(threads, gpu) if stage is None else bundle.predictor(stage, threads, gpu)
        warm_up(bundle, predictor.predict([np.zeros(8, dtype=np.int64)]), stage)
        self._stage = LocalStage(predictor)
        self._joins_rows = predictor.joins_rows
        self._hang_s = settings.hang_s
        self._batched.set_max_batch_size(settings.max_batch_size)
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    async def predict(self, packed: Packed) -> Logits:
        """Logits of some texts, computed together with those of other callers where that is faster."""
        if not self._joins_rows:
            return await self._stage(unpack(packed))  # first come, first served
        logits: Logits = await self._batched(packed)
        return logits

    @serve.batch(batch_size_fn=packed_rows)  # type: ignore[untyped-decorator]
    async def _batched(self, calls: list[Packed]) -> list[Logits]:
        rows = [row for call in calls for row in unpack(call)]
        logits = await self._stage(rows)
        ends = np.cumsum([len(lengths) for _, lengths in calls])
        return np.split(logits, ends[:-1])

    async def ping(self) -> int:
        """Something to wait for: the replica's process id."""
        return os.getpid()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when this raises."""
        check_busy(self._stage, self._hang_s)


class AuditReplica:
    """Keeps the ledger of the audit; Ray Serve sees to it that there is one, and starts it again if it dies.

    Args:
        plan_uri: the select artifact.
        config: the `ServeConfig`, as JSON values.
    """

    def __init__(self, plan_uri: str, config: dict[str, Any]) -> None:
        settings = ServeConfig.parse(config)
        bundle = load_bundle(plan_uri)
        certificate = bundle.certificate
        assert certificate is not None  # noqa: S101 - `build` deploys no audit without one
        place = Place.of(certificate, bundle.artifact)
        reference, why = made_reference(place, certificate, bundle.artifact)
        if reference is None:
            _log.warning("audit: %s", why)
        self._keeper = Keeper(place, certificate, settings.audit.delta, time.time, reference)
        self._every_s = settings.audit.sync_s
        self._flushed = -np.inf

    async def report(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `Keeper.report`; a revocation is on disk before anybody hears of it, if it can be written at all."""
        standing = self._keeper.report(Report.parse(given))
        urgent = standing.revoked is not None and self._keeper.dirty
        if urgent or time.monotonic() - self._flushed > self._every_s:
            self._flushed = time.monotonic()
            try:
                await asyncio.to_thread(self._keeper.flush)
            except Exception as error:
                _log.error("audit: the ledger cannot be written, a restart would lose what is new: %r", error)
        return standing.model_dump(mode="json")

    async def status(self) -> dict[str, Any]:
        """See `Keeper.status`."""
        return self._keeper.status().model_dump(mode="json")

    def __del__(self) -> None:
        self._keeper.flush()


class RemoteKeeper:
    """The keeper in another deployment.

    Args:
        handle: of its deployment.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def report(self, given: Report) -> Standing:
        """See `Keeper.report`."""
        async with asyncio.timeout(_KEEPER_TIMEOUT_S):
            return Standing.parse(await self._handle.report.remote(given.model_dump(mode="json")))

    async def status(self) -> dict[str, Any]:
        """See `Keeper.status`."""
        async with asyncio.timeout(_KEEPER_TIMEOUT_S):
            found: dict[str, Any] = await self._handle.status.remote()
        return found


class Ingress:
    """The HTTP interface, the router, and the models that are fast enough to live beside it.

    Args:
        plan_uri: the select artifact.
        config: the `ServeConfig`, as JSON values.
        handles: by stage, the deployment that holds it; stages without one are loaded here. Also `AUDIT` and `FULL`.
    """

    def __init__(self, plan_uri: str, config: dict[str, Any], handles: dict[str, DeploymentHandle]) -> None:
        settings = ServeConfig.parse(config)
        bundle = load_bundle(plan_uri)
        self._hang_s = settings.hang_s
        self._local: list[LocalStage] = []
        self._remote: list[RemoteStage] = []
        self._checked: tuple[float, str | None] = (-np.inf, None)
        stages: list[Stage] = []
        for index, stage in enumerate(bundle.plan.stages):
            handle = handles.get(str(index))
            if handle is None:
                stages.append(self._load(bundle, index, settings.ingress))
            else:
                self._remote.append(RemoteStage(stage.model.name, handle, settings.max_batch_size))
                stages.append(self._remote[-1])
        budget = settings.escalation_budget(bundle.plan)
        metrics = Metrics(serve.get_replica_context().replica_id.unique_id)
        encoder = Encoder(Rules.of(bundle.plan).task, bundle.tokenizer())
        full: Full | None = None
        if FULL in handles:
            self._remote.append(RemoteStage(FULL, handles[FULL], settings.max_batch_size))
            full = Full(FULL, 1.0, self._remote[-1])
        self._engine = Engine(
            bundle.plan,
            bundle.certificate,
            encoder,
            stages,
            limits=settings.limits,
            metrics=metrics,
            max_batch_size=settings.max_batch_size,
            max_waiting=settings.max_queued_texts,
            calls=2 * settings.variant.max_replicas,
            first_is_local="0" not in handles,
            first_timeout_s=settings.first_timeout_ms / 1000,
            not_ready=self._not_ready,
            budget=Budget(*budget) if budget else None,
            max_alpha=settings.escalation.max_alpha,
            state=bundle.state,
            full=full,
            audit=lambda end, idle: audit(bundle, settings, handles, encoder, metrics, end, idle),
        )
        RayExport(metrics)
        gc.collect()
        gc.freeze()  # a full collection over what torch has loaded would stop every request for 0.3 s

    def _load(self, bundle: Bundle, stage: int, config: ReplicaConfig) -> LocalStage:
        predictor = bundle.predictor(stage, config.threads, config.gpus > 0)
        warm_up(bundle, predictor.predict([np.zeros(8, dtype=np.int64)]), stage)
        local = LocalStage(predictor, bundle.plan.stages[stage].batch_1_latency_ms)
        self._local.append(local)
        return local

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._engine, emit_request_id=False)

    async def _not_ready(self) -> str | None:
        when, reason = self._checked
        if time.monotonic() - when > _READY_CACHE_S:
            reasons = await asyncio.gather(*(stage.silent() for stage in self._remote))
            reason = next((found for found in reasons if found is not None), None)
            self._checked = (time.monotonic(), reason)
        return reason

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica when this raises."""
        for stage in self._local:
            check_busy(stage, self._hang_s)


def audit(
    bundle: Bundle,
    settings: ServeConfig,
    handles: dict[str, DeploymentHandle],
    encoder: Encoder,
    metrics: Metrics,
    full: Full,
    idle: Callable[[], bool],
) -> Auditor | str:
    """The router's auditor, which knows of an earlier revocation before the first answer; or why there is none."""
    why = why_unaudited(bundle.plan, bundle.certificate, settings)
    if why is not None or bundle.certificate is None:
        return why or ""
    place = Place.of(bundle.certificate, bundle.artifact)
    return Auditor(
        settings.audit,
        uuid.uuid4().hex,
        Rules.of(bundle.plan),
        encoder,
        full,
        idle,
        RemoteKeeper(handles[AUDIT]),
        metrics,
        revoked=place.load().revoked,
    )


def warm_up(bundle: Bundle, logits: Logits, stage: int | None) -> None:
    """Refuse a model whose very first output is not usable.

    Raises:
        StageDown: names the model.
    """
    if not usable(logits, 1, len(bundle.plan.labels)).all():
        name = FULL if stage is None else bundle.plan.stages[stage].model.name
        raise StageDown(f"{name} returned an output that is not usable")


def check_busy(stage: LocalStage, hang_s: float) -> None:
    """Complain about a model that does not come back.

    Raises:
        RuntimeError: it has been computing one batch for too long.
    """
    if stage.busy_s() > hang_s:
        raise RuntimeError(f"inference has not returned for {stage.busy_s():.0f} s")


class RayExport:
    """Copies the router's metrics to Ray's every few seconds; each node exports those to Prometheus.

    Everything goes as counters, the buckets of histograms too (`ray_lspm_request_seconds_bucket_total{le="0.1"}`):
    Ray takes a lock for every single value of its own histograms, which would cost a fifth of the router's time.

    Args:
        metrics: of this replica.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._growth = Growth(metrics)
        self._metrics = metrics
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_EXPORT_S)
            self.export()

    def export(self) -> None:
        """Pass on what was added since the last time."""
        for name, labels, added in self._growth.take():
            if name not in self._counters:
                # Ray appends _total to the name of a counter itself.
                keys = tuple(key for key, _ in labels)
                self._counters[name] = Counter(name.removesuffix("_total"), FAMILIES.get(name, name), keys)
            self._counters[name].inc(added, dict(labels))
        for name, labels, value in list(self._metrics.gauges()):
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, FAMILIES[name], tuple(key for key, _ in labels))
            self._gauges[name].set(value, dict(labels))
