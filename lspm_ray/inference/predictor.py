"""The contract of inference: token ids in, logits out. Profiling measures exactly the object that Serve deploys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lspm_ray.inference.batching import micro_batches, pad
from lspm_ray.library import Library
from lspm_ray.models.directory import read_variant
from lspm_ray.models.source import read_config
from lspm_ray.plugin import Plugin
from lspm_ray.tasks import Encoded


class Predictor(ABC):
    """A loaded model.

    Args:
        labels: label names in the order of the logits.
    """

    joins_rows: ClassVar[bool] = True
    """Whether several rows are computed faster together than one after the other."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels

    @abstractmethod
    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        """Logits [len(batch), labels], in the order of `batch`.

        A row's logits may not depend on the other rows by more than rounding: what was certified on held-out rows
        would not hold for the same row in other company.
        """


class PaddedPredictor(Predictor):
    """A predictor whose rows of similar length share a forward pass, padded to the longest of them.

    Args:
        labels: label names in the order of the logits.
        pad_id: token id used for padding.
        max_tokens: see `micro_batches`.
        call_tokens: see `micro_batches`.
    """

    def __init__(self, labels: list[str], pad_id: int, max_tokens: int, call_tokens: int) -> None:
        super().__init__(labels)
        self.pad_id = pad_id
        self._max_tokens = max_tokens
        self._call_tokens = call_tokens

    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        """See `Predictor.predict`."""
        logits = np.empty((len(batch), len(self.labels)), dtype=np.float32)
        for rows in micro_batches([len(example) for example in batch], self._max_tokens, self._call_tokens):
            ids, mask = pad([batch[row] for row in rows], self.pad_id)
            logits[rows] = self.forward(ids, mask)
        return logits

    @abstractmethod
    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """One forward pass: logits [rows, labels] for padded token ids and their mask, both [rows, tokens]."""


class Runtime(Plugin):
    """What executes a model directory. `variant.json` names it.

    Class attributes:
        weights: suffix of the files that it loads.
        needs: the optional library it cannot do without.
    """

    package: ClassVar[str] = "lspm_ray.inference.runtimes"
    kind: ClassVar[str] = "runtime"
    weights: ClassVar[str] = ".safetensors"
    needs: ClassVar[Library | None] = None

    @abstractmethod
    def load(self, directory: Path, threads: int, gpu: bool) -> Predictor:
        """Load the model, on the GPU if `gpu` and the runtime can use one, else with `threads` CPU threads."""


def load_predictor(directory: Path, threads: int, gpu: bool = False) -> Predictor:
    """Load a model directory with the runtime that its `variant.json` names.

    Args:
        directory: of the model.
        threads: CPU threads it may use.
        gpu: whether it may use the GPU. Never guessed: numbers certified on one device say little about another.

    Raises:
        ModelError: the directory is not a complete model.
        ConfigError: it names an unknown runtime, or one whose library is not installed.
        ResourceError: it needs a device or a tool that this machine lacks.
    """
    runtime = Runtime.make(read_variant(directory).runtime)
    if runtime.needs is not None:
        runtime.needs.check("runtime", runtime.name)
    return runtime.load(directory, threads, gpu)


def pad_id_of(directory: Path) -> int:
    """The padding token's id; 0 where the model has none (it is masked anyway)."""
    value = read_config(directory).get("pad_token_id")
    return int(value) if value is not None else 0
