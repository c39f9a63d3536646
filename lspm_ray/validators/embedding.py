"""A cheap embedding of token ids: hashed, weighed by rarity, projected on the main directions of the training rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.tasks import Encoded
from lspm_ray.validators.contract import Floats, State

_MIX = 2654435761
_BITS = 32


def fit_embedding(inputs: Sequence[Encoded], buckets: int, dimensions: int) -> dict[str, NDArray[Any]]:
    """Latent semantic analysis (Deerwester et al. 1990) of the bags of token ids.

    Args:
        inputs: token ids of the training rows.
        buckets: that token ids are hashed to; a power of two.
        dimensions: of the embedding.

    Returns:
        `projection` float32 [buckets, dimensions]: the main directions, multiplied by each bucket's idf.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD

    bags = [_bag(row, buckets) for row in inputs]
    starts = np.concatenate([[0], np.cumsum([len(places) for places, _ in bags])])
    places = np.concatenate([places for places, _ in bags])
    weights = np.concatenate([weights for _, weights in bags])
    idf = np.log((1 + len(bags)) / (1 + np.bincount(places, minlength=buckets)))
    matrix = csr_matrix((weights * idf[places], places, starts), shape=(len(bags), buckets))
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1))).ravel()
    matrix = matrix.multiply(1 / np.maximum(norms, 1e-12)[:, None]).tocsr()
    svd = TruncatedSVD(min(dimensions, buckets - 1, max(1, len(bags) - 1)), random_state=0).fit(matrix)
    return {"projection": (idf[:, None] * svd.components_.T).astype(np.float32)}


def embed(inputs: Sequence[Encoded], state: State) -> Floats:
    """Unit vectors, float64 [rows, dimensions], computed row by row; zero where nothing is known of a row."""
    projection = state["projection"]
    found = np.zeros((len(inputs), projection.shape[1]))
    for row, ids in enumerate(inputs):
        places, weights = _bag(ids, len(projection))
        vector = (projection[places] * weights[:, None]).sum(axis=0)
        norm = float(np.sqrt((vector**2).sum()))
        if norm > 0:
            found[row] = vector / norm
    return found


def _bag(ids: Encoded, buckets: int) -> tuple[NDArray[np.int64], Floats]:
    """Buckets that occur, ascending, and log(1 + how often)."""
    mixed = ids.astype(np.uint64) * np.uint64(_MIX) % np.uint64(2**_BITS)
    shift = np.uint64(_BITS - (buckets - 1).bit_length())
    places, counts = np.unique((mixed >> shift).astype(np.int64), return_counts=True)
    return places, np.log1p(counts)
