"""A classical baseline: word embeddings, an LSTM and a linear layer (Hochreiter and Schmidhuber 1997).

Registered with the transformers Auto classes: it is saved, loaded, trained and served as any other model.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("last", "max")
EMBEDDING_STD = 0.1
"""Spread of fresh embeddings."""


@strict
class LstmConfig(PreTrainedConfig):
    """Shape of the model.

    Args:
        vocab_size: number of token ids.
        embedding_size: width of the embeddings.
        hidden_size: units of each layer.
        layers: LSTM layers.
        dropout: on the embeddings, between the layers, and before the linear layer.
        pooling: what of the states goes to the linear layer: `last` (of the last token) or `max` (over all tokens).
    """

    model_type = "lspm_lstm"

    vocab_size: int = 10_000
    embedding_size: int = 256
    hidden_size: int = 128
    layers: int = 1
    dropout: float | int = 0.3
    pooling: str = "last"
    pad_token_id: int | None = 0

    def validate_shape(self) -> None:
        """Part of validation.

        Raises:
            ValueError: a size below 1, a dropout outside [0, 1), or an unknown pooling.
        """
        for name in ("vocab_size", "embedding_size", "hidden_size", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more (got {getattr(self, name)})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1) (got {self.dropout})")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)} (got {self.pooling!r})")


class LstmForSequenceClassification(PreTrainedModel):
    """Classifier over the states of an LSTM. Padding stands right of the text."""

    config_class = LstmConfig
    base_model_prefix = "lstm_model"
    _supports_sdpa = True  # there is no attention, so a wrapper may ask for any

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if "weight_ih" in name:
                    nn.init.xavier_uniform_(parameter)
                elif "weight_hh" in name:
                    nn.init.orthogonal_(parameter)
                else:
                    nn.init.zeros_(parameter)
                    if "bias_ih" in name:  # of two biases that are added: the forget gate starts open
                        with torch.no_grad():
                            parameter[module.hidden_size : 2 * module.hidden_size].fill_(1.0)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings."""
        return self.embedding

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [batch, labels] for token ids [batch, tokens]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # A state knows only what stands left of it, so padding needs no packing: its states are left out below.
        states = self.lstm(self.dropout(self.embedding(input_ids)))[0]
        pooled = _last(states, mask) if self.config.pooling == "last" else _largest(states, mask)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The state of each row's last token: [batch, tokens, units] -> [batch, units]."""
    index = (mask.sum(dim=1) - 1).clamp(min=0)
    return states.gather(1, index[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]


def _largest(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The largest of each unit's states over the tokens: [batch, tokens, units] -> [batch, units]."""
    # States lie in (-1, 1).
    return states.masked_fill(mask[:, :, None] == 0, -1.0).amax(dim=1)
