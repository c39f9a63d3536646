"""What every model has to beat: the majority class, and logistic regression on tf-idf."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from lspm_ray.artifact import open_artifact
from lspm_ray.corpus.shards import class_counts, read_split

MAJORITY = "majority class"
LINEAR = "tf-idf + logistic regression"
_MAX_ROWS = 200_000
"""Training rows the linear baseline is fitted on, at most: it runs on one node."""
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
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    data = open_artifact(data_uri)
    train = read_split(data, "train", ["text", "label"]).slice(0, _MAX_ROWS)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=300_000),
        LogisticRegression(C=10.0, max_iter=300),
    )
    model.fit(train["text"].to_pylist(), train["label"].to_numpy())
    classes: NDArray[np.int64] = model[-1].classes_
    logits, rows, seconds = {}, 0, 0.0
    for split in splits:
        texts = read_split(data, split, ["text"])["text"].to_pylist()
        started = time.perf_counter()
        probabilities = model.predict_proba(texts)
        seconds += time.perf_counter() - started
        rows += len(texts)
        full = np.full((len(texts), len(class_counts(data, "train"))), _FLOOR)
        full[:, classes] = np.maximum(probabilities, _FLOOR)
        logits[split] = np.log(full).astype(np.float32)
    return logits, seconds / max(1, rows)
