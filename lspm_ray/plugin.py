"""Extension points: one module per plugin, the file name is the key, imported only when asked for.

A plugin is a strict config section (its typed fields) with one method. Its module defines exactly one subclass of
the extension point's base class. Nothing else has to be edited to add one.
"""

import importlib
import pkgutil
from functools import cache
from typing import Any, ClassVar, Self

from lspm_ray.config import Config
from lspm_ray.errors import ConfigError


class Plugin(Config):
    """Base of all plugins. Extension points set `package`, the dotted name of the folder of their plugins."""

    package: ClassVar[str]
    kind: ClassVar[str]
    """What a user calls this sort of plugin; also the key that names it in YAML, e.g. `method: prune`."""

    @classmethod
    def names(cls) -> list[str]:
        """The keys of all plugins of this kind."""
        folder = importlib.import_module(cls.package)
        return sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_"))

    @classmethod
    def find(cls, name: str) -> type[Self]:
        """The plugin class in module `name`.

        Raises:
            ConfigError: there is no such plugin; lists those there are.
        """
        if name not in cls.names():
            raise ConfigError(f"unknown {cls.kind}", field=cls.kind, value=name, valid=cls.names())
        found: type[Self] = _load(cls, name)
        return found

    @classmethod
    def make(cls, spec: dict[str, Any] | str) -> Self:
        """Build a plugin from its YAML form: `{kind: name, field: value, ...}` or just the name.

        Raises:
            ConfigError: unknown plugin, unknown field or bad value.
        """
        fields = dict(spec) if isinstance(spec, dict) else {cls.kind: spec}
        name = fields.pop(cls.kind, None)
        if not isinstance(name, str):
            raise ConfigError(f"say which {cls.kind}", field=cls.kind, value=name, valid=cls.names())
        return cls.find(name).parse(fields)

    @property
    def name(self) -> str:
        """The key of this plugin: its module's file name."""
        return type(self).__module__.rpartition(".")[2]

    def spec(self) -> dict[str, Any]:
        """The YAML form; `make(plugin.spec())` gives an equal plugin back."""
        return {self.kind: self.name, **self.model_dump(mode="json")}


@cache
def _load(base: type[Any], name: str) -> Any:
    module = importlib.import_module(f"{base.package}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, found {len(found)}")
    return found[0]
