from pathlib import Path

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from tests.toys import toy_plan


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("toys")))


@pytest.fixture(scope="session")
def toy_select(toy_store: ArtifactStore) -> Artifact:
    """A cascade whose first variant accepts about half of `toy_texts`."""
    return toy_plan(toy_store, threshold=0.95)


@pytest.fixture
def own_store(tmp_path: Path) -> ArtifactStore:
    """A store that a test may damage."""
    return ArtifactStore(str(tmp_path / "own"))
