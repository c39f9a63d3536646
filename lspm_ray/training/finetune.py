"""Stage `finetune`: the pretrained model becomes the full model of the task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.corpus.execute import Execute, write_error
from lspm_ray.corpus.shards import class_counts, labels, split_files
from lspm_ray.models.card import write_card
from lspm_ray.models.directory import Variant, load_tokenizer, write_variant
from lspm_ray.progress import Report
from lspm_ray.tasks import Task
from lspm_ray.training.config import TrainConfig, WorkersConfig
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.trainer import Trained, fit

STAGE = "finetune"


class FinetuneConfig(TrainConfig):
    """Training of the full model.

    Attributes:
        compare_scratch: fine-tune a second model, from fresh weights, to see what pretraining gave; only where the
            model was pretrained in the same run.
    """

    workers: WorkersConfig = WorkersConfig()
    compare_scratch: bool = True


def finetune(
    config: FinetuneConfig,
    task: Task,
    base: Artifact,
    data: Artifact,
    store: ArtifactStore,
    report: Report,
    wait_for_nodes_s: float | None = None,
    *,
    train: Callable[[TrainJob], Trained] | None = None,
    execute: Execute | None = None,
) -> Artifact:
    """Fine-tune `base` on the training split of `data`; the epoch that is best on validation is kept.

    Args:
        config: how.
        task: for which task.
        base: a model directory.
        data: the prepared corpus.
        store: where the artifact goes.
        report: progress.
        wait_for_nodes_s: see `ClusterConfig.wait_for_nodes_s`.
        train: does the training; by default the workers of `config` on the connected cluster.
        execute: checks large shards; by default Ray Data on the connected cluster.

    Returns:
        A model directory with `history.json` and a model card, which plain transformers load.

    Raises:
        ResourceError: the cluster cannot hold the workers, or the disk is full.
    """
    what, parents = identity(config, task, base, data)
    key = store.key(STAGE, what, parents)

    def build(draft: Draft) -> None:
        job = job_of(config, task, base, data, store.work_uri(STAGE, key), execute)
        best, history = train(job) if train else fit(job, config.workers, report, wait_for_nodes_s)
        # Kept out of the files: a run that was killed and resumed has the same content, hence the same digest.
        draft.summary["seconds"] = [epoch.pop("seconds") for epoch in history]
        _export(best.local(), base.local(), draft.path)
        (draft.path / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        chosen = max(history, key=lambda h: -h["loss"] if config.metric == "loss" else h[config.metric])
        draft.summary |= {"epochs": len(history), "best": chosen}
        write_card(draft.path, base=_origin(base), task=task.name, metrics=chosen)

    try:
        return store.make(STAGE, what, parents, build)
    except Exception as error:
        raise write_error(error) from None


def job_of(
    config: FinetuneConfig, task: Task, base: Artifact, data: Artifact, work_uri: str, execute: Execute | None = None
) -> TrainJob:
    """The training of a full model, with its checkpoints in `work_uri`."""
    return TrainJob(
        model_uri=base.uri,
        labels=labels(data),
        task=task.spec(),
        train_files=split_files(data, "train", execute),
        validation_files=split_files(data, "validation", execute),
        train_rows=sum(class_counts(data, "train")),
        class_counts=class_counts(data, "train"),
        config=TrainConfig.parse(config.model_dump(exclude={"workers", "compare_scratch"})),
        work_uri=work_uri,
    )


def identity(
    config: FinetuneConfig, task: Task, base: Artifact, data: Artifact
) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides the full model: the `config` and `parents` of its artifact.

    Where the work runs changes nothing but rounding: the same model is wanted on every cluster.
    """
    settings = config.model_dump(mode="json", exclude={"workers", "compare_scratch"})
    return {"train": settings, "task": task.spec()}, {"base": base.digest, "data": data.digest}


def _origin(base: Artifact) -> str:
    """What people call the model that was started from; nothing for one that was pretrained in the same run."""
    made = base.manifest.config
    return f"fresh {made['fresh']['architecture']} weights" if "fresh" in made else made.get("name", "")


def _export(best: Path, base: Path, target: Path) -> None:
    for file in best.iterdir():
        if file.name != "manifest.json":
            shutil.copyfile(file, target / file.name)
    load_tokenizer(base).save_pretrained(target)
    write_variant(target, Variant())
