"""The whole configuration file: one section per part, in the order of the data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lspm_ray.cluster import ClusterConfig
from lspm_ray.compression.compress import CompressConfig
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config, assign
from lspm_ray.corpus.config import DataConfig
from lspm_ray.documents.blocks_config import BlocksConfig
from lspm_ray.documents.config import DocumentsConfig
from lspm_ray.documents.tokenizer_config import TokenizerConfig
from lspm_ray.errors import ConfigError
from lspm_ray.models.source import ModelConfig
from lspm_ray.profiling.profile import ProfileConfig
from lspm_ray.report.config import ReportConfig
from lspm_ray.selection.gears import GearsConfig
from lspm_ray.selection.select import SelectConfig
from lspm_ray.serving.config import OfflineConfig, ServeConfig
from lspm_ray.tasks import Task
from lspm_ray.training.finetune import FinetuneConfig
from lspm_ray.training.objective import Objective
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.start_config import FreshConfig, StartConfig
from lspm_ray.tuning.config import TuneConfig


class Settings(Config):
    """A run, in one or two halves: from raw text to a pretrained model, and from labelled data to an endpoint.

    Attributes:
        output: directory or URI of all artifacts of the run.
        documents: raw text; with it the first half is made, as far as its sections go.
        tokenizer: of the blocks; None makes no blocks, or takes that of `pretrain.model.name`.
        pretrain: None makes no model.
        task: `{task: NAME, ...}` or just the name.
        data: labelled texts; with them the second half is made.
        model: that fine-tuning starts from, pretrained or fresh; None takes the one that was pretrained here.
        tune: which of these settings a sweep may change, and what it is after.
    """

    output: str = Field(min_length=1)
    documents: DocumentsConfig | None = None
    tokenizer: TokenizerConfig | None = None
    blocks: BlocksConfig = BlocksConfig()
    pretrain: PretrainConfig | None = None
    task: dict[str, Any] = Field(default_factory=lambda: {"task": "text_classification"})
    data: DataConfig | None = None
    model: StartConfig | None = None
    finetune: FinetuneConfig = FinetuneConfig()
    compress: CompressConfig = CompressConfig()
    profile: ProfileConfig = ProfileConfig()
    select: SelectConfig = SelectConfig()
    gears: GearsConfig = GearsConfig()
    report: ReportConfig = ReportConfig()
    serve: ServeConfig = ServeConfig()
    predict: OfflineConfig = OfflineConfig()
    cluster: ClusterConfig = ClusterConfig()
    tune: TuneConfig | None = None

    @field_validator("task", mode="before")
    @classmethod
    def _known_task(cls, value: Any) -> Any:
        try:
            return Task.make(value).spec()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _sections_go_together(self) -> Settings:
        if self.documents is None and self.data is None:
            raise ValueError("give `documents` (raw text to pretrain on), `data` (labelled texts), or both")
        for name in ("tokenizer", "pretrain"):
            if getattr(self, name) is not None and self.documents is None:
                raise ValueError(f"`{name}` needs `documents`")
        if self.pretrain is not None:
            if self.model is not None:
                raise ValueError("`model` and `pretrain` both say what fine-tuning starts from: leave one out")
            if self.tokenizer is None and self.pretrain.model.name is None:
                raise ValueError("a fresh model needs a `tokenizer`, trained (`algorithm`) or taken over (`name`)")
            try:
                self.tokenizer_of_objective  # noqa: B018
            except ValueError as error:
                raise ValueError(f"tokenizer.sentinels: {error}") from None
        if self.data is not None and self.model is None and self.pretrain is None:
            raise ValueError("`data` needs a `model`, or `pretrain` to make one")
        if self.tune is not None and self.data is None:
            raise ValueError("`tune` needs `data`: a sweep compares models on labelled texts")
        if self.fresh is not None and self.data is None:
            raise ValueError("a fresh `model` learns from labelled texts alone: it needs `data`")
        if self.fresh is not None and self.finetune.frozen_layers:
            raise ValueError("finetune.frozen_layers: the layers of a fresh `model` have learnt nothing yet")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of this run, in the order of the data."""
        continued = self.pretrain is not None and self.pretrain.model.name is not None
        labelled = self.data is not None
        present = [
            ("documents", self.documents is not None),
            ("base", continued),
            ("tokenizer", self.tokenizer is not None),
            ("blocks", self.tokenizer is not None or self.pretrain is not None),
            ("pretrain", self.pretrain is not None),
            ("text_report", self.documents is not None),
            ("tune", self.tune is not None and self.tune.use_winner),
            ("base", self.model is not None),
            ("prepare", labelled),
            ("finetune", labelled),
            ("gain", labelled and self.pretrain is not None and self.finetune.compare_scratch),
            *((name, labelled) for name in ("compress", "profile", "select", "gears", "report")),
        ]
        return tuple(name for name, there in present if there)

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """These settings with other values of some fields; the section `tune` is left out.

        Args:
            values: dotted path of a field -> its value.

        Raises:
            ConfigError: a field does not exist, or a value does not fit.
        """
        raw = copy.deepcopy(self.model_dump(exclude_unset=True, exclude={"tune"}))
        for path, value in values.items():
            assign(raw, path, copy.deepcopy(value))
        return Settings.parse(raw)

    @property
    def tokenizer_of_objective(self) -> TokenizerConfig | None:
        """The tokenizer section, with the sentinels that the objective needs."""
        if self.tokenizer is None:
            return None
        objective = Objective.make(self.pretrain.objective) if self.pretrain else None
        return self.tokenizer.with_sentinels(objective.sentinels(self.blocks.length) if objective else 0)

    @property
    def labelled(self) -> DataConfig:
        """The labelled texts.

        Raises:
            ConfigError: the run has none.
        """
        if self.data is None:
            raise ConfigError("this configuration has no labelled texts", field="data", hint="Add a `data` section")
        return self.data

    @property
    def start(self) -> ModelConfig:
        """The pretrained model that is taken over, for fine-tuning or to be pretrained further.

        Raises:
            ConfigError: the run takes none over.
        """
        if self.model is not None:
            return self.model.pretrained
        if self.pretrain is not None and self.pretrain.model.name is not None:
            return ModelConfig(name=self.pretrain.model.name, revision=self.pretrain.model.revision)
        raise ConfigError("this configuration takes no pretrained model over", field="model")

    @property
    def fresh(self) -> FreshConfig | None:
        """The model with fresh weights that fine-tuning starts from, if it does."""
        return None if self.model is None else self.model.fresh

    @field_validator("select")
    @classmethod
    def _first_is_made(cls, select: SelectConfig, info: ValidationInfo) -> SelectConfig:
        compress = info.data.get("compress")
        if compress is None or select.first is None:  # what is not valid itself is absent
            return select
        valid = [FULL, *compress.variants]
        if select.first not in valid:
            raise ValueError(str(ConfigError("no such variant", field="first", value=select.first, valid=valid)))
        return select
