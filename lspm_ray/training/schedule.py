"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math
from typing import Literal


def rate_factor(
    step: int, total: int, warmup_fraction: float, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0) of `total`; in [0, 1].

    Rises linearly over the warm-up, then falls to 0 at `total` linearly or along a half cosine (Loshchilov & Hutter
    2017), or stays.
    """
    warmup = int(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
