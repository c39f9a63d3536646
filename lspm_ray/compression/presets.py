"""Recipes by name. A variant stores the recipe that its preset stands for, with every setting filled in."""

from __future__ import annotations

from typing import Any

from lspm_ray.errors import ConfigError

PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    # The fastest transformer of all that was measured: 4.9 times a full MiniLM-L6 alone, 4.2 times in batches.
    "fast": ({"method": "distill_layers", "layers": 2}, {"method": "quantize_int8"}),
    # Narrower layers and only the embeddings that training rows need: a small file.
    # Trimming comes second, as known words get the same answers before and after it: so the distillation, which takes
    # most of the time, is shared with the other presets.
    "small": (
        {"method": "distill_layers", "layers": 2},
        {"method": "trim_vocabulary"},
        {"method": "prune"},
        {"method": "quantize_int8"},
    ),
    # No transformer: hundreds of times cheaper, for a cascade's first answer.
    "tiny": ({"method": "distill_bag"},),
    # Stays with torch, which computes in bfloat16 on a GPU; exported variants run on the CPU alone.
    "gpu": ({"method": "distill_layers", "layers": 2},),
}


def expand(name: str) -> list[dict[str, Any]]:
    """The recipe that a preset stands for.

    Raises:
        ConfigError: there is no such preset; lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(
            "no such preset; a recipe is one of those or a list of methods",
            field="recipe",
            value=name,
            valid=sorted(PRESETS),
        )
    return [dict(step) for step in PRESETS[name]]
