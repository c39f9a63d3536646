from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.errors import ResourceError
from lspm_ray.tasks import Task
from lspm_ray.training import finetune as module
from tests.small_disk import fill, small_disk
from tests.toy_corpus import toy_corpus
from tests.toys import toy_model_artifact


def test_a_disk_that_is_full_when_the_model_is_written_is_an_error_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = ArtifactStore(str(tmp_path / "elsewhere"))
    base, data = toy_model_artifact(elsewhere, "toy"), toy_corpus(elsewhere)

    def trained(*_: Any) -> tuple[Artifact, list[dict[str, float]]]:
        fill(disk)
        return base, [{"seconds": 1.0, "loss": 1.0, "accuracy": 0.5, "f1_macro": 0.5}]

    monkeypatch.setattr(module, "fit", trained)
    task = Task.make({"task": "text_classification"})
    with small_disk(tmp_path / "small", kilobytes=2048) as disk:
        store = ArtifactStore(str(disk / "store"))
        with pytest.raises(ResourceError, match=r"store: cannot write: .*No space left.*Free space"):
            module.finetune(module.FinetuneConfig(), task, base, data, store, lambda line: None)
