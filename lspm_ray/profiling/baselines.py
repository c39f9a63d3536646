"""What every model has to beat: the majority class, and logistic regression on tf-idf."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import open_artifact
from lspm_ray.corpus.shards import class_counts, read_split

MAJORITY = "majority class"
LINEAR = "tf-idf + logistic regression"
_MAX_ROWS = 200_000
"""Training rows the linear baseline is fitted on, at most: it runs on one node."""
_VECTORIZERS: tuple[dict[str, Any], ...] = (
    {"ngram_range": (1, 2), "min_df": 2},
    {"ngram_range": (1, 2), "min_df": 1},
    {"ngram_range": (1, 3), "min_df": 1, "analyzer": "char"},
)
"""Words that occur twice; in a small corpus perhaps none does, and some scripts have no words of two characters."""
_FLOOR = 1e-12


def majority(counts: list[int], rows: int) -> NDArray[np.float32]:
    """Logits [rows, labels] that always give the largest class, with the class shares as probabilities."""
    share = np.maximum(np.asarray(counts, dtype=np.float64) / sum(counts), _FLOOR)
    return np.tile(np.log(share).astype(np.float32), (rows, 1))


def linear(data_uri: str, splits: list[str]) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Fit on the training split, predict the others.

    Returns:
        Logits [rows, labels] per split, and the seconds per row that predicting takes (from text).
    """
    from sklearn.linear_model import LogisticRegression

    data = open_artifact(data_uri)
    train = read_split(data, "train", ["text", "label"]).slice(0, _MAX_ROWS)
    vectorizer, features = _vectorize(train["text"].to_pylist())
    model = LogisticRegression(C=10.0, max_iter=300).fit(features, train["label"].to_numpy())
    classes: NDArray[np.int64] = model.classes_
    logits, rows, seconds = {}, 0, 0.0
    for split in splits:
        texts = read_split(data, split, ["text"])["text"].to_pylist()
        started = time.perf_counter()
        probabilities = model.predict_proba(vectorizer.transform(texts))
        seconds += time.perf_counter() - started
        rows += len(texts)
        full = np.full((len(texts), len(class_counts(data, "train"))), _FLOOR)
        full[:, classes] = np.maximum(probabilities, _FLOOR)
        logits[split] = np.log(full).astype(np.float32)
    return logits, seconds / max(1, rows)


def _vectorize(texts: Sequence[str]) -> tuple[Any, Any]:
    """The first of `_VECTORIZERS` that finds terms in the texts, fitted, and their features [texts, terms]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    *preferred, last = (TfidfVectorizer(sublinear_tf=True, max_features=300_000, **o) for o in _VECTORIZERS)
    for vectorizer in preferred:
        try:
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError:  # an empty vocabulary has no error of its own
            continue
    return last, last.fit_transform(texts)
