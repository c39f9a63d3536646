"""Texts that are too short or too long."""

from typing import Self

from pydantic import Field, model_validator

from lspm_ray.validators.contract import Check, Outputs, State


class Length(Check):
    """Refuses by the number of tokens, special tokens included.

    Attributes:
        min_tokens: fewer are `too_short`.
        max_tokens: more are `too_long`; None for no limit. Texts are cut at the task's `max_length` before.
    """

    min_tokens: int = Field(0, ge=0)
    max_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError("max_tokens must not be less than min_tokens")
        return self

    def verdict(self, outputs: Outputs, state: State) -> list[str | None]:
        """`too_short` or `too_long`."""
        return [self._of(len(row)) for row in outputs.inputs]

    def _of(self, tokens: int) -> str | None:
        if tokens < self.min_tokens:
            return "too_short"
        return "too_long" if self.max_tokens is not None and tokens > self.max_tokens else None
