"""Errors that a user can act on.

Everything a user can get wrong raises `UserError`; the CLI prints it and exits with code 2, and the HTTP
edge turns it into a 4xx. Anything else is a bug and keeps its traceback.
"""

import re
from collections.abc import Iterable

# Libraries written in Rust tell the system's error number only in their message.
_OS_ERROR = re.compile(r"[^\n]*\(os error (\d+)\)\W*")


class UserError(Exception):
    """A mistake in input, configuration or environment.

    Args:
        message: what is wrong, in one sentence.
        field: the setting, column or file at fault, as the user wrote it.
        value: the offending value.
        valid: the values that would have been accepted.
        hint: what to change, when listing valid values does not say it.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        valid: Iterable[object] = (),
        hint: str | None = None,
    ) -> None:
        self.field = field
        self.value = value
        self.valid = list(valid)
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        text = super().__str__()
        if self.field is not None:
            text = f"{self.field}: {text}"
        if self.value is not None:
            text += f" (got {_shorten(self.value)})"
        if self.valid:
            text += f"; valid: {', '.join(map(str, self.valid))}"
        if self.hint:
            text += f". {self.hint}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions across processes; keyword-only arguments need this to survive.
        return _rebuild, (type(self), super().__str__(), self.field, self.value, self.valid, self.hint)


class ConfigError(UserError):
    """The configuration is not valid."""


class DataError(UserError):
    """The input data cannot be used as it is."""


class ModelError(UserError):
    """A model cannot be found, loaded or used for the task."""


class ArtifactError(UserError):
    """An artifact is missing, incomplete or does not match its digests."""


class TrainingError(UserError):
    """Training cannot go on with these settings."""


class ResourceError(UserError):
    """The cluster cannot give what was asked for."""


class CertificateError(UserError):
    """A certificate cannot be issued or does not verify."""


def errno_of(error: BaseException) -> int | None:
    """The system's error number behind an error, if there is one."""
    told = _OS_ERROR.fullmatch(str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def _rebuild(
    cls: type[UserError], message: str, field: str | None, value: object, valid: list[object], hint: str | None
) -> UserError:
    return cls(message, field=field, value=value, valid=valid, hint=hint)


def _shorten(value: object, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
