"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math
from typing import Literal


def rate_factor(
    step: int,
    total: int,
    warmup_fraction: float,
    schedule: Literal["linear", "cosine", "constant", "wsd"],
    decay_fraction: float = 0.2,
) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0) of `total`; in [0, 1].

    Rises linearly over the warm-up, then falls to 0 at `total` linearly or along a half cosine (Loshchilov & Hutter
    2017), or stays. `wsd` (warm-up, stable, decay: Hu et al. 2024, section 4) stays, too, and falls over the last
    `decay_fraction` of all steps as 1 - sqrt(progress), which ends at a lower loss than a line (Haegele et al. 2024,
    section 3). A decay that would begin during the warm-up begins after it.
    """
    warmup = int(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    fall_from = max(warmup, total - round(total * decay_fraction)) if schedule == "wsd" else warmup
    progress = min(1.0, max(0.0, (step - fall_from) / max(1, total - fall_from)))
    if schedule == "wsd":
        return 1.0 - math.sqrt(progress)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
