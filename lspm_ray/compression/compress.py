"""Stage `compress`: every recipe step is an artifact, made by a Ray task; independent steps run side by side."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, open_artifact
from lspm_ray.cluster import node_cpus, totals, turn_on_cluster
from lspm_ray.compression.augment import AugmentConfig, augmented_rows
from lspm_ray.compression.effect import effect_of, effects_of, reference
from lspm_ray.compression.method import Context, Method
from lspm_ray.compression.recipe import FULL, VariantConfig, waves
from lspm_ray.compression.unlabelled import UnlabelledConfig, mix, unlabelled_rows
from lspm_ray.config import Config
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import class_counts, split_files
from lspm_ray.errors import UserError
from lspm_ray.evaluation.outputs import InferHere, teach
from lspm_ray.models.directory import load_tokenizer, read_variant, write_variant
from lspm_ray.progress import Report, channel
from lspm_ray.tasks import Task
from lspm_ray.training.batches import TEACHER_COLUMN
from lspm_ray.training.config import DistillConfig, TrainConfig, WorkersConfig
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.reparametrization import Reparametrization
from lspm_ray.training.trainer import fit, fit_here

STAGE = "variant"
_MAX_CPUS_PER_STEP = 8


class CompressConfig(Config):
    """The variants to make.

    Attributes:
        variants: name -> recipe.
        workers: train the students data-parallel on these workers; None trains each in the one task that makes it.
        unlabelled: texts that students learn from as well, with the full model's outputs in place of labels.
        augment: altered copies of the training rows that students learn from as well, in the same way.
    """

    variants: dict[str, VariantConfig] = Field(default_factory=dict)
    workers: WorkersConfig | None = None
    unlabelled: UnlabelledConfig | None = None
    augment: AugmentConfig | None = None

    @field_validator("variants")
    @classmethod
    def _names(cls, variants: dict[str, VariantConfig]) -> dict[str, VariantConfig]:
        for name in variants:
            if name == FULL or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"`{name}` cannot name a variant: use letters, digits, - and _, and not `{FULL}`")
        return variants

    @model_validator(mode="after")
    def _unlabelled_is_learnt_from(self) -> CompressConfig:
        given = [name for name in ("unlabelled", "augment") if getattr(self, name) is not None]
        if not given:
            return self
        learning = [
            (f"variants.{name}.recipe.{number}", method.distillation)
            for name, variant in self.variants.items()
            for number, method in enumerate(variant.methods())
            if method.learns_unlabelled
        ]
        if not learning:
            raise ValueError(f"{given[0]}: no recipe has a method that learns from texts without labels")
        for where, distill in learning:
            if distill is not None and not distill.weight and not distill.matches:
                raise ValueError(
                    f"{where}.distill.weight: with 0 nothing is learnt from texts without labels; "
                    "give the teacher some weight, or set distill.unlabelled to false"
                )
        return self


class _Step(Config):
    """One recipe step, in a form that can be sent to a Ray task."""

    root: str
    key: str
    what: dict[str, Any]
    parents: dict[str, str]
    source: str
    data: str
    teacher: str | None
    full: str | None = None
    workers: WorkersConfig | None
    reference: str | None = None
    wait_for_nodes_s: float | None = None
    threads: int = 1


def compress(
    config: CompressConfig,
    task: Task,
    full: Artifact,
    data: Artifact,
    store: ArtifactStore,
    report: Report,
    wait_for_nodes_s: float | None = None,
    here: int | None = None,
) -> dict[str, Artifact]:
    """Make every variant; what is already there, or shared between variants, is not made again.

    Args:
        config: which variants.
        task: what they are for.
        full: the model they are made of.
        data: the prepared corpus.
        store: where they go.
        report: progress.
        wait_for_nodes_s: see `ClusterConfig.wait_for_nodes_s`.
        here: make them in this process, which is a worker of Ray already, with so many threads.

    Returns:
        Variant name -> model directory.

    Raises:
        UserError: a method does not fit the model or the corpus.
    """
    methods = [m for variant in config.variants.values() for m in variant.methods()]
    for method in methods:
        method.check_data(data)
    taught = _teach(full, data, store, report, here) if any(m.needs_teacher for m in methods) else None
    mixed = taught
    if taught is not None and any(m.learns_unlabelled for m in methods):
        mixed = _mixed(config, task, full, data, taught, store, report, here)
    made: dict[int, Artifact] = {}
    for wave in waves(config.variants):
        steps = []
        for prefix in wave:
            source = made[_id(prefix[:-1])] if len(prefix) > 1 else full
            teacher = mixed if Method.make(prefix[-1]).learns_unlabelled else taught
            step = _step(config, task, prefix[-1], source, data, teacher, full, store)
            steps.append(step.model_copy(update={"wait_for_nodes_s": wait_for_nodes_s}))
        if any(store.find(STAGE, step.key) is None for step in steps):
            known = _refer(full, data, store, report, here).uri
            steps = [step.model_copy(update={"reference": known}) for step in steps]
        made_now = _run(steps, store, report) if here is None else _run_here(steps, store, report, here)
        for prefix, artifact in zip(wave, made_now, strict=True):
            made[_id(prefix)] = artifact
    return {name: made[_id(variant.recipe)] for name, variant in config.variants.items()}


def _id(prefix: list[dict[str, Any]]) -> int:
    return hash(repr(prefix))


def _step(
    config: CompressConfig,
    task: Task,
    spec: dict[str, Any],
    source: Artifact,
    data: Artifact,
    teacher: Artifact | None,
    full: Artifact,
    store: ArtifactStore,
) -> _Step:
    what = {"step": spec, "task": task.spec()}
    parents = {"source": source.digest, "data": data.digest}
    method = Method.make(spec)
    if method.needs_teacher and teacher is not None:
        parents["teacher"] = teacher.digest
    if method.distillation is not None and method.distillation.matches:
        # Models whose outputs are equal may have other inner states.
        parents["full"] = full.digest
    return _Step(
        root=store.root,
        key=store.key(STAGE, what, parents),
        what=what,
        parents=parents,
        source=source.uri,
        data=data.uri,
        teacher=teacher.uri if "teacher" in parents and teacher else None,
        full=full.uri if "full" in parents else None,
        workers=config.workers,
    )


def _run(steps: list[_Step], store: ArtifactStore, report: Report) -> list[Artifact]:
    import ray

    missing = [step for step in steps if store.find(STAGE, step.key) is None]
    if missing:
        threads = _threads()
        missing = [step.model_copy(update={"threads": threads}) for step in missing]
        # A step that trains on workers of its own only waits for them: reserving CPUs for it could starve them.
        cpus = [0 if step.workers and step.teacher else step.threads for step in missing]
        gpus = [_gpus(step) if totals()["GPU"] >= 1 else 0 for step in missing]
        with channel(report) as remote:
            # One process per step: ONNX export and torch leave memory and thread settings behind.
            task = ray.remote(max_calls=1, max_retries=1)(_make)
            references = [
                task.options(num_cpus=cpu, num_gpus=gpu).remote(step.model_dump(mode="json"), remote)
                for step, cpu, gpu in zip(missing, cpus, gpus, strict=True)
            ]
            _results(references)
    return [store.get(f"{STAGE}-{step.key}") for step in steps]


def _gpus(step: _Step) -> int:
    """GPUs of the step's own process: none if its workers have them, or if it has no use for one."""
    method = Method.make(step.what["step"])
    return int(method.needs_gpu or (method.uses_gpu and not step.workers))


