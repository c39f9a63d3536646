"""The whole configuration file: one section per part, in the order of the data."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from lspm_ray.cluster import ClusterConfig
from lspm_ray.compression.compress import CompressConfig
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.config import DataConfig
from lspm_ray.errors import ConfigError
from lspm_ray.models.source import ModelConfig
from lspm_ray.profiling.profile import ProfileConfig
from lspm_ray.selection.select import SelectConfig
from lspm_ray.serving.config import OfflineConfig, ServeConfig
from lspm_ray.tasks import Task
from lspm_ray.training.finetune import FinetuneConfig


class Settings(Config):
    """A run, from labelled data and a pretrained model to an endpoint.

    Attributes:
        output: directory or URI of all artifacts of the run.
        task: `{task: NAME, ...}` or just the name.
    """

    output: str = Field(min_length=1)
    task: dict[str, Any] = Field(default_factory=lambda: {"task": "text_classification"})
    data: DataConfig
    model: ModelConfig
    finetune: FinetuneConfig = FinetuneConfig()
    compress: CompressConfig = CompressConfig()
    profile: ProfileConfig = ProfileConfig()
    select: SelectConfig = SelectConfig()
    serve: ServeConfig = ServeConfig()
    predict: OfflineConfig = OfflineConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("task", mode="before")
    @classmethod
    def _known_task(cls, value: Any) -> Any:
        try:
            return Task.make(value).spec()
        except ConfigError as error:
            raise ValueError(str(error)) from None

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
