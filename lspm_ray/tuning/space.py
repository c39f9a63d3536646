"""The search space: which fields of the configuration vary, and over what. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from lspm_ray.config import Config
from lspm_ray.errors import ConfigError

Params = dict[str, Any]
"""Path of a field -> its value: one point of the space. Fields whose condition does not hold are absent."""

Suggest = Callable[[str, "Domain"], Any]
"""Chooses a value of the domain of the field at a path."""

_KINDS = ("choice", "grid", "uniform", "loguniform", "randint")


class Domain(Config):
    """What a field may be. One of the five kinds is given.

    Attributes:
        choice: one of these values, which may be anything that JSON can say.
        grid: the same, and every combination of all grids comes equally often.
        uniform: between two numbers.
        loguniform: the same, the logarithm being uniform.
        randint: a whole number between two, both included.
        when: path of another varied field -> the value, or list of values, that it must have for this one to count.
    """

    choice: list[Any] | None = Field(None, min_length=1)
    grid: list[Any] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    randint: tuple[int, int] | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_KINDS)}, not {', '.join(given) or 'none'}")
        bounds = self.bounds
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} needs a lower and a higher number, in this order")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs numbers above zero")
        for place, value in enumerate(self.options or []):
            if not _survives(value):
                raise ValueError(f"{value!r} cannot be written down as JSON")
            if value in (self.options or [])[:place]:
                raise ValueError(f"{value!r} is given twice, or is equal to a value before it")
        return self

    @property
    def kind(self) -> str:
        """`choice`, `grid`, `uniform`, `loguniform` or `randint`."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest number; None for choices."""
        return self.uniform or self.loguniform or self.randint

    @property
    def options(self) -> list[Any] | None:
        """The listed values of a choice or grid; None for numbers."""
        return self.choice if self.choice is not None else self.grid

    @property
    def values(self) -> Sequence[Any] | None:
        """Every value, where there are finitely many."""
        if self.randint is not None:
            return range(self.randint[0], self.randint[1] + 1)
        return self.options

    @property
    def extremes(self) -> list[Any]:
        """Values that are valid only if all are: every option, or the lowest and the highest number."""
        return self.options if self.options is not None else list(self.bounds or ())

    def draw(self, random: np.random.Generator) -> Any:
        """A random value."""
        if self.randint is not None:
            return int(random.integers(self.randint[0], self.randint[1], endpoint=True))
        if self.uniform is not None:
            return float(random.uniform(*self.uniform))
        if self.loguniform is not None:
            low, high = self.loguniform
            # Rounding may lead out of the interval.
            return float(np.clip(np.exp(random.uniform(np.log(low), np.log(high))), low, high))
        options = self.options or []
        return options[int(random.integers(len(options)))]


class Space:
    """All fields that vary.

    Args:
        domains: path of a field -> what it may be.
        optional: fields that `points` leaves out too where their conditions hold.

    Raises:
        ConfigError: a condition names a field that does not vary, or a value that it never has, or goes in a circle;
            or one field lies inside another.
    """

    def __init__(self, domains: Mapping[str, Domain], optional: Iterable[str] = ()) -> None:
        self.domains = dict(domains)
        self._optional = set(optional)
        for path, domain in self.domains.items():
            _check_apart(path, self.domains)
            for other, wanted in domain.when.items():
                _check_condition(path, other, wanted, self.domains)
        self._order = _ordered(self.domains)

    def sample(self, suggest: Suggest) -> Params:
        """Choose a value for every field that counts; those that others depend on first."""
        params: Params = {}
        for path in self._order:
            domain = self.domains[path]
            if _holds(domain.when, params):
                params[path] = suggest(path, domain)
        return params

    def draw(self, random: np.random.Generator) -> Params:
        """A random point."""
        return self.sample(lambda _, domain: domain.draw(random))

    def points(self) -> Iterator[Params]:
        """Every point of a finite space, in a fixed order.

        Raises:
            ConfigError: names a field with infinitely many values.
        """
        for path, domain in self.domains.items():
            if domain.values is None:
                raise ConfigError(
                    f"{domain.kind} has infinitely many values, a grid needs some that are listed",
                    field=f"tune.space.{path}",
                    valid=["choice", "grid", "randint"],
                )
        return self._points(0, {}, lambda domain: domain.values or [])

    def combinations(self, random: np.random.Generator) -> Iterator[Params]:
        """Every combination of the fields with finitely many values, the others at random."""

        def values(domain: Domain) -> Sequence[Any]:
            return [domain.draw(random)] if domain.values is None else domain.values

        return self._points(0, {}, values)

    def _points(self, depth: int, params: Params, values: Callable[[Domain], Sequence[Any]]) -> Iterator[Params]:
        if depth == len(self._order):
            yield dict(params)
            return
        path = self._order[depth]
        domain = self.domains[path]
        holds = _holds(domain.when, params)
        if not holds or path in self._optional:
            yield from self._points(depth + 1, params, values)
        if not holds:
            return
        for value in values(domain):
            yield from self._points(depth + 1, params | {path: value}, values)

    def grids(self) -> Iterator[Params]:
        """Every combination of the fields of kind `grid`; one empty combination without any."""
        return Space(self._only(path for path, domain in self.domains.items() if domain.grid is not None)).points()

    def part(self, *sections: str) -> Space:
        """Only the fields in some sections of the configuration; conditions on others may hold or not.

        Its points are all that the whole space has there, and perhaps more.
        """
        chosen = self._only(path for path in self.domains if path.split(".")[0] in sections)
        return Space(
            chosen, (path for path, domain in chosen.items() if len(domain.when) < len(self.domains[path].when))
        )

    def _only(self, paths: Iterable[str]) -> dict[str, Domain]:
        """Some fields, without their conditions on others."""
        chosen = {path: self.domains[path] for path in paths}
        return {
            path: domain.model_copy(update={"when": {k: v for k, v in domain.when.items() if k in chosen}})
            for path, domain in chosen.items()
        }


def _survives(value: Any) -> bool:
    """Whether a value is the same after it was written down in a record."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def matching(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, or one of a list of wanted ones."""
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def _holds(when: Mapping[str, Any], params: Params) -> bool:
    return all(path in params and matching(params[path], wanted) for path, wanted in when.items())


def _check_condition(path: str, other: str, wanted: Any, domains: Mapping[str, Domain]) -> None:
    field = f"tune.space.{path}.when"
    if other not in domains:
        raise ConfigError("no such field is varied", field=field, value=other, valid=sorted(domains))
    options = domains[other].options
    if options is None:
        raise ConfigError("a condition needs a field of listed values", field=field, value=other)
    if wanted == []:
        raise ConfigError(f"no value of `{other}` is listed", field=field, value=wanted, valid=options)
    for value in wanted if isinstance(wanted, list) else [wanted]:
        if value not in options:
            raise ConfigError(f"`{other}` never has this value", field=field, value=value, valid=options)


def _check_apart(path: str, domains: Mapping[str, Domain]) -> None:
    for other in domains:
        if other.startswith(f"{path}."):
            raise ConfigError(f"varies inside `{path}`, which varies as a whole", field=f"tune.space.{other}")


def _ordered(domains: Mapping[str, Domain]) -> list[str]:
    order: list[str] = []
    while len(order) < len(domains):
        ready = [path for path, domain in domains.items() if path not in order and set(domain.when) <= set(order)]
        if not ready:
            left = sorted(set(domains) - set(order))
            raise ConfigError("conditions go in a circle", field="tune.space", value=", ".join(left))
        order += ready
    return order
