"""Everything that can be known to be wrong before work starts, is found here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lspm_ray.artifact import cpu_count, filesystem
from lspm_ray.cluster import ClusterConfig, running_cluster
from lspm_ray.compression.recipe import check_recipes
from lspm_ray.corpus.check import check_columns, check_files
from lspm_ray.corpus.config import DataConfig, SourceConfig
from lspm_ray.corpus.shards import class_counts, labels
from lspm_ray.documents.config import DocumentsConfig
from lspm_ray.documents.tokenizer import take_over
from lspm_ray.errors import ConfigError
from lspm_ray.models.base import base
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.models.fresh import DEFAULT_SIZE
from lspm_ray.models.presets import build_config
from lspm_ray.models.shape import Shape, shape_of
from lspm_ray.models.source import ModelConfig, locate, locate_tokenizer, read_config
from lspm_ray.pipeline import Pipeline, ReadOnlyStore
from lspm_ray.selection.feasibility import prospects, requirements
from lspm_ray.selection.select import check_feasible
from lspm_ray.serving.deploy import check_fits
from lspm_ray.settings import Settings
from lspm_ray.sweep import check_settings, extremes, points_to_prepare, reserve_for
from lspm_ray.tasks import Task
from lspm_ray.training.fresh import fresh_config
from lspm_ray.training.objective import Objective, Vocabulary
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.start_config import FreshConfig
from lspm_ray.training.tracking import check_mlflow
from lspm_ray.training.trainer import Scaling, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_LABELS_SHOWN = 10


def check(settings: Settings, missing: Sequence[str]) -> list[str]:
    """Check the inputs of the stages that are still to do, without a cluster.

    Returns:
        What was found, a line per check.

    Raises:
        UserError: the output cannot be written, a column is missing, the model cannot be used or does not fit the
            task or a recipe, or a cluster that would be started here is too small for the training workers or the
            endpoint.
    """
    _writable(settings.output)
    found = [f"output: {settings.output} can be written"]
    if "documents" in missing and settings.documents is not None:
        found.append(_documents(settings.documents))
    if "tokenizer" in missing and settings.tokenizer is not None and settings.tokenizer.name is not None:
        locate_tokenizer(settings.tokenizer.source())
        found.append(f"tokenizer: {settings.tokenizer.name}")
    if "pretrain" in missing and settings.pretrain is not None:
        found.append(_pretrain(settings, settings.pretrain, in_store="tokenizer" not in missing))
    if "tune" in missing:
        found += _sweep(settings)
    else:
        found += _start(settings, missing)
    if "prepare" in missing:
        found.append(_data(settings.labelled))
    if "compress" in missing and settings.compress.unlabelled is not None:
        files = check_files(settings.compress.unlabelled)
        found.append(f"compress: {len(files)} file(s) of texts without labels")
    if "select" in missing:
        found += _promises(settings, in_store="prepare" not in missing and "tune" not in missing)
    address = running_cluster(settings.cluster)
    if address is not None:
        return [*found, f"resources: known once connected to {address}"]
    return [*found, *_fitting(settings, missing, _resources(settings.cluster))]


def _fitting(settings: Settings, missing: Sequence[str], have: dict[str, float]) -> list[str]:
    found = []
    if "pretrain" in missing and settings.pretrain is not None:
        found.append(_workers("pretrain", resolve(settings.pretrain.workers, have, "pretrain.workers")))
    if "tune" in missing:
        reserve = reserve_for(settings, have, have)
        found.append(f"tune: {reserve.concurrent} trial(s) at once, {reserve.cpus:g} CPU and {reserve.gpus:g} GPU each")
    if "finetune" in missing:
        found.append(_workers("finetune", resolve(settings.finetune.workers, have)))
    if "compress" in missing and settings.compress.workers is not None:
        found.append(_workers("compress", resolve(settings.compress.workers, have, "compress.workers")))
    if "select" in missing:
        # Which models it will hold is not decided yet; one beside the ingress is the usual least.
        check_fits(1, settings.serve, have)
        found.append(f"serve: the ingress and one model fit {have['CPU']:g} CPU")
    return found


def _promises(settings: Settings, *, in_store: bool) -> list[str]:
    """What the risk levels need, and what the calibration rows can back if they are there already.

    Raises:
        CertificateError: the rows that are there are too few.
    """
    config = settings.select
    if not in_store:
        share = settings.labelled.splits.calibration
        return [f"select: {line}" for line in requirements(config, share or None)]
    data = Pipeline(settings, ReadOnlyStore(settings.output), lambda _: None).prepare
    names, counts = labels(data), class_counts(data, "calibration")
    check_feasible(config, counts, names)
    return [f"select: {line}" for line in prospects(sum(counts), config.wanted(names), counts, names)]


def _documents(config: DocumentsConfig) -> str:
    for rule in config.cleaning():
        rule.prepare()
    sources: dict[str, SourceConfig] = {"documents": config, **config.decontaminate}
    found = {name: check_files(source) for name, source in sources.items()}["documents"]
    rules = ", ".join(rule.name for rule in config.cleaning()) or "none"
    size = sum(file.bytes for file in found) / 1e6
    formats = ", ".join(sorted({file.format for file in found}))
    return f"documents: {len(found)} file(s) ({formats}), {size:.1f} MB; rules: {rules}"


def _pretrain(settings: Settings, config: PretrainConfig, *, in_store: bool) -> str:
    objective, model = Objective.make(config.objective), config.model
    check_mlflow(config.mlflow)
    if model.name is not None:
        directory = locate(ModelConfig(name=model.name, revision=model.revision))
        _continues(settings, config, directory, in_store=in_store)
        _fits(settings, shape_of(read_config(directory, model.name), model.name))
        return f"pretrain: {objective.name}, going on from {model.name}"
    architecture = model.architecture or objective.architectures[0]
    made = _fresh_to_pretrain(settings, config, architecture, in_store=in_store)
    _fits(settings, shape_of(made.to_dict(), architecture))
    return f"pretrain: {objective.name}, a fresh {architecture} of size {model.size}"


def _fresh_to_pretrain(
    settings: Settings, config: PretrainConfig, architecture: str, *, in_store: bool
) -> PreTrainedConfig:
    """The model that is to be made, refused if it cannot learn from the blocks that are to be made."""
    tokenizer, model = _named_tokenizer(settings, in_store=in_store), config.model
    if tokenizer is None:
        size = _trained_size(settings)
        ids: dict[str, int | None] = dict.fromkeys(("pad", "mask", "bos", "eos", "cls", "sep"), 0)
    else:
        vocabulary = Vocabulary.of(tokenizer)
        size, ids = vocabulary.size, vocabulary.ids
    length = settings.blocks.length
    made = build_config(architecture, model.size, vocab_size=size, length=length, ids=ids, overrides=model.config)
    _learns(settings, config, made, tokenizer)
    return made


def _continues(settings: Settings, config: PretrainConfig, directory: Path, *, in_store: bool) -> None:
    """Refuse a pretrained model that cannot learn from the blocks that are to be made."""
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if settings.tokenizer is None:
        tokenizer: PreTrainedTokenizerBase | None = load_tokenizer(
            directory, eos_pads=True, field="pretrain.model.name"
        )
    else:
        tokenizer = _named_tokenizer(settings, in_store=in_store)
    _learns(settings, config, model, tokenizer)


def _learns(
    settings: Settings, config: PretrainConfig, model: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Refuse a model that does not go with the objective, the blocks or the tokenizer; None is one to be trained."""
    objective, length, across = Objective.make(config.objective), settings.blocks.length, config.across_documents
    if tokenizer is None:
        objective.check_model(model, _trained_size(settings), length, across_documents=across)
    else:
        objective.check(tokenizer, model, length, across_documents=across)


