from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.errors import ResourceError
from lspm_ray.training import pretrain as module
from lspm_ray.training.pretrain_loop import PretrainJob, pretrain_model
from tests.small_disk import fill, small_disk
from tests.training.toy_runs import Job, alone


def test_a_disk_that_is_full_when_the_model_is_written_is_an_error_for_the_user(
    job: Job, blocks: Artifact, tokenizer: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_here(loop: Any, arguments: dict[str, Any], *_: Any, **__: Any) -> None:
        pretrain_model(PretrainJob.parse(arguments["job"]), alone())
        if not (disk / "freed").exists():
            fill(disk)

    monkeypatch.setattr(module, "totals", lambda: {"CPU": 2.0})
    monkeypatch.setattr(module, "channel", nullcontext)
    monkeypatch.setattr(module, "launch", train_here)
    config = job(steps=2, validate_every_steps=2).config
    with small_disk(tmp_path / "small", kilobytes=2048) as disk:
        store = ArtifactStore(str(disk / "store"))

        def run() -> Artifact:
            return module.pretrain(config, blocks, tokenizer, None, store, lambda line: None)

        with pytest.raises(ResourceError, match=r"store: cannot write: .*No space left.*Free space"):
            run()
        (disk / "filler").rename(disk / "freed")
        (disk / "freed").write_bytes(b"")
        assert "history.json" in run().manifest.files
