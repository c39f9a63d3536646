"""A world in which three stages pay: none of two models does the work of all three."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact
from lspm_ray.corpus.shards import read_split
from lspm_ray.evaluation.outputs import EVALUATION_SPLITS, logits_array
from lspm_ray.selection.options import Rows
from tests.selection.test_select import World, logits_for

HARD = {"full": 0.0, "cheap": 0.45, "middle": 0.15}
"""Share of the texts that are too hard for each model."""


def answers_of(name: str, labels: np.ndarray, seed: list[int]) -> np.ndarray:
    """Logits: full's own where a text is easy for the model, else close to even and wrong in two of five."""
    full = logits_for(labels, 0.97, True, [0, *seed])
    # What is too hard for the middle model is so for the cheap one too.
    hard = np.random.default_rng([1, *seed]).random(len(labels)) < HARD[name]
    own = logits_for(labels, 0.6, True, [len(name), *seed]) * 0.1
    return np.where(hard[:, None], own, full).astype(np.float32)


def three(n: int, seed: int = 0) -> Rows:
    """Outputs of cheap, middle and full on as many rows."""
    labels = np.random.default_rng([2, seed]).integers(2, size=n)
    stages = [answers_of(name, labels, [seed]) for name in ("cheap", "middle", "full")]
    return Rows(labels, stages, stages[-1], [np.array([1])] * n)


class ThreeStages(World):
    """Cheap costs 0.05 and does half of the texts, middle 0.2 and does 85 % of them.

    Args:
        root: of the store.
        lucky_calibration: of the calibration rows none is hard.
    """

    def __init__(self, root: Path, lucky_calibration: bool = False) -> None:
        self.lucky_calibration = lucky_calibration
        super().__init__(root)

    def _outputs(self, name: str, right: float, sure: bool, seed: int) -> Artifact:
        def build(draft):
            for number, split in enumerate(EVALUATION_SPLITS):
                table = read_split(self.data, split, ["id", "label"])
                lucky = self.lucky_calibration and split == "calibration"
                logits = answers_of("full" if lucky else name, table["label"].to_numpy(), [number])
                columns = {"id": table["id"], "label": table["label"], "logits": logits_array(logits)}
                pq.write_table(pa.table(columns), draft.path / f"{split}.parquet")

        return self.store.make("outputs", {"name": name, "three": True, "lucky": self.lucky_calibration}, {}, build)

    def _profile(self, costs: dict[str, float]) -> Artifact:
        return super()._profile(costs | ({"middle": 0.2} if "middle" in costs else {}))
