"""The contracts of validators, which score answers, and of checks, which refuse them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lspm_ray.library import Library
from lspm_ray.plugin import Plugin
from lspm_ray.tasks import Encoded

Floats = NDArray[np.float64]
State = Mapping[str, NDArray[Any]]
"""What a plugin has learnt, as plain arrays by name; empty where it learns nothing."""


@dataclass(frozen=True)
class Outputs:
    """Everything that is known of some answers.

    Attributes:
        inputs: token ids of each row.
        logits: finite, [rows, labels].
        probabilities: calibrated, [rows, labels]; largest where the logits are.
        labels: their names.
        texts: as the models were given them; None unless a plugin `reads_texts`.
    """

    inputs: Sequence[Encoded]
    logits: Floats
    probabilities: Floats
    labels: Sequence[str]
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> Self:
        texts = None if self.texts is None else self.texts[rows]
        return type(self)(self.inputs[rows], self.logits[rows], self.probabilities[rows], self.labels, texts)


@dataclass(frozen=True)
class Training:
    """Rows that the models were trained on: token ids and class index [rows]."""

    inputs: Sequence[Encoded]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """What a plugin may learn from. Never calibration rows: the certificate needs scores that were fixed without them.

    Attributes:
        outputs: of the first variant on the selection rows.
        losses: whether accepting each would be a loss, bool [rows].
        training: None unless the plugin `reads_training`.
    """

    outputs: Outputs
    losses: NDArray[np.bool_]
    training: Training | None = None

    @property
    def trained_on(self) -> Training:
        """The training rows, for a plugin that `reads_training`."""
        if self.training is None:
            raise ValueError("there are no training rows")
        return self.training


class Judge(Plugin):
    """What validators and checks have in common: they look at each row alone, and may learn.

    Class attributes:
        needs: the optional library it cannot do without.
    """

    needs: ClassVar[Library | None] = None

    @property
    def learns(self) -> bool:
        """Whether it can do nothing before it was fitted."""
        return False

    @property
    def reads_training(self) -> bool:
        """Whether `fit` needs training rows."""
        return False

    @property
    def reads_texts(self) -> bool:
        """Whether it needs texts."""
        return False

    def fit(self, examples: Examples) -> dict[str, NDArray[Any]]:
        """What is to be known later, as plain arrays. The same examples give the same arrays.

        Raises:
            ConfigError: a field does not fit the task.
        """
        return {}


class LearnsFromTraining(Judge):
    """A judge that can do nothing before it has seen training rows."""

    @property
    def learns(self) -> bool:
        """Yes."""
        return True

    @property
    def reads_training(self) -> bool:
        """Yes."""
        return True


class Validator(Judge):
    """Scores answers; higher is more trustworthy."""

    package: ClassVar[str] = "lspm_ray.validators.kinds"
    kind: ClassVar[str] = "validator"

    @abstractmethod
    def score(self, outputs: Outputs, state: State) -> Floats:
        """Scores [rows].

        Must depend on each row alone, so that a score certified offline is the score computed live.
        Must be finite: certification refuses anything else, and an answer whose live score is NaN is escalated.

        Args:
            outputs: of the first variant.
            state: what `fit` returned.
        """


class Check(Judge):
    """Refuses answers, which are escalated whatever their score; they count as escalated in the certificate too."""

    package: ClassVar[str] = "lspm_ray.validators.checks"
    kind: ClassVar[str] = "check"

    @abstractmethod
    def verdict(self, outputs: Outputs, state: State) -> list[str | None]:
        """Why each answer may not be accepted: one of few reasons, a word like `too_short`. None where it may.

        Must depend on each row alone.

        Args:
            outputs: of the first variant.
            state: what `fit` returned.
        """


def part(state: State, name: str) -> State:
    """The arrays whose names begin with `name.`, without it."""
    head = f"{name}."
    return {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}


def named(name: str, state: State) -> dict[str, NDArray[Any]]:
    """The inverse of `part`."""
    return {f"{name}.{key}": value for key, value in state.items()}
