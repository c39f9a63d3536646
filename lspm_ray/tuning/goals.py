"""What a sweep optimises, and what it must keep. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from lspm_ray.config import Config

Values = Mapping[str, float]
"""Name of a metric -> its value, of one trial."""


class Limit(Config):
    """Bounds of a metric.

    Attributes:
        min: it may not be lower.
        max: it may not be higher.
    """

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _something(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing is at least {self.min:g} and at most {self.max:g}")
        return self

    def excess(self, value: float) -> float:
        """By how much the value is out of bounds, relative to the bound that it breaks; 0 if it is not."""
        if self.min is not None and value < self.min:
            return (self.min - value) / (abs(self.min) or 1.0)
        if self.max is not None and value > self.max:
            return (value - self.max) / (abs(self.max) or 1.0)
        return 0.0


class Goals(Config):
    """Objectives and constraints.

    Attributes:
        objectives: name of a metric -> `max` or `min`. The first decides between finalists.
        constraints: name of a metric -> its bounds.
    """

    objectives: dict[str, Literal["max", "min"]] = Field(min_length=1)
    constraints: dict[str, Limit] = Field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Every metric that is needed, each once."""
        return list(dict.fromkeys([*self.objectives, *self.constraints]))

    @property
    def first(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    @property
    def first_is_higher(self) -> bool:
        """Whether more of the first objective is better."""
        return self.objectives[self.first] == "max"

    def violation(self, values: Values) -> float:
        """0 if every constraint is kept; else how far they are broken, relative to their bounds, added up."""
        return sum((limit.excess(values[name]) for name, limit in self.constraints.items()), 0.0)

    def gains(self, values: Values) -> tuple[float, ...]:
        """The objectives, turned so that more is better."""
        return tuple(values[name] if mode == "max" else -values[name] for name, mode in self.objectives.items())

    def order(self, values: Values) -> tuple[float, ...]:
        """Sorts trials, the best first: those that keep the constraints, then by the objectives in order."""
        return (self.violation(values), *(-gain for gain in self.gains(values)))

    def front(self, trials: Mapping[int, Values]) -> list[int]:
        """Numbers of the trials that keep the constraints and that no other such trial beats in every objective."""
        kept = {number: self.gains(values) for number, values in trials.items() if self.violation(values) == 0}
        return sorted(
            number for number, mine in kept.items() if not any(_beats(other, mine) for other in kept.values())
        )


def _beats(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)
