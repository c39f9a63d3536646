"""A bag of hashed token n-grams: some hundred times cheaper than a small transformer.

Embeddings of token n-grams are summed, scaled and classified (fastText: Joulin et al. 2017, "Bag of Tricks for
Efficient Text Classification", section 2), with n-grams over the ids of the full model's tokenizer instead of
words, so that a request is tokenised once for every variant. Registered with the transformers Auto classes: it is
saved, loaded and served as any other model.
"""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

_MULTIPLIER = 1_000_003
"""Odd prime of the polynomial n-gram hash; small enough that no product of two ids overflows int64."""


class BagOfNgramsConfig(PretrainedConfig):
    """Shape of the model.

    Args:
        vocab_size: number of token ids; each has an embedding of its own.
        ngrams: longest n-gram; 2 uses single tokens and pairs.
        buckets: embeddings shared by all n-grams with n > 1, by hash.
        embedding_size: width of the embeddings.
        hidden_size: width of the hidden layer; 0 for a linear classifier.
    """

    model_type = "lspm_bag_of_ngrams"

    def __init__(
        self,
        vocab_size: int = 30522,
        ngrams: int = 2,
        buckets: int = 1 << 17,
        embedding_size: int = 32,
        hidden_size: int = 0,
        dropout: float = 0.2,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.ngrams = ngrams
        self.buckets = buckets
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        super().__init__(**{"pad_token_id": pad_token_id} | kwargs)


class BagOfNgramsForSequenceClassification(PreTrainedModel):
    """Classifier over pooled n-gram embeddings."""

    config_class = BagOfNgramsConfig
    base_model_prefix = "bag"
    call_tokens = 256
    """Padding tokens that cost as much as another forward pass; see `TorchPredictor`."""

    def __init__(self, config: BagOfNgramsConfig) -> None:
        super().__init__(config)
        rows = 1 + config.vocab_size + (config.buckets if config.ngrams > 1 else 0)
        self.embedding = nn.EmbeddingBag(rows, config.embedding_size, mode="sum", padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        width = config.hidden_size or config.embedding_size
        self.hidden = nn.Linear(config.embedding_size, config.hidden_size) if config.hidden_size else None
        self.classifier = nn.Linear(width, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.EmbeddingBag):
            nn.init.uniform_(module.weight, -0.5 / module.embedding_dim, 0.5 / module.embedding_dim)
            with torch.no_grad():
                module.weight[0].zero_()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.05)
            nn.init.zeros_(module.bias)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding table: [batch, tokens] -> [batch, <= tokens * ngrams], 0 where padded."""
        mask = attention_mask.bool()
        columns = [(input_ids + 1) * mask]
        rolling = input_ids
        for n in range(2, min(self.config.ngrams, input_ids.shape[1]) + 1):
            rolling = (rolling[:, :-1] * _MULTIPLIER + input_ids[:, n - 1 :] + n) % self.config.buckets
            columns.append((rolling + 1 + self.config.vocab_size) * mask[:, n - 1 :])
        return torch.cat(columns, dim=1)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits [batch, labels] for token ids [batch, tokens]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = self.features(input_ids, mask)
        count = (rows != 0).sum(dim=1, keepdim=True).clamp(min=1)
        # Dividing by the root keeps the evidence of a long text stronger than that of a short one; a mean would not.
        pooled = self.dropout(self.embedding(rows) / count.to(self.embedding.weight.dtype).sqrt())
        if self.hidden is not None:
            pooled = self.dropout(torch.relu(self.hidden(pooled)))
        return SequenceClassifierOutput(logits=self.classifier(pooled))
