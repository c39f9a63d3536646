"""What config.json tells about a model before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.directory import register
from lspm_ray.models.layers import check_frozen

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Their first token has the position after that of padding; the positions up to there are never used.
_COUNT_FROM_PADDING = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


PRUNED = "lspm_pruned"


@dataclass(frozen=True)
class Shape:
    """What a task and a recipe have to fit.

    Attributes:
        model_type: family, as transformers calls it.
        layers: transformer layers; 0 if there are none that can be told apart.
        max_tokens: longest input, special tokens included; None if the family has no limit.
        inside: family of the model inside a wrapper, see `models/pruned.py`.
        hidden: width between the layers; like the next two, 0 if not known.
        heads: attention heads of a layer.
        neurons: feed-forward neurons of a layer.
    """

    model_type: str
    layers: int
    max_tokens: int | None
    inside: str = field(default="", compare=False)
    hidden: int = field(default=0, compare=False)
    heads: int = field(default=0, compare=False)
    neurons: int = field(default=0, compare=False)

    @property
    def family(self) -> str:
        """What the layers are of, wrapped or not."""
        return self.inside if self.model_type == PRUNED and self.inside else self.model_type

    def check_frozen(self, count: int, field: str = "finetune.frozen_layers") -> None:
        """Refuse to freeze more layers than the model has; see `layers.check_frozen`.

        Raises:
            ModelError: says how many may be frozen.
        """
        check_frozen(self.model_type, self.layers, count, field)

    def check_length(self, max_length: int) -> None:
        """Refuse inputs that are longer than the model's positions.

        Raises:
            ConfigError: says how long they may be.
        """
        if self.max_tokens is not None and max_length > self.max_tokens:
            raise ConfigError(
                f"the model takes {self.max_tokens} tokens at most",
                field="task.max_length",
                value=max_length,
                hint=f"Set task.max_length={self.max_tokens} or less, or take a model for longer texts",
            )


def shape_of(raw: dict[str, Any], name: str) -> Shape:
    """The shape of a model.

    Args:
        raw: content of its `config.json`.
        name: what the user calls it.

    Raises:
        ModelError: transformers does not know the family, or cannot use the values.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    register()
    fields = dict(raw)
    try:
        # Families give the same thing different names; the class knows them, and the defaults of what is not said.
        config = AutoConfig.for_model(str(fields.pop("model_type", None)), **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ModelError(f"config.json cannot be used: {first}", field="model.name", value=name) from None
    inner = config.base_config() if config.model_type == PRUNED else config
    sizes = [_size(inner, name) for name in ("hidden_size", "num_attention_heads", "intermediate_size")]
    return Shape(config.model_type, _size(inner, "num_hidden_layers"), _max_tokens(inner), inner.model_type, *sizes)


def _size(config: PreTrainedConfig, name: str) -> int:
    return int(getattr(config, name, 0) or 0)


def first_position(config: PreTrainedConfig) -> int:
    """Position of the first token of a text: 0, or in some families the one after that of padding."""
    if config.model_type not in _COUNT_FROM_PADDING:
        return 0
    # MPNet's code has a number of its own, whatever the configuration says.
    padding = 1 if config.model_type == "mpnet" else config.pad_token_id
    return 0 if padding is None else int(padding) + 1


def _max_tokens(config: PreTrainedConfig) -> int | None:
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    if positions <= 0 or not getattr(config, "position_biased_input", True):
        return None  # positions are relative to each other
    return positions - first_position(config)
