"""One trial of a sweep: the stages of the pipeline with other settings, in one process that holds its share of the
cluster. Nothing in it waits for a task of its own, which might never get a CPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from lspm_ray.artifact import Artifact, ArtifactStore, join, open_artifact
from lspm_ray.cluster import turn_on_cluster
from lspm_ray.compression.compress import compress
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config, digest_of
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import labels
from lspm_ray.evaluation.outputs import InferHere, outputs, read_outputs
from lspm_ray.profiling.profile import examples_of, measure_models
from lspm_ray.profiling.table import Speed
from lspm_ray.progress import Report
from lspm_ray.selection.options import Option, Rows, choose
from lspm_ray.selection.scorer import Scorer
from lspm_ray.selection.select import estimate_options, inputs_of, rows, texts_of, training_of, validator_cost
from lspm_ray.settings import Settings
from lspm_ray.tasks import Task
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.finetune import STAGE, finetune, identity, job_of
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.trainer import OnEpoch as OnMetrics
from lspm_ray.training.trainer import Trained, fit, fit_here, train_here
from lspm_ray.tuning.config import PREPARED
from lspm_ray.tuning.finalists import score
from lspm_ray.tuning.metrics import QUALITY, Needs
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.space import Params
from lspm_ray.tuning.tune import OnEpoch, Outcome

VALIDATION = "validation"


class Prepared(Config):
    """What trials with the same model, task and data share.

    Attributes:
        start: URI of the model that fine-tuning starts from.
        data: URI of the prepared corpus.
    """

    start: str
    data: str


def shared_key(params: Params) -> str:
    """The same for all points that share what is `Prepared`."""
    return digest_of({path: value for path, value in params.items() if path.split(".")[0] in PREPARED})


@dataclass(frozen=True)
class FinetuneTrials:
    """Trials that fine-tune, and compress, measure and estimate a cascade as far as it is asked for.

    Attributes:
        settings: that the points change.
        root: of the store.
        prepared: by `shared_key`.
        needs: what has to be known at the end.
        threads: CPU threads of a trial's process.
        gpu: whether it has a GPU.
        distributed: the training has workers of its own.
        population_uri: where the checkpoints of a population are, whose trials take over each other's; else None.
    """

    settings: Settings
    root: str
    prepared: Mapping[str, Prepared]
    needs: Needs
    threads: int
    gpu: bool
    distributed: bool
    population_uri: str | None

    def settings_of(self, trial: Trial) -> Settings:
        """The settings of a trial."""
        return self.settings.with_values(trial.params | {"finetune.seed": trial.seed})

    def run(self, trial: Trial, on_epoch: OnEpoch, beat: Callable[[], None], given: Path | None) -> Outcome:
        """See `Problem.run`."""
        settings, shared = self.settings_of(trial), self.prepared[shared_key(trial.params)]
        work = _Work(
            settings=settings,
            task=Task.make(settings.task),
            start=open_artifact(shared.start),
            data=open_artifact(shared.data),
            store=ArtifactStore(self.root, on_wait=beat, remote_turn=turn_on_cluster),
            threads=self.threads,
            gpu=self.gpu,
            report=lambda _: beat(),
        )
        if self.population_uri is not None and not trial.finalist:
            return _member(work, join(self.population_uri, str(trial.number)), on_epoch, given)
        full = work.finetune(self._training(settings, work.report, on_epoch))
        history = {int(epoch["epoch"]): _quality(epoch) for epoch in full.read_json("history.json")}
        best = _quality(full.manifest.summary["best"])
        return Outcome(history, {f"validation.{name}": value for name, value in best.items()} | self._more(work, full))

    def forget(self, trial: Trial, running: Sequence[Trial]) -> None:
        """See `Problem.forget`."""
        key = self._key(trial)
        if all(self._key(other) != key for other in running):
            ArtifactStore(self.root).clear_work(STAGE, key)

    def lost(self, trial: Trial) -> bool:
        """See `Problem.lost`."""
        member = self.population_uri is not None and not trial.finalist
        return not member and ArtifactStore(self.root).find(STAGE, self._key(trial)) is None

    def full_model(self, trial: Trial) -> Artifact:
        """What a trial that is done has trained.

        Raises:
            ArtifactError: it was removed.
        """
        return ArtifactStore(self.root).get(f"{STAGE}-{self._key(trial)}")

    def _key(self, trial: Trial) -> str:
        """Of the full model."""
        settings, shared = self.settings_of(trial), self.prepared[shared_key(trial.params)]
        start, data = open_artifact(shared.start), open_artifact(shared.data)
        parts = identity(settings.finetune, Task.make(settings.task), start, data)
        return ArtifactStore(self.root).key(STAGE, *parts)

    def _training(self, settings: Settings, report: Report, on_epoch: OnEpoch) -> Callable[[TrainJob], Trained]:
        last = settings.finetune.epochs

        def told(metrics: dict[str, float]) -> None:
            # The last one is told of together with what follows: a scheduler must not end the trial in between.
            if metrics["epoch"] < last:
                on_epoch(int(metrics["epoch"]), _quality(metrics), None)

        if not self.distributed:
            return partial(fit_here, threads=self.threads, report=report, on_epoch=told)
        workers, wait = settings.finetune.workers, settings.cluster.wait_for_nodes_s
        return partial(_in_this_thread, lambda job, tell: fit(job, workers, report, wait, tell), told)

    def _more(self, work: _Work, full: Artifact) -> dict[str, float]:
        needs = self.needs
        if not (needs.variants or needs.quality or needs.speed):
            return {}
        models = {FULL: full} | (work.compress(full) if needs.variants else {})
        values = work.qualities({name: models[name] for name in sorted(needs.quality)})
        if needs.measured:
            wanted = models if needs.certified else {n: m for n, m in models.items() if n in needs.speed | {FULL}}
            measured = work.measure(wanted)
            values |= {f"profile.{name}.{k}": v for name, model in measured.items() for k, v in model.values().items()}
            if needs.certified:
                values |= work.certified(models, measured)
        return values


@dataclass(frozen=True)
class Measured:
    """Speed of a model in a trial.

    Attributes:
        name: of the model.
        speed: as measured.
        seconds: per row at the best batch size, tokenising included.
        cost: the same, relative to the full model of the trial.
    """

    name: str
    speed: Speed
    seconds: float
    cost: float

    def values(self) -> dict[str, float]:
        """By the names in `metrics.SPEED`."""
        speed = self.speed
        return {
            "p50_ms": speed.p50_ms,
            "p99_ms": speed.p99_ms,
            "rows_per_s": speed.best_rows_per_s,
            "ms_per_row": 1e3 * self.seconds,
            "peak_memory_mb": speed.peak_memory_mb,
            "size_mb": speed.size_mb,
            "cost": self.cost,
        }


@dataclass(frozen=True)
class _Work:
    settings: Settings
    task: Task
    start: Artifact
    data: Artifact
    store: ArtifactStore
    threads: int
    gpu: bool
    report: Report

    def finetune(self, train: Callable[[TrainJob], Trained]) -> Artifact:
        config = self.settings.finetune
        return finetune(
            config, self.task, self.start, self.data, self.store, self.report, train=train, execute=run_serially
        )

    def compress(self, full: Artifact) -> dict[str, Artifact]:
        config = self.settings.compress
        return compress(config, self.task, full, self.data, self.store, self.report, here=self.threads)

    def outputs(self, models: Mapping[str, Artifact], split: str) -> dict[str, Artifact]:
        return outputs(
            models,
            self.data,
            self.store,
            self.report,
            self.gpu,
            splits=(split,),
            compute=InferHere(self.threads),
            execute=run_serially,
        )

    def qualities(self, models: Mapping[str, Artifact]) -> dict[str, float]:
        found = self.outputs(models, VALIDATION) if models else {}
        values: dict[str, float] = {}
        for name, artifact in found.items():
            _, labels, logits = read_outputs(artifact, VALIDATION)
            values |= {f"profile.{name}.{metric}": score(metric, logits, labels) for metric in QUALITY}
        return values

    def measure(self, models: Mapping[str, Artifact]) -> dict[str, Measured]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        served = self.settings.serve.variant
        config = self.settings.profile.as_served(served.threads, served.gpus)
        examples, encode_s = examples_of(config, self.task, models[FULL], self.data)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        speeds, _ = measure_models(config, models, examples, self.report, here)
        seconds = {name: 1 / speed.best_rows_per_s + encode_s for name, speed in speeds.items()}
        return {
            name: Measured(name, speed, seconds[name], seconds[name] / seconds[FULL]) for name, speed in speeds.items()
        }

    def certified(self, models: Mapping[str, Artifact], measured: Mapping[str, Measured]) -> dict[str, float]:
        found = self.outputs(models, "selection")
        inputs, config = inputs_of(self.data, "selection"), self.settings.select
        texts = texts_of(self.data, "selection") if config.reads_texts else None
        training, names = cache(lambda: training_of(self.data)), labels(self.data)

        def rows_of(asked: Sequence[str]) -> Rows:
            return rows([found[name] for name in (*asked, FULL)], "selection", inputs, texts)

        @cache
        def scorer_of(name: str) -> Scorer:
            judges = config.make_validator(), config.make_checks()
            return rows_of([name]).fit_scorer(*judges, config.calibrator, config.risk, names, training)

        some = next((name for name in models if name != FULL), FULL)
        own = validator_cost(scorer_of(some), rows_of([some]), measured[FULL].speed)
        options = estimate_options(config, measured, rows_of, scorer_of, own, self.report, names)
        chosen, _ = choose(options, config.min_saving if config.first is None else float("-inf"))
        return _cascade(chosen, measured[FULL].seconds)


def _member(work: _Work, uri: str, on_epoch: OnEpoch, given: Path | None) -> Outcome:
    """Train a member of a population: its settings may have changed since it began, so it leaves no model behind."""
    checkpoints, config = CheckpointStore(uri), work.settings.finetune
    if given is not None:
        checkpoints.adopt(given)

    def told(metrics: dict[str, float]) -> None:
        if metrics["epoch"] < config.epochs:
            on_epoch(int(metrics["epoch"]), _quality(metrics), checkpoints.directory())

    job = job_of(config, work.task, work.start, work.data, uri, run_serially)
    epochs = train_here(job, work.threads, work.report, told)
    history = {int(epoch["epoch"]): _quality(epoch) for epoch in epochs}
    last = history[max(history)]
    return Outcome(history, {f"validation.{name}": value for name, value in last.items()})


def _cascade(chosen: Option | None, full_s: float) -> dict[str, float]:
    """What the chosen cascade costs; without one the full model answers everything."""
    cost, escalated, drop = 1.0, 0.0, 0.0
    if chosen is not None:
        cost, escalated, drop = chosen.cost, chosen.escalation_rate, chosen.accuracy_drop
    return {
        "certified.cost": cost,
        "certified.ms_per_answer": 1e3 * cost * full_s,
        "certified.escalation_rate": escalated,
        "certified.accuracy_drop": drop,
    }


def _quality(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(metrics[name]) for name in QUALITY}


def _in_this_thread(train: Callable[[TrainJob, OnMetrics], Trained], on_epoch: OnMetrics, job: TrainJob) -> Trained:
    """Train in another thread, but tell of epochs in this one, which is the one that Ray Tune can end."""
    told: queue.Queue[dict[str, float] | Trained | BaseException] = queue.Queue()

    def work() -> None:
        try:
            told.put(train(job, told.put))
        except BaseException as error:
            told.put(error)

    threading.Thread(target=work, daemon=True).start()
    while isinstance(item := told.get(), dict):
        on_epoch(item)
    if isinstance(item, BaseException):
        raise item
    return item