def _results(references: Sequence[Any]) -> list[Any]:
    import ray

    try:
        found: list[Any] = ray.get(list(references))
        return found
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _threads() -> int:
    return max(1, int(min(node_cpus(), _MAX_CPUS_PER_STEP)))


def _refer(full: Artifact, data: Artifact, store: ArtifactStore, report: Report, here: int | None) -> Artifact:
    """What steps are compared with, in a process of its own unless `here`; one makes it, however many need it."""
    report("compress: the full model on validation rows")
    if here is not None:
        return reference(full, data, store, here)
    import ray

    threads = _threads()
    task = ray.remote(num_cpus=threads, max_calls=1)(_make_reference)
    (uri,) = _results([task.remote(store.root, full.uri, data.uri, threads)])
    return store.get(uri)


def _make_reference(root: str, full: str, data: str, threads: int) -> str:
    return reference(open_artifact(full), open_artifact(data), ArtifactStore(root), threads).uri


def _run_here(steps: list[_Step], store: ArtifactStore, report: Report, threads: int) -> list[Artifact]:
    for step in steps:
        if store.find(STAGE, step.key) is None:
            _make(step.model_copy(update={"threads": threads, "workers": None}).model_dump(mode="json"), report)
    return [store.get(f"{STAGE}-{step.key}") for step in steps]


def _teach(
    full: Artifact, data: Artifact, store: ArtifactStore, report: Report, here: int | None, rows: int | None = None
) -> Artifact:
    if here is None:
        return teach(full, data, store, TEACHER_COLUMN, report, rows=rows)
    import torch

    # What the cluster has may be held by others: this process has the GPU that it sees, or none.
    gpu = torch.cuda.is_available()
    return teach(full, data, store, TEACHER_COLUMN, report, InferHere(here), run_serially, gpu, rows)


