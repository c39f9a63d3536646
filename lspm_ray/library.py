"""Libraries that only some methods and runtimes need, and that are installed as extras of this package."""

import importlib.util
import logging
from dataclasses import dataclass

from lspm_ray.errors import ConfigError


@dataclass(frozen=True)
class Library:
    """An optional library.

    Attributes:
        module: what is imported.
        extra: of this package, that installs it.
    """

    module: str
    extra: str

    def check(self, field: str, value: object) -> None:
        """Refuse what needs the library where it is not installed. Imports nothing.

        Args:
            field: the setting that needs it.
            value: of that setting.

        Raises:
            ConfigError: says how to get it.
        """
        if importlib.util.find_spec(self.module) is None:
            raise ConfigError(
                f"needs the library {self.module}, which is not installed",
                field=field,
                value=value,
                hint=f"pip install 'lspm-ray[{self.extra}]', on every node",
            )


def quiet_torchao() -> None:
    """Drop what torchao says when it is imported, which transformers does wherever it is installed.

    It names kernels for other machines, and a deprecation between it and torch; nothing that a user could act on.
    """
    logging.getLogger("torchao").addFilter(lambda record: not record.getMessage().startswith("Failed to load "))
    logging.getLogger("torch.utils._pytree").addFilter(
        lambda record: "register_constant() on Enum" not in record.getMessage()
    )
