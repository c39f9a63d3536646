from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.execute import Execute, run_serially
from lspm_ray.corpus.prepare import prepare
from lspm_ray.corpus.sources import Layout
from lspm_ray.tasks import Task
from tests.toys import toy_tokenizer

Make = Callable[..., Artifact]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def tokenizer_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model directory of which only the tokenizer is there: `prepare` needs no more."""
    elsewhere = ArtifactStore(str(tmp_path_factory.mktemp("tokenizer")))

    def build(draft: Draft) -> None:
        toy_tokenizer().save_pretrained(draft.path)

    return elsewhere.make("model", {}, {}, build)


@pytest.fixture
def make_corpus(store: ArtifactStore, tokenizer_artifact: Artifact) -> Make:
    """`prepare` without a cluster."""

    def make(
        config: dict[str, Any],
        *,
        layout: Layout | None = None,
        execute: Execute = run_serially,
        into: ArtifactStore = store,
        lines: list[str] | None = None,
    ) -> Artifact:
        task = Task.make({"task": "text_classification", "max_length": 32})
        say = (lines if lines is not None else []).append
        return prepare(DataConfig.parse(config), task, tokenizer_artifact, into, say, layout=layout, execute=execute)

    return make
