"""Gradient boosted trees: fitted by scikit-learn, kept as arrays, evaluated here."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.validators.contract import Floats, State

_TREES, _DEPTH, _RATE, _MIN_LEAF = 60, 2, 0.1, 20


def fit_trees(features: Floats, good: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Trees for the log odds of `good` (Friedman 2001), each a complete binary tree of depth `_DEPTH`.

    Args:
        features: float64 [rows, features].
        good: bool [rows]; without both kinds among them there is nothing to learn, and no tree.

    Returns:
        `feature` int32 and `cut` float64 [trees, inner nodes], `leaf` float64 [trees, leaves].
    """
    from sklearn.ensemble import GradientBoostingClassifier

    inner, leaves = 2**_DEPTH - 1, 2**_DEPTH
    if good.all() or not good.any():
        return {
            "feature": np.zeros((0, inner), dtype=np.int32),
            "cut": np.zeros((0, inner)),
            "leaf": np.zeros((0, leaves)),
        }
    model = GradientBoostingClassifier(
        n_estimators=_TREES, max_depth=_DEPTH, learning_rate=_RATE, min_samples_leaf=_MIN_LEAF, random_state=0
    ).fit(features, good)
    grown = [_complete(estimator.tree_) for estimator in model.estimators_[:, 0]]
    feature, cut, leaf = (np.stack(column) for column in zip(*grown, strict=True))
    return {"feature": feature, "cut": cut, "leaf": _RATE * leaf}


def sum_of_trees(features: Floats, state: State) -> Floats:
    """What the trees add to the log odds, [rows]."""
    # As scikit-learn compares: float32 values with float64 cuts.
    values = features.astype(np.float32).astype(np.float64)
    rows, total = np.arange(len(values)), np.zeros(len(values))
    for feature, cut, leaf in zip(state["feature"], state["cut"], state["leaf"], strict=True):
        node = np.zeros(len(values), dtype=np.int64)
        for _ in range(_DEPTH):
            node = 2 * node + 1 + (values[rows, feature[node]] > cut[node])
        total += leaf[node - len(cut)]
    return total


def _complete(tree: Any) -> tuple[NDArray[np.int32], Floats, Floats]:
    """A tree of scikit-learn with leaves above the bottom pushed down to it."""
    inner = 2**_DEPTH - 1
    feature, cut, leaf = np.zeros(inner, dtype=np.int32), np.zeros(inner), np.zeros(inner + 1)

    def fill(place: int, node: int) -> None:
        if place >= inner:
            leaf[place - inner] = tree.value[node].item()
            return
        ends = tree.children_left[node] < 0
        if not ends:
            feature[place], cut[place] = tree.feature[node], tree.threshold[node]
        fill(2 * place + 1, node if ends else tree.children_left[node])
        fill(2 * place + 2, node if ends else tree.children_right[node])

    fill(0, 0)
    return feature, cut, leaf
