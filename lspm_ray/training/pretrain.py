"""Stage `pretrain`: blocks of tokens become a base model."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, join
from lspm_ray.cluster import totals
from lspm_ray.corpus.execute import write_error
from lspm_ray.errors import ConfigError
from lspm_ray.models.card import write_card
from lspm_ray.models.directory import Variant, load_tokenizer, write_variant
from lspm_ray.progress import Report, channel
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.objective import Objective
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.pretrain_loop import (
    TIMINGS,
    PretrainJob,
    PretrainWorker,
    make_model,
    pretrain_model,
)
from lspm_ray.training.trainer import launch, scale

STAGE = "pretrain"
HISTORY_FILE = "history.json"

_LARGEST = 50.0
"""Nats: of a larger loss nobody wants the perplexity, and of a much larger one there is none."""

_WHERE_AND_HOW = {
    "workers",
    "micro_batch_size",
    "parallelism",
    "activation_checkpointing",
    "compile",
    "deterministic",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "log_every_steps",
    "mlflow",
}
"""Settings that change nothing but rounding: the same model is wanted whatever the machine."""


def pretrain(
    config: PretrainConfig,
    blocks: Artifact,
    tokenizer: Artifact,
    base: Artifact | None,
    store: ArtifactStore,
    report: Report,
    wait_for_nodes_s: float | None = None,
) -> Artifact:
    """Pretrain a model on the blocks; the weights that are best on the validation blocks are kept.

    Args:
        config: what the user says.
        blocks: from stage `blocks`.
        tokenizer: that the blocks were made with.
        base: the model to go on from; None for a fresh one.
        store: where the artifact goes.
        report: progress.
        wait_for_nodes_s: see `ClusterConfig.wait_for_nodes_s`.

    Returns:
        A model directory with tokenizer, `history.json` and a model card, which plain transformers load.

    Raises:
        ResourceError: the cluster cannot hold the workers, or the disk is full.
        ConfigError: there are more workers than blocks in a step, or model and settings do not go together.
        DataError: there are fewer blocks than one step needs.
        ModelError: the tokenizer does not fit the model.
        TrainingError: the loss is not finite.
    """
    settings = config.model_dump(mode="json", exclude=_WHERE_AND_HOW)
    # A model to go on from is a parent, wherever it came from.
    settings["model"] = {k: v for k, v in settings["model"].items() if k not in ("name", "revision")}
    what = {"pretrain": settings}
    parents = {"blocks": blocks.digest, "tokenizer": tokenizer.digest}
    parents |= {} if base is None else {"base": base.digest}
    key = store.key(STAGE, what, parents)

    def build(draft: Draft) -> None:
        job = PretrainJob(
            blocks_uri=blocks.uri,
            tokenizer_uri=tokenizer.uri,
            base_uri=None if base is None else base.uri,
            config=config,
            work_uri=store.work_uri(STAGE, key),
            log_uri=join(store.root, f"tensorboard/{STAGE}-{key}"),
        )
        # What does not go together fails here, before any worker starts.
        model, _ = make_model(job, lambda text: report(f"! {text}"))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        del model
        scaling = scale(config.workers, totals(), report, wait_for_nodes_s, "pretrain.workers")
        check_share(config.batch_size, scaling.num_workers)
        with channel(report) as remote:
            arguments = {"job": job.model_dump(mode="json"), "threads": scaling.threads, "report": remote}
            launch(_worker_loop, arguments, scaling, job.work_uri, field="pretrain.workers")
        _export(draft, job, blocks, tokenizer, parameters)

    try:
        return store.make(STAGE, what, parents, build)
    except Exception as error:
        raise write_error(error) from None


def check_share(batch_size: int, workers: int) -> None:
    """Refuse workers that would have nothing to do.

    Raises:
        ConfigError: there are more of them than blocks in a step.
    """
    if batch_size < workers:
        raise ConfigError(
            f"{workers} workers cannot share {batch_size} block(s) per step",
            field="pretrain.batch_size",
            value=batch_size,
            hint=f"Take {workers} or more, or fewer pretrain.workers.num_workers",
        )


def _export(draft: Draft, job: PretrainJob, blocks: Artifact, tokenizer: Artifact, parameters: int) -> None:
    checkpoints = CheckpointStore(job.work_uri)
    last = checkpoints.latest()
    history: list[dict[str, float]] = list(last.state["history"]) if last else []
    for file in checkpoints.best().local().iterdir():
        if file.name != "manifest.json":
            shutil.copyfile(file, draft.path / file.name)
    load_tokenizer(tokenizer.local(), eos_pads=True).save_pretrained(draft.path)
    write_variant(draft.path, Variant())
    # Kept out of the files: a run that was killed and resumed has the same content, hence the same digest.
    timings = [{name: entry.pop(name) for name in TIMINGS} for entry in history]
    (draft.path / HISTORY_FILE).write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    best = min(history, key=lambda entry: entry["validation_loss"])
    unigram = blocks.manifest.summary["unigram_loss"]
    draft.summary |= {
        "objective": Objective.make(job.config.objective).name,
        "parameters": parameters,
        "best": best,
        "perplexity": math.exp(min(best["validation_loss"], _LARGEST)),
        "unigram_perplexity": math.exp(unigram),
        "timings": timings,
    }
    metrics = {"validation_loss": best["validation_loss"], "steps": best["step"], "tokens": best["tokens"]}
    write_card(draft.path, base="", task=draft.summary["objective"], metrics=metrics)


def _worker_loop(arguments: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    context = ray.train.get_context()
    device, world = ray.train.torch.get_device(), context.get_world_size()
    if device.type == "cpu":
        torch.set_num_threads(arguments["threads"])
    job = PretrainJob.parse(arguments["job"])
    worker = PretrainWorker(
        rank=context.get_world_rank(),
        world_size=world,
        device=device,
        add=dist.all_reduce if world > 1 else lambda tensor: None,
        report=_Narrator(arguments["report"]),
    )
    pretrain_model(job, worker)


class _Narrator:
    """Turns the loop's numbers into one line for people, with the time left."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __call__(self, values: dict[str, Any]) -> None:
        if "warning" in values:
            self._report(f"! {values['warning']}")
        elif "note" in values:
            self._report(values["note"])
        elif "validated" in values:
            loss = values["validation_loss"]
            self._report(
                f"step {values['step']:.0f}/{values['steps']:,}: validation loss {loss:.4f} "
                f"(perplexity {math.exp(min(loss, _LARGEST)):,.1f}), train loss {values['train_loss']:.4f}"
            )
        else:
            left = int(values["seconds_left"])
            self._report(
                f"step {values['step']:,}/{values['steps']:,}, loss {values['loss']:.4f}, "
                f"{values['tokens_per_s']:,.0f} tokens/s, MFU {100 * values['mfu']:.0f} %, "
                f"rate {values['learning_rate']:.2e}, gradient {values['gradient_norm']:.2f}, "
                f"waiting for data {100 * values['data_wait_share']:.1f} %, {left // 60}:{left % 60:02d} left"
            )