def _mixed(
    config: CompressConfig,
    task: Task,
    full: Artifact,
    data: Artifact,
    taught: Artifact,
    store: ArtifactStore,
    report: Report,
    here: int | None,
) -> Artifact:
    """The training rows, and those without labels if there are any, with the teacher's outputs."""
    execute = None if here is None else run_serially
    more = {}
    if config.unlabelled is not None:
        more["unlabelled"] = unlabelled_rows(config.unlabelled, task, full, data, store, report, execute)
    if config.augment is not None:
        more["augment"] = augmented_rows(config.augment, full, data, store, report, execute)
    if not more:
        return taught
    answered = {
        kind: _teach(full, rows, store, report, here, rows.manifest.summary["rows"]) for kind, rows in more.items()
    }
    return mix({"labelled": taught, **answered}, store, report)


def _make(raw: dict[str, Any], report: Report) -> None:
    import torch

    step = _Step.parse(raw)
    torch.set_num_threads(step.threads)
    method = Method.make(step.what["step"])
    store = ArtifactStore(
        step.root,
        on_wait=lambda: report(f"{method.name}: another process is at work on the same"),
        remote_turn=turn_on_cluster,
    )
    source, task = open_artifact(step.source).local(), Task.make(step.what["task"])

    def say(line: str) -> None:
        report(line if line.startswith("!") else f"{method.name}: {line}")

    def build(draft: Draft) -> None:
        numbers = itertools.count()

        def train(
            start: Path,
            target: Path,
            config: TrainConfig,
            distill: DistillConfig | None,
            reparametrization: Reparametrization | None = None,
        ) -> None:
            _train(step, store, start, target, config, distill, say, reparametrization, next(numbers))

        context = Context(task, open_artifact(step.data), train, step.threads, say)
        method.apply(source, draft.path, context)
        before, variant = read_variant(source), read_variant(draft.path)
        structure = before.structure if variant.structure is None else variant.structure
        recipe = [*before.recipe, step.what["step"]]
        write_variant(draft.path, variant.model_copy(update={"recipe": recipe, "structure": structure}))
        draft.summary = {"runtime": variant.runtime, "precision": variant.precision, "structure": structure or {}}
        if step.reference is not None:
            say("measuring on validation rows")
            draft.summary["steps"] = _steps(step, draft.path, open_artifact(step.reference))

    say("working")
    store.make(STAGE, step.what, step.parents, build)


def _steps(step: _Step, made: Path, full: Artifact) -> list[dict[str, Any]]:
    """Effects of the steps before and of this one."""
    before = effects_of(open_artifact(step.source), full)
    own = effect_of(step.what["step"], made, before[-1], full, open_artifact(step.data), step.threads)
    return [effect.model_dump(mode="json") for effect in (*before, own)]


def _train(
    step: _Step,
    store: ArtifactStore,
    start: Path,
    target: Path,
    config: TrainConfig,
    distill: DistillConfig | None,
    report: Report,
    reparametrization: Reparametrization | None = None,
    number: int = 0,
) -> None:
    """Train the model directory `start` in the step's work directory, where a killed run finds its checkpoints.

    A step that trains several times, in the same order whenever it is run, has a directory for each `number`.
    """
    data = open_artifact(step.data)
    work = store.work_uri(STAGE, step.key)
    work = f"{work}/{number}" if number else work
    with tempfile.TemporaryDirectory() as temporary:
        # `start` lies inside the draft, which must hold the result only.
        moved = Path(shutil.move(start, temporary))
        initial = _keep_start(ArtifactStore(work), moved)
        source = open_artifact(step.teacher) if step.teacher else data
        total = sum(class_counts(data, "train"))
        # This process holds CPUs of the cluster: tasks that it waited for might never get any.
        files = split_files(source, "train", run_serially)
        job = TrainJob(
            model_uri=initial.uri,
            labels=None,
            task=step.what["task"],
            train_files=files,
            validation_files=split_files(data, "validation", run_serially),
            train_rows=source.manifest.summary.get("rows", total) if step.teacher else total,
            class_counts=class_counts(data, "train"),
            config=config,
            distill=distill if step.teacher else None,
            teacher_uri=step.full,
            reparametrization=None if reparametrization is None else reparametrization.spec(),
            work_uri=f"{work}/train",
        )
        if step.workers:
            best, _ = fit(job, step.workers, report, step.wait_for_nodes_s)
        else:
            best, _ = fit_here(job, step.threads, report)
        for file in best.local().iterdir():
            if file.name != "manifest.json":
                shutil.copyfile(file, target / file.name)
        load_tokenizer(moved).save_pretrained(target)


def _keep_start(store: ArtifactStore, directory: Path) -> Artifact:
    def build(draft: Draft) -> None:
        shutil.copytree(directory, draft.path, dirs_exist_ok=True)

    return store.make("start", {}, {}, build)
