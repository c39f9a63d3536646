"""What a user says about the model that fine-tuning starts from."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from lspm_ray.config import Config
from lspm_ray.documents.tokenizer_config import TokenizerConfig
from lspm_ray.errors import ConfigError
from lspm_ray.models.source import ModelConfig


class FreshConfig(Config):
    """A model with fresh weights, and its tokenizer.

    Attributes:
        architecture: one of `models.fresh.ARCHITECTURES`.
        size: of a transformer, one of `models.presets.SIZES`; None for `mini`.
        config: fields of the architecture's config that win over those of the size.
        tokenizer: trained on the training split of the labelled data, or taken over.
        seed: of the weights.
    """

    architecture: str
    size: str | None
    config: dict[str, Any]
    tokenizer: TokenizerConfig
    seed: int


class StartConfig(Config):
    """Either a pretrained model (`name`), or a fresh one (`architecture`).

    Attributes:
        name: `org/model` on the Hugging Face Hub, a local directory, the URI of a run's artifact (`s3://...`), or
            `package:NAME/PATH`.
        revision: commit, tag or branch, for Hub models. Pin a commit: a branch can change under you.
        architecture: of a fresh model; this and the rest as for `FreshConfig`.
    """

    name: str | None = Field(None, min_length=1)
    revision: str | None = None
    architecture: str | None = None
    size: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    tokenizer: TokenizerConfig | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_of_two(self) -> StartConfig:
        if (self.name is None) == (self.architecture is None):
            raise ValueError("give either `name` (a pretrained model) or `architecture` (a fresh one)")
        if self.architecture is None:
            unused = sorted(self.model_dump(exclude={"name", "revision"}, exclude_defaults=True))
            if unused:
                raise ValueError(f"`name` takes a model as it is: {', '.join(unused)} would change nothing")
        else:
            if self.revision is not None:
                raise ValueError("`revision` goes with `name`")
            if self.tokenizer is None:
                raise ValueError("a fresh model needs a `tokenizer`, trained (`algorithm`) or taken over (`name`)")
        return self

    @property
    def fresh(self) -> FreshConfig | None:
        """The fresh model; None for a pretrained one."""
        if self.architecture is None or self.tokenizer is None:
            return None
        return FreshConfig(
            architecture=self.architecture,
            size=self.size,
            config=self.config,
            tokenizer=self.tokenizer,
            seed=self.seed,
        )

    @property
    def pretrained(self) -> ModelConfig:
        """Where the pretrained model comes from.

        Raises:
            ConfigError: it is a fresh one.
        """
        if self.name is None:
            raise ConfigError("this configuration makes a fresh model", field="model.name")
        return ModelConfig(name=self.name, revision=self.revision)
