"""What the table takes from a variant's files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.compression.sensitivity import PartSensitivity, Sensitivity, write_sensitivity
from lspm_ray.models.directory import Variant, write_variant
from lspm_ray.profiling.profile import ProfileConfig, _row
from lspm_ray.profiling.table import VariantProfile


def row_of(model: Artifact | None) -> VariantProfile:
    truth = np.array([0, 1, 0, 1])
    answers = {split: (truth, np.eye(2, dtype=np.float32)[truth]) for split in ("selection", "test")}
    return _row("small", model, {"small": answers, "full": answers}, None, 0.5, ["no", "yes"], ProfileConfig())


@pytest.mark.parametrize("structure", [None, {}, {"heads": [2, 1], "vocabulary": [90, 100]}])
def test_what_is_left_of_a_model_is_taken_from_its_files(
    structure: dict[str, Any] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    model = store.make("variant", {}, {}, lambda draft: write_variant(draft.path, Variant(structure=structure)))
    assert row_of(model).structure == (structure or {})


def test_what_had_to_stay_in_float_is_taken_from_its_files(tmp_path: Path) -> None:
    part = PartSensitivity(part="embedding", weights=10, divergence=0.1, squared_error=0.2, kept=True)
    table = Sensitivity(rows=16, max_divergence=0.05, all_quantized=0.3, divergence=0.04, parts=[part])

    def build(draft: Draft) -> None:
        write_variant(draft.path, Variant())
        write_sensitivity(draft.path, table)

    made = row_of(ArtifactStore(str(tmp_path)).make("variant", {}, {}, build))
    assert made.sensitivity == table
    assert VariantProfile.parse(made.model_dump(mode="json")).sensitivity == table


def test_nothing_is_left_to_say_of_a_baseline_or_by_an_older_profile() -> None:
    made = row_of(None)
    assert made.structure == {} and made.sensitivity is None
    assert VariantProfile.parse(made.model_dump(mode="json", exclude={"structure", "steps"})).structure == {}
