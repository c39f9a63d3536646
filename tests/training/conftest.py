from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.training.pretrain_loop import PretrainJob
from tests.toy_blocks import toy_blocks
from tests.toys import toy_tokenizer
from tests.training.toy_runs import Job, toy_job


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def tokenizer(store: ArtifactStore) -> Artifact:
    def build(draft: Draft) -> None:
        made = toy_tokenizer()
        made.save_pretrained(draft.path)

    return store.make("tokenizer", {}, {}, build)


@pytest.fixture(scope="module")
def blocks(store: ArtifactStore) -> Artifact:
    rows = {"train": [150, 90], "validation": [40]}
    return toy_blocks(store, rows, length=16, vocabulary=len(toy_tokenizer()), counting=True)


@pytest.fixture
def job(tmp_path: Path, blocks: Artifact, tokenizer: Artifact) -> Job:
    def make(work: str = "work", **config: Any) -> PretrainJob:
        defaults: dict[str, Any] = {
            "steps": 12,
            "batch_size": 8,
            "micro_batch_size": 4,
            "model": {"size": "toy"},
            "validation_blocks": 16,
            "validate_every_steps": 6,
            "checkpoint_every_steps": 4,
            "log_every_steps": 2,
        }
        return toy_job(tmp_path / work, blocks, tokenizer, defaults | config)

    return make
