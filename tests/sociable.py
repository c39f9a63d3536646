"""A runtime whose answers depend on their company: `register(monkeypatch, folder)`, then the runtime `sociable`."""

from pathlib import Path

import pytest

from lspm_ray.inference import runtimes

RUNTIME = "sociable"
_SOURCE = '''
from typing import ClassVar

import numpy as np

from lspm_ray.inference.predictor import Predictor, Runtime

USUAL = 45.0


class Sociable(Runtime):
    """Loads no weights."""

    def load(self, directory, threads, gpu):
        return SociablePredictor(["no", "yes"])


class SociablePredictor(Predictor):
    """Compares each row with the mean of its batch, as batch normalisation does while it is trained."""

    sizes: ClassVar[list[int]] = []

    def predict(self, batch):
        self.sizes.append(len(batch))
        values = np.array([row.mean() for row in batch])
        centred = values - (values.mean() if len(batch) > 1 else USUAL)
        return np.stack([-centred, centred], axis=1).astype(np.float32)
'''


def register(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the runtime known while the test lasts."""
    (folder / f"{RUNTIME}.py").write_text(_SOURCE, encoding="utf-8")
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(folder)])
