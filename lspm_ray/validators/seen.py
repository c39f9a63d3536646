"""Which tokens occurred in the training rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lspm_ray.tasks import Encoded
from lspm_ray.validators.contract import Floats, Training


def seen_tokens(training: Training, min_rows: int) -> NDArray[np.uint8]:
    """1 at the id of each token that occurs in at least `min_rows` training rows, else 0; as long as the ids go."""
    ids = [np.unique(row) for row in training.inputs]
    counts = np.bincount(np.concatenate(ids)) if ids else np.zeros(1, dtype=np.int64)
    return (counts >= min_rows).astype(np.uint8)


def unseen_share(inputs: Sequence[Encoded], seen: NDArray[np.uint8]) -> Floats:
    """Share of each row's tokens that are not seen, [rows]; 0 for a row without tokens."""
    shares = np.zeros(len(inputs))
    for row, ids in enumerate(inputs):
        if len(ids):
            inside = ids[ids < len(seen)]
            shares[row] = 1 - seen[inside].sum(dtype=np.int64) / len(ids)
    return shares
