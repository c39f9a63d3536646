"""Strict configuration: YAML file, `a.b=value` overrides, one error that lists every problem."""

import difflib
import hashlib
import json
import shlex
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lspm_ray.errors import ConfigError

T = TypeVar("T", bound="Config")
_BULLET = "  - "


class Config(BaseModel):
    """Base of every configuration section: frozen, unknown keys are errors, floats are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Self:
        """Validate `raw`.

        Raises:
            ConfigError: lists all problems at once, each with its dotted path, the value and what is valid.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(describe(error, cls)) from None


def digest_of(value: Any) -> str:
    """Hex sha256 of `value` as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply `a.b=value` overrides (values are YAML) and validate.

    Raises:
        ConfigError: the file is missing or not YAML, an override is malformed, or validation fails.
    """
    file = Path(path)
    if not file.is_file():
        near = [str(p) for p in sorted(file.parent.glob("*.y*ml"))] if file.parent.is_dir() else []
        raise ConfigError("no such config file", field="CONFIG", value=str(path), valid=near)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {error}", field="CONFIG", value=str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError("the file must hold a mapping of sections", field="CONFIG", value=type(raw).__name__)
    for override in overrides:
        _apply(raw, override)
    return cls.parse(raw)


def _apply(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError("an override must look like a.b=value", field="override", value=override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError("the value is not valid YAML", field=path, value=text) from None
    assign(raw, path, value)


def assign(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at a dotted path, list elements by their number; sections on the way are made.

    Raises:
        ConfigError: there is a value where a section should be, or no such list element.
    """
    keys = path.split(".")
    node: Any = raw
    for depth, key in enumerate(keys[:-1]):
        place = _place(node, key, path)
        child = node[place] if isinstance(node, list) else node.get(place)
        if child is None:
            child = node[place] = {}
        if not isinstance(child, dict | list):
            raise _no_section(child, keys, depth, value)
        node = child
    node[_place(node, keys[-1], path)] = value


def override(path: str, value: Any) -> str:
    """What sets a field on a command line, quoted for the shell: the inverse of what `load` does with it."""
    plain = isinstance(value, str) and yaml.safe_load(value) == value
    return shlex.quote(f"{path}={value if plain else json.dumps(value)}")


def _no_section(found: object, keys: list[str], depth: int, value: object) -> ConfigError:
    path, head, rest = ".".join(keys), ".".join(keys[: depth + 1]), keys[depth + 1 :]
    # A plugin may be given by its bare name: in a list that of a method, elsewhere under the key of its kind.
    kind = "method" if keys[depth].isdigit() else keys[depth]
    inner = "".join(f"{key}: {{" for key in rest[:-1]) + f"{rest[-1]}: {value}" + "}" * len(rest[:-1])
    if rest[0].isdigit():
        hint = "Write the list out first: one of its elements is set"
        return ConfigError(f"`{head}` is a value, not a list", field=path, value=found, hint=hint)
    hint = f"If that names a plugin, write it out: {head}='{{{kind}: {found}, {inner}}}'"
    return ConfigError(
        f"`{head}` is a value, not a section", field=path, value=found, hint=hint if isinstance(found, str) else None
    )


def _place(node: Any, key: str, path: str) -> Any:
    return _index(node, key, path) if isinstance(node, list) else key


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError("no such list element", field=path, value=key, valid=range(len(node)))
    return int(key)


def describe(error: ValidationError, cls: type[BaseModel]) -> str:
    """One line per problem: dotted path, what is wrong, the value, and valid names for unknown keys."""
    lines = [line for problem in error.errors(include_url=False) for line in _lines(problem, cls)]
    head = "1 problem in the configuration" if len(lines) == 1 else f"{len(lines)} problems in the configuration"
    return "\n".join([f"{head}:", *(f"{_BULLET}{line}" for line in lines)])


def _lines(problem: Any, cls: type[BaseModel]) -> list[str]:
    """A line, or as many as the section of a plugin in this place has problems, which were described before."""
    head, _, rest = problem["msg"].removeprefix("Value error, ").partition("\n")
    if not head.endswith("in the configuration:"):
        return [_problem(problem, cls)]
    return [_below(".".join(map(str, problem["loc"])), line) for line in _listed(rest)]


def placed(error: ConfigError, place: str) -> ValueError:
    """What a validator raises for a mistake that it found in a part of what it was given.

    Args:
        error: the mistake, or several that were described together.
        place: name or number of the part.
    """
    head, _, rest = str(error).partition("\n")
    lines = _listed(rest) if rest else [head]
    return ValueError("\n".join(["in the configuration:", *(f"{_BULLET}{_below(place, line)}" for line in lines)]))


def _listed(text: str) -> list[str]:
    return text.removeprefix(_BULLET).split(f"\n{_BULLET}")


def _below(place: str, line: str) -> str:
    return f"{place}.{line}" if place else line


def _problem(problem: Any, cls: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location) or "(top level)"
    if problem["type"] == "extra_forbidden":
        valid = sorted(_fields_at(cls, location[:-1]))
        close = difflib.get_close_matches(location[-1], valid, n=1)
        guess = f"; did you mean `{close[0]}`? Valid keys: " if close else "; valid keys: "
        return f"{path}: unknown key{guess}{', '.join(valid)}" if valid else f"{path}: unknown key"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{path}: required, but not given"
    value = problem.get("input")
    shown = "" if isinstance(value, dict) or "(got " in message else f" (got {value!r:.200})"
    return f"{path}: {message}{shown}"


def _fields_at(cls: type[BaseModel], location: Sequence[str]) -> set[str]:
    models: set[type[BaseModel]] = {cls}
    for part in location:
        following: set[type[BaseModel]] = set()
        for model in models:
            if part in model.model_fields:
                following |= set(_models_in(model.model_fields[part].annotation))
            elif part.isdigit() or part not in model.model_fields:
                following.add(model)
        models = following
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []
