from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.corpus.execute import Item, Step, run_serially
from lspm_ray.corpus.shards import class_counts, labels, read_split, split_files
from lspm_ray.errors import ArtifactError, DataError


@pytest.fixture
def corpus(tmp_path: Path, make_corpus: Callable[..., Artifact]) -> Artifact:
    rows = "".join(f"review number {i} is of the kind {i % 2},{i % 2}\n" for i in range(100))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    config = {"source": str(tmp_path / "a.csv"), "text": "text", "label": "label", "rows_per_shard": 30}
    return make_corpus({**config, "near_duplicates": False})


def test_columns_can_be_chosen(corpus: Artifact) -> None:
    assert read_split(corpus, "train", ["label", "id"]).column_names == ["label", "id"]
    assert read_split(corpus, "train").column_names == ["id", "text", "label", "input_ids"]


def test_files_are_the_shards_in_order(corpus: Artifact) -> None:
    files = split_files(corpus, "train")
    assert len(files) > 1
    assert [Path(file).name for file in files] == [f"part-{i:05}.parquet" for i in range(len(files))]
    assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize("call", [read_split, split_files, class_counts])
def test_an_unknown_split_is_named_with_the_valid_ones(corpus: Artifact, call: Callable[..., object]) -> None:
    with pytest.raises(DataError, match=r"no such split.*'dev'.*valid: train, validation"):
        call(corpus, "dev")


def test_an_unknown_column_is_named_with_the_valid_ones(corpus: Artifact) -> None:
    with pytest.raises(DataError, match=r"columns.*'txt'.*valid: id, text, label, input_ids"):
        read_split(corpus, "train", ["txt"])


def test_a_flipped_byte_is_found(corpus: Artifact) -> None:
    path = Path(split_files(corpus, "train")[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"part-00000.parquet: content does not match"):
        read_split(corpus, "train")
    with pytest.raises(ArtifactError, match=r"part-00000.parquet: content does not match"):
        split_files(corpus, "train")


def test_large_splits_are_checked_by_several_tasks(corpus: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lspm_ray.corpus.shards._VERIFY_BYTES", 1)
    seen: list[list[str]] = []

    def execute(step: Step, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        seen.extend(item["names"] for item in items)
        return run_serially(step, items)

    files = split_files(corpus, "train", execute)
    assert seen == [[f"train/part-{i:05}.parquet"] for i in range(len(files))]
    Path(files[-1]).write_bytes(b"other")
    with pytest.raises(ArtifactError, match="content does not match"):
        split_files(corpus, "train", execute)


def test_an_artifact_of_another_kind_is_refused(store: ArtifactStore) -> None:
    other = store.make("model", {}, {}, lambda draft: None)
    with pytest.raises(DataError, match="no prepared corpus"):
        split_files(other, "train")


def test_labels(corpus: Artifact) -> None:
    assert labels(corpus) == ["0", "1"]
