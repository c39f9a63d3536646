"""The whole story, one method per stage. Each returns its artifact, made only if it is not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.compression.compress import compress
from lspm_ray.compression.recipe import FULL
from lspm_ray.corpus.prepare import prepare
from lspm_ray.corpus.shards import class_counts, labels
from lspm_ray.documents.blocks import make_blocks
from lspm_ray.documents.collect import collect_documents
from lspm_ray.documents.tokenizer import make_tokenizer, make_tokenizer_of_rows
from lspm_ray.errors import ConfigError
from lspm_ray.models.base import base
from lspm_ray.profiling.profile import profile
from lspm_ray.progress import Report
from lspm_ray.report.build import build_report
from lspm_ray.report.text.build import build_pretraining_report
from lspm_ray.selection.gears import make_gears
from lspm_ray.selection.select import check_feasible, select
from lspm_ray.settings import Settings
from lspm_ray.tasks import Task
from lspm_ray.training.finetune import finetune
from lspm_ray.training.fresh import fresh_base
from lspm_ray.training.gain import gain
from lspm_ray.training.pretrain import pretrain

T = TypeVar("T")


class NotMadeError(Exception):
    """Raised by a read-only store for the first artifact that is not there."""

    def __init__(self, stage: str, key: str) -> None:
        super().__init__(f"{stage}-{key}")
        self.stage, self.key = stage, key


class ReadOnlyStore(ArtifactStore):
    """Finds what is there and makes nothing: for `status` and `--dry-run`."""

    def find(self, stage: str, key: str) -> Artifact:
        """The artifact.

        Raises:
            NotMadeError: it is not there.
        """
        found = super().find(stage, key)
        if found is None:
            raise NotMadeError(stage, key)
        return found

    def clear_work(self, stage: str, key: str) -> None:
        """Leaves everything as it is."""


def _given(section: T | None, name: str) -> T:
    if section is None:
        raise ConfigError(f"this configuration has no section `{name}`", field=name)
    return section


@dataclass
class Pipeline:
    """One run. Stages ask for what they need; nothing is made twice.

    Attributes:
        settings: the whole configuration.
        store: where artifacts are; a `ReadOnlyStore` makes every method raise `NotMadeError` instead of working.
        report: progress.
    """

    settings: Settings
    store: ArtifactStore
    report: Report

    @cached_property
    def task(self) -> Task:
        """The task."""
        return Task.make(self.chosen.task)

    @cached_property
    def documents(self) -> Artifact:
        """Raw text: cleaned, without duplicates, in shards."""
        return collect_documents(_given(self.settings.documents, "documents"), self.store, self.report)

    @cached_property
    def tokenizer(self) -> Artifact:
        """The tokenizer of the blocks: trained, taken over, or that of the model to go on from."""
        config = self.settings.tokenizer_of_objective
        if config is None:
            return self.base
        return make_tokenizer(config, self.documents, self.store, self.report)

    @cached_property
    def blocks(self) -> Artifact:
        """The documents as blocks of tokens."""
        return make_blocks(self.settings.blocks, self.documents, self.tokenizer, self.store, self.report)

    @cached_property
    def pretrain(self) -> Artifact:
        """The model that was pretrained here."""
        config, wait = _given(self.settings.pretrain, "pretrain"), self.settings.cluster.wait_for_nodes_s
        base = self.base if config.model.name is not None else None
        return pretrain(config, self.blocks, self.tokenizer, base, self.store, self.report, wait)

    @cached_property
    def text_report(self) -> Artifact:
        """report.html and report.json about the text and what was pretrained on it."""
        stages = self.settings.stages
        blocks = self.blocks if "blocks" in stages else None
        made = self.pretrain if "pretrain" in stages else None
        return build_pretraining_report(self.documents, blocks, made, self.store)

    @cached_property
    def tune(self) -> Artifact:
        """The sweep."""
        from lspm_ray.sweep import sweep

        return sweep(self.settings, self.store, self.report)

    @cached_property
    def chosen(self) -> Settings:
        """The settings of everything that follows: with the winner's values, where the run uses a sweep."""
        if "tune" not in self.settings.stages:
            return self.settings
        from lspm_ray.sweep import with_winner

        return with_winner(self.settings, self.tune)

    @cached_property
    def base(self) -> Artifact:
        """The pretrained model that was taken over, copied into the store; or a fresh one."""
        if self.settings.pretrain is not None:  # the model to go on from, which no sweep changes
            return base(self.settings.start, self.store, eos_pads=True)
        fresh = self.chosen.fresh
        if fresh is not None:
            return fresh_base(fresh, self.model_tokenizer, self.task.max_length, self.store)
        return base(self.chosen.start, self.store)

    @cached_property
    def model_tokenizer(self) -> Artifact:
        """The tokenizer of the labelled texts: that of the model, which for a fresh one is made before it."""
        fresh = self.chosen.fresh if self.settings.pretrain is None else None
        if fresh is None:
            return self.start
        return make_tokenizer_of_rows(fresh.tokenizer, self.chosen.labelled, self.store, self.report)

    @property
    def start(self) -> Artifact:
        """What fine-tuning starts from."""
        return self.base if self.settings.pretrain is None else self.pretrain

    @cached_property
    def prepare(self) -> Artifact:
        """The corpus: cleaned, split, tokenised."""
        data = prepare(self.chosen.labelled, self.task, self.model_tokenizer, self.store, self.report)
        check_feasible(self.chosen.select, class_counts(data, "calibration"), labels(data))
        for variant in self.chosen.compress.variants.values():
            for method in variant.methods():
                method.check_data(data)
        return data

    @cached_property
    def finetune(self) -> Artifact:
        """The full model."""
        config, wait = self.chosen.finetune, self.chosen.cluster.wait_for_nodes_s
        return finetune(config, self.task, self.start, self.prepare, self.store, self.report, wait)

    @cached_property
    def gain(self) -> Artifact:
        """What pretraining gave to the full model."""
        config, wait = self.chosen.finetune, self.chosen.cluster.wait_for_nodes_s
        return gain(config, self.task, self.start, self.finetune, self.prepare, self.store, self.report, wait)

    @cached_property
    def compress(self) -> dict[str, Artifact]:
        """Every variant by name, without the full model."""
        config, wait = self.chosen.compress, self.chosen.cluster.wait_for_nodes_s
        return compress(config, self.task, self.finetune, self.prepare, self.store, self.report, wait)

    @property
    def models(self) -> Mapping[str, Artifact]:
        """Every model that could be served."""
        return {FULL: self.finetune, **self.compress}

    @cached_property
    def _profiled(self) -> tuple[Artifact, dict[str, Artifact]]:
        config = self.chosen.profile.as_served(self.chosen.serve.variant.threads, self.chosen.serve.variant.gpus)
        return profile(config, self.task, self.models, self.prepare, self.store, self.report)

    @property
    def profile(self) -> Artifact:
        """The measured table."""
        return self._profiled[0]

    @property
    def outputs(self) -> dict[str, Artifact]:
        """Per-example outputs of every model."""
        return self._profiled[1]

    @cached_property
    def select(self) -> Artifact:
        """Plan and certificate."""
        return select(
            self.chosen.select,
            self.task,
            self.models,
            self.profile,
            self.outputs,
            self.prepare,
            self.store,
            self.report,
        )

    @cached_property
    def gears(self) -> Artifact:
        """What to serve at which load."""
        config = self.chosen.gears.as_served(self.chosen.serve.inline_latency_ms, self.chosen.serve.ingress.threads)
        return make_gears(config, self.profile, self.select, self.store, self.report)

    @cached_property
    def report_page(self) -> Artifact:
        """report.html and report.json."""
        made = self.gain if "gain" in self.settings.stages else None
        found = (self.prepare, self.finetune, self.profile, self.outputs, self.select)
        return build_report(*found, self.store, self.chosen.report, made, self.gears)

    def stage(self, name: str) -> Any:
        """The result of a stage by its name."""
        return self.report_page if name == "report" else getattr(self, name)
