"""A bag-of-n-grams student: hundreds of times cheaper, for the inputs that are easy."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from lspm_ray.compression.method import Context, Method
from lspm_ray.models.directory import Variant, load_tokenizer, read_labels, save_model, write_variant
from lspm_ray.models.shape import Shape
from lspm_ray.models.source import read_config
from lspm_ray.training.config import DistillConfig, TrainConfig


class DistillBag(Method):
    """Train a `BagOfNgramsForSequenceClassification` on the labels and the full model's outputs.

    Attributes:
        ngrams: longest token n-gram.
        buckets: hashed embeddings shared by n-grams of two and more tokens.
        embedding_size: width of the embeddings.
        hidden_size: of the hidden layer; 0 for a linear classifier.
        train: how it is trained.
        distill: how it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    ngrams: int = Field(2, ge=1, le=5)
    buckets: int = Field(1 << 17, ge=1)
    embedding_size: int = Field(32, ge=1)
    hidden_size: int = Field(0, ge=0)
    dropout: float = Field(0.3, ge=0, lt=1)
    train: TrainConfig = TrainConfig(
        epochs=12, batch_size=64, learning_rate=5e-3, weight_decay=0.0, precision="fp32", patience=3, metric="loss"
    )
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits every model; its result has no layers.

        Raises:
            ModelError: `train.frozen_layers` is more than none.
        """
        from lspm_ray.models.bag_of_ngrams import BagOfNgramsConfig

        made = replace(shape, model_type=BagOfNgramsConfig.model_type, layers=0)
        made.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return made

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the trained student. Only the tokenizer and the labels of `source` are used."""
        import torch

        from lspm_ray.models.bag_of_ngrams import BagOfNgramsConfig, BagOfNgramsForSequenceClassification

        labels, tokenizer = read_labels(source), load_tokenizer(source)
        config = BagOfNgramsConfig(
            vocab_size=int(read_config(source).get("vocab_size") or len(tokenizer)),
            ngrams=self.ngrams,
            buckets=self.buckets,
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            dropout=self.dropout,
            pad_token_id=int(tokenizer.pad_token_id or 0),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        torch.manual_seed(self.train.seed)
        start = target / "start"
        save_model(BagOfNgramsForSequenceClassification(config), tokenizer, start)
        context.train(start, target, self.train, self.distill)
        write_variant(target, Variant(structure={}))
