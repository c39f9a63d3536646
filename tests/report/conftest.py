from collections.abc import Iterator
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.report.config import ReportConfig
from tests.report.samples import HOSTILE, Run

CASES: dict[str, dict[str, Any]] = {
    "two classes": {},
    "sixty classes": {
        "labels": [f"intent {i}" for i in range(60)],
        "absent": (7, 33),
        "rows": 1500,
        "alpha": 0.05,
        "variants": ("int8", "bag"),
    },
    "full alone": {"serve": "full", "variants": ()},
    "nothing certified": {"serve": "failed", "variants": ("int8", "bag")},
    "first alone": {"serve": "alone", "variants": ("bag",)},
    "hostile names": {
        "labels": HOSTILE,
        "rows": 600,
        "epochs": 1,
        "risk": "disagreement",
        "alpha": 0.1,
        "linear_noise": 0.56,
        "variants": ("layers-2", "bag"),
        "show": ReportConfig(texts=True, exemplars=7),
        "warnings": [f"no row in test has label {HOSTILE[0]}"],
    },
}


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Artifact]]:
    """Every kind of run, each with its report."""
    store = ArtifactStore(str(tmp_path_factory.mktemp("runs")))
    run = Run(store, **CASES[request.param])
    yield run, run.report()
