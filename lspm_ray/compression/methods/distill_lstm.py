"""An LSTM student: reads the words in order, at a fraction of a transformer's cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lspm_ray.compression.method import Context, Method
from lspm_ray.errors import ModelError
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, read_labels, save_model, write_variant
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig, TrainConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class DistillLstm(Method):
    """Train an `LstmForSequenceClassification` on the labels and the full model's outputs (Tang et al. 2019,
    "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", section 3).

    Attributes:
        embedding_size: width of the embeddings.
        hidden_size: units of each layer.
        layers: LSTM layers.
        dropout: on the embeddings, between the layers, and before the linear layer.
        pooling: what of the states is classified: of the last token, or the largest of each unit.
        embeddings: `teacher` starts with the source's token embeddings, cut down to their first principal components,
            or with random ones where it has none; `random` always does.
        train: how it is trained.
        distill: how it learns from the full model.
    """

    needs_teacher: ClassVar[bool] = True

    embedding_size: int = Field(128, ge=1)
    hidden_size: int = Field(128, ge=1)
    layers: int = Field(1, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    pooling: Literal["last", "max"] = "max"
    embeddings: Literal["teacher", "random"] = "teacher"
    train: TrainConfig = TrainConfig(epochs=8, learning_rate=2e-3, weight_decay=0.0, precision="fp32", patience=3)
    distill: DistillConfig = DistillConfig()

    def check(self, shape: Shape) -> Shape:
        """Fits every model; its result has no transformer layers.

        Raises:
            ModelError: `train.frozen_layers` is more than none, or the student is wider than the embeddings it is to
                begin with.
        """
        if self.embeddings == "teacher" and 0 < shape.hidden < self.embedding_size:
            raise ModelError(
                f"the teacher's embeddings have {shape.hidden} dimensions",
                field=f"{self.name}.embedding_size",
                value=self.embedding_size,
                valid=[f"1 to {shape.hidden}"],
                hint="Or set embeddings: random",
            )
        from lspm_ray.models.lstm import LstmConfig

        made = replace(shape, model_type=LstmConfig.model_type, layers=0)
        made.check_frozen(self.train.frozen_layers, f"{self.name}.train.frozen_layers")
        return made

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the trained student. Of `source`, its tokenizer, labels and token embeddings are used."""
        import torch

        from lspm_ray.models.lstm import LstmConfig, LstmForSequenceClassification

        labels, tokenizer, model = read_labels(source), load_tokenizer(source), load_model(source)
        config = LstmConfig(
            vocab_size=int(model.config.vocab_size),
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            layers=self.layers,
            dropout=self.dropout,
            pooling=self.pooling,
            pad_token_id=int(tokenizer.pad_token_id or 0),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        torch.manual_seed(self.train.seed)
        student = LstmForSequenceClassification(config)
        vectors = token_vectors(model, self.embedding_size) if self.embeddings == "teacher" else None
        if vectors is not None:
            with torch.no_grad():
                student.embedding.weight.copy_(vectors)
        start = target / "start"
        save_model(student, tokenizer, start)
        context.train(start, target, self.train, self.distill)
        write_variant(target, Variant(structure={}))


def token_vectors(model: PreTrainedModel, width: int) -> torch.Tensor | None:
    """The model's token embeddings in `width` principal components, with the spread of fresh ones: [ids, width].

    None if it has none, or narrower ones.
    """
    import torch

    from lspm_ray.models.lstm import EMBEDDING_STD

    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    with torch.no_grad():
        vectors = table(torch.arange(model.config.vocab_size)).double()
        if vectors.ndim != 2 or vectors.shape[1] < width:
            return None
        vectors -= vectors.mean(0)
        # Of the covariance: a few hundred columns, however large the vocabulary.
        axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)[:, :width]
        # An axis has no direction of its own: the largest entry is made positive.
        axes *= axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        found = vectors @ axes
        scaled: torch.Tensor = (found * (EMBEDDING_STD / found.std())).float()
        return scaled
