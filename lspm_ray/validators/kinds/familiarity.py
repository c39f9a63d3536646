"""How near a text is to the training rows, whatever the model says of it."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lspm_ray.tasks import Encoded
from lspm_ray.validators.contract import Examples, Floats, LearnsFromTraining, Outputs, State, Validator
from lspm_ray.validators.embedding import embed, fit_embedding

_SHRINK = 0.1
"""Share of the covariance that is replaced by its mean variance: few rows leave directions unseen."""
_REFERENCES = 2000


class Familiarity(LearnsFromTraining, Validator):
    """How like the training rows a text is.

    `unigram`: mean log probability of its tokens by their counts in training (one is added to each). The others are
    negative distances in an embedding of hashed token ids. `mahalanobis`: to the nearest class mean, covariance shared
    by the classes (Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", 2018). `knn`: to
    the k-th nearest of at most 2,000 training rows (Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", 2022).

    Attributes:
        distance: one of these.
        dimensions: of the embedding.
        buckets: that token ids are hashed to; a power of two.
        neighbours: k.
    """

    distance: Literal["unigram", "mahalanobis", "knn"] = "unigram"
    dimensions: int = Field(32, ge=2, le=512)
    buckets: int = Field(8192, ge=64, le=2**20)
    neighbours: int = Field(10, ge=1, le=100)

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.buckets & (self.buckets - 1):
            raise ValueError("buckets must be a power of two")
        return self

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """`log_probabilities`; or projection, and `whitening` with `means`, or `references`."""
        training = examples.trained_on
        if self.distance == "unigram":
            return {"log_probabilities": _log_probabilities(training.inputs)}
        state = fit_embedding(training.inputs, self.buckets, self.dimensions)
        found = embed(training.inputs, state)
        if self.distance == "knn":
            chosen = np.linspace(0, len(found) - 1, min(_REFERENCES, len(found))).astype(np.int64)
            return {**state, "references": found[chosen]}
        classes, index = np.unique(training.labels, return_inverse=True)
        means = np.stack([found[index == number].mean(axis=0) for number in range(len(classes))])
        whitening = _whitening(found - means[index])
        return {**state, "whitening": whitening, "means": means @ whitening}

    def score(self, outputs: Outputs, state: State) -> Floats:
        """At most 0."""
        if self.distance == "unigram":
            return _mean_log_probability(outputs.inputs, state["log_probabilities"])
        found = embed(outputs.inputs, state)
        if self.distance == "mahalanobis":
            near = [_distances(row @ state["whitening"], state["means"]).min() for row in found]
        else:
            k = min(self.neighbours, len(state["references"])) - 1
            near = [np.partition(_distances(row, state["references"]), k)[k] for row in found]
        return -np.array(near, dtype=np.float64)


def _log_probabilities(inputs: Sequence[Encoded]) -> Floats:
    """Of each token id, and in the last place of those above all that occur, [largest id + 2]."""
    counts = np.bincount(np.concatenate([*inputs, np.zeros(0, dtype=np.int64)])) if len(inputs) else np.zeros(1)
    smoothed = np.append(counts, 0) + 1.0
    found: Floats = np.log(smoothed / smoothed.sum())
    return found


def _mean_log_probability(inputs: Sequence[Encoded], known: Floats) -> Floats:
    """[rows]; that of an unseen token for a row without tokens."""
    rows = [known[np.minimum(row, len(known) - 1)].mean() if len(row) else known[-1] for row in inputs]
    return np.array(rows, dtype=np.float64)


def _distances(row: Floats, others: Floats) -> Floats:
    found: Floats = np.sqrt(((others - row) ** 2).sum(axis=1))
    return found


def _whitening(centred: Floats) -> Floats:
    """[dimensions, dimensions], after which the shrunken covariance of the rows is the identity."""
    covariance = centred.T @ centred / len(centred)
    spread = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh((1 - _SHRINK) * covariance + _SHRINK * spread * np.eye(len(covariance)))
    whitening: Floats = vectors / np.sqrt(values)
    return whitening
