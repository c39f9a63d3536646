"""Names of what a trial can be judged by, and what has to be done to know it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lspm_ray.compression.recipe import FULL
from lspm_ray.errors import ConfigError

QUALITY = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
"""On the validation split."""
SPEED = ("p50_ms", "p99_ms", "rows_per_s", "ms_per_row", "peak_memory_mb", "size_mb", "cost")
"""Of one model as it would be served; `cost` is relative to the full model of the same trial."""
CERTIFIED = ("cost", "ms_per_answer", "escalation_rate", "accuracy_drop")
"""Of the cheapest cascade that keeps `select.alpha` and `select.delta`, as estimated on the selection split."""

_LOWER = {"loss", *SPEED, *CERTIFIED} - {"rows_per_s"}


@dataclass(frozen=True)
class Needs:
    """What a trial must do beside training the full model.

    Attributes:
        quality: variants whose quality on validation is asked for.
        speed: models that are measured.
        certified: whether a cascade is estimated.
    """

    quality: frozenset[str] = frozenset()
    speed: frozenset[str] = frozenset()
    certified: bool = False

    @property
    def variants(self) -> bool:
        """Whether compressed variants must be made."""
        return self.certified or bool((self.quality | self.speed) - {FULL})

    @property
    def measured(self) -> bool:
        """Whether speed counts, so that nothing else may run on the node meanwhile."""
        return self.certified or bool(self.speed)


def valid_names(variants: Sequence[str]) -> list[str]:
    """Every name, for an error message or documentation."""
    models = [FULL, *variants]
    return (
        [f"validation.{name}" for name in QUALITY]
        + ([f"certified.{name}" for name in CERTIFIED] if variants else [])
        + [f"profile.{model}.{name}" for model in models for name in (*QUALITY, *SPEED)]
    )


def needs(names: Sequence[str], variants: Sequence[str]) -> Needs:
    """What has to be done to know all of these.

    Args:
        names: of metrics.
        variants: names of the compressed variants that the configuration has.

    Raises:
        ConfigError: a name that no trial would ever report; lists those that are valid.
    """
    valid = valid_names(variants)
    for name in names:
        if name not in valid:
            raise ConfigError(
                "no trial reports such a metric" + _why(name, variants), field="tune", value=name, valid=_short(valid)
            )
    profile = [name.split(".") for name in names if name.startswith("profile.")]
    return Needs(
        quality=frozenset(model for _, model, metric in profile if metric in QUALITY),
        speed=frozenset(model for _, model, metric in profile if metric in SPEED),
        certified=any(name.startswith("certified.") for name in names),
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better, by the last part of its name."""
    return metric.rpartition(".")[2] not in _LOWER


def _why(name: str, variants: Sequence[str]) -> str:
    if name.startswith("certified.") and not variants:
        return ": a cascade needs compress.variants"
    return ""


def _short(valid: Sequence[str]) -> list[str]:
    return [*valid[:40], "..."] if len(valid) > 40 else list(valid)