def _named_tokenizer(settings: Settings, *, in_store: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the section `tokenizer` names; None if it is one to be trained."""
    config = settings.tokenizer
    if config is None or config.name is None:
        return None
    directory = (
        take_over(config, ReadOnlyStore(settings.output)).local() if in_store else locate_tokenizer(config.source())
    )
    return load_tokenizer(directory, eos_pads=True, field="tokenizer.name")


def _trained_size(settings: Settings) -> int:
    """Tokens of the tokenizer that is to be trained."""
    return settings.tokenizer.vocab_size if settings.tokenizer is not None else 1


def _fits(settings: Settings, shape: Shape) -> None:
    """Refuse a base model that the labelled half of the run cannot use."""
    if settings.data is not None:
        shape.check_length(Task.make(settings.task).max_length)
        shape.check_frozen(settings.finetune.frozen_layers)
        served = settings.serve.variant
        gpu = bool(settings.profile.as_served(served.threads, served.gpus).gpu)
        check_recipes(settings.compress.variants, shape, gpu=gpu)


def _start(settings: Settings, missing: Sequence[str]) -> list[str]:
    """Check what fine-tuning starts from, if that is known already."""
    using = {"prepare", "finetune", "compress"} & set(missing)
    if settings.model is not None:
        if not using and "base" not in missing:
            return []
        if settings.fresh is not None:
            return [_fresh(settings, settings.fresh)]
        return [_model(settings, settings.model.pretrained, in_store="base" not in missing)]
    if using and "pretrain" not in missing:
        made = Pipeline(settings, ReadOnlyStore(settings.output), lambda _: None).pretrain
        _fits(settings, shape_of(made.read_json("config.json"), made.uri))
    return []


def _fresh(settings: Settings, config: FreshConfig) -> str:
    wanted, found = config.tokenizer, None
    if wanted.name is not None:
        found = load_tokenizer(locate_tokenizer(wanted.source(), "model.tokenizer.name"), eos_pads=True)
    made = fresh_config(config, found, Task.make(settings.task).max_length)
    _fits(settings, shape_of(made.to_dict(), config.architecture))
    size = f" of size {config.size or DEFAULT_SIZE}" if config.architecture != "lstm" else ""
    tokenizer = f"the tokenizer {wanted.name}"
    if wanted.algorithm is not None:
        tokenizer = f"a {wanted.algorithm} tokenizer of {wanted.vocab_size:,} tokens, trained on the training split"
    return f"model: a fresh {config.architecture}{size} with {tokenizer}; fits the task and the recipes"


def _model(settings: Settings, model: ModelConfig, *, in_store: bool) -> str:
    name = model.name
    directory = base(model, ReadOnlyStore(settings.output)).local() if in_store else locate(model)
    load_tokenizer(directory)
    shape = shape_of(read_config(directory, name), name)
    _fits(settings, shape)
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6
    return (
        f"model: {name}: {shape.model_type}, {size:.0f} MB of weights, tokenizer loads, fits the task and the recipes"
    )


def _sweep(settings: Settings) -> list[str]:
    found = [check_settings(settings)]
    for params in points_to_prepare(settings):
        each = settings.with_values(params)
        found += [*_start(each, ["base"]), _data(each.labelled)]
        for point in extremes(settings, params):
            _start(settings.with_values(point), ["base"])
    return list(dict.fromkeys(found))


def _data(config: DataConfig) -> str:
    seen = check_columns(config)
    labels = ", ".join(f"{name} ({count})" for name, count in list(seen.labels.items())[:_LABELS_SHOWN])
    more = ", ..." if len(seen.labels) > _LABELS_SHOWN else ""
    return (
        f"data: {seen.files} file(s), {seen.bytes / 1e6:.1f} MB; columns {', '.join(seen.columns)}; "
        f"labels of the first {seen.rows} rows: {labels}{more}"
    )


def _resources(cluster: ClusterConfig) -> dict[str, float]:
    have = {"CPU": float(cluster.num_cpus or cpu_count()), "GPU": float(cluster.num_gpus or 0)}
    if cluster.num_gpus is None:
        import torch

        have["GPU"] = float(torch.cuda.device_count())
    return have


def _workers(stage: str, scaling: Scaling) -> str:
    where = "one GPU each" if scaling.use_gpu else f"{scaling.threads} threads each, no GPU"
    return f"{stage}: {scaling.num_workers} training worker(s) of {scaling.cpus_per_worker:g} CPU, {where}"


def _writable(output: str) -> None:
    fs, path = filesystem(output)
    try:
        fs.create_dir(path, recursive=True)
    except OSError as error:
        raise ConfigError(f"cannot be created: {error}", field="output", value=output) from None
