"""Answers that the first variant may not give."""

from typing import Any

from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.errors import ConfigError
from lspm_ray.validators.contract import Check, Examples, Outputs, State


class Labels(Check):
    """Refuses some labels: those whose mistakes are costly, say, are always left to the last model.

    Attributes:
        escalate: names of the labels.
    """

    escalate: tuple[str, ...] = Field(min_length=1)

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """Learns nothing.

        Raises:
            ConfigError: the task has no such label.
        """
        labels = examples.outputs.labels
        for name in self.escalate:
            if name not in labels:
                raise ConfigError("no such label", field="escalate", value=name, valid=labels)
        return {}

    def verdict(self, outputs: Outputs, state: State) -> list[str | None]:
        """`label`."""
        return ["label" if outputs.labels[best] in self.escalate else None for best in outputs.logits.argmax(axis=1)]
