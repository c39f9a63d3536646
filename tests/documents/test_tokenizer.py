import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.corpus.execute import run_serially
from lspm_ray.documents.tokenizer import make_tokenizer
from lspm_ray.documents.tokenizer_config import TokenizerConfig
from lspm_ray.errors import DataError, ModelError, ResourceError
from lspm_ray.models.directory import load_tokenizer
from tests.documents.conftest import KilledError, Make, killed_after
from tests.small_disk import fill, small_disk
from tests.toys import toy_model_dir, toy_tokenizer


@pytest.fixture
def documents(prose: Path, make_documents: Make) -> Artifact:
    return make_documents({"source": str(prose), "validation": 0.1})


def make(documents: Artifact, store: ArtifactStore, execute: Any = run_serially, **config: Any) -> Artifact:
    return make_tokenizer(TokenizerConfig.parse(config), documents, store, lambda line: None, execute=execute)


def test_it_is_trained_on_the_documents(documents: Artifact, store: ArtifactStore) -> None:
    made = make(documents, store, algorithm="bpe", vocab_size=300)
    tokenizer = load_tokenizer(made.local())
    assert len(tokenizer) == made.manifest.summary["vocabulary"] <= 300
    assert tokenizer.decode(tokenizer("Some text.")["input_ids"], skip_special_tokens=True) == "Some text."
    assert make(documents, store, algorithm="bpe", vocab_size=300).uri == made.uri


def test_a_killed_training_is_done_again_with_the_same_result(
    documents: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    other = ArtifactStore(str(tmp_path / "other"))
    with pytest.raises(KilledError):
        make(documents, other, killed_after(0), algorithm="wordpiece", vocab_size=300)
    again = make(documents, other, algorithm="wordpiece", vocab_size=300)
    assert again.digest == make(documents, store, algorithm="wordpiece", vocab_size=300).digest


def test_only_the_sample_counts(documents: Artifact, store: ArtifactStore) -> None:
    sizes = [
        make(documents, store, algorithm="bpe", vocab_size=600, sample_characters=characters).manifest.summary[
            "vocabulary"
        ]
        for characters in (4000, 100_000)
    ]
    assert sizes[0] < sizes[1]


def test_too_little_text_is_an_error_with_both_numbers(documents: Artifact, store: ArtifactStore) -> None:
    with pytest.raises(DataError, match="50000"):
        make(documents, store, algorithm="bpe", vocab_size=50_000)


def test_one_that_there_is_is_taken_over_without_weights(
    documents: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    made = make(documents, store, name=str(toy_model_dir(tmp_path / "model")))
    assert load_tokenizer(made.local()).get_vocab() == toy_tokenizer().get_vocab()
    assert not [name for name in made.manifest.files if name.endswith(".safetensors")]


def test_one_without_padding_pads_with_its_last_token(
    documents: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    """As GPT-2's and Llama's are."""
    trained = load_tokenizer(make(documents, store, algorithm="bpe", vocab_size=400).local())
    trained.save_pretrained(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in config.items() if name != "pad_token"}))
    with pytest.raises(ModelError, match="no padding token"):
        load_tokenizer(tmp_path / "gpt2")
    made = load_tokenizer(make(documents, store, name=str(tmp_path / "gpt2")).local())
    assert made.pad_token == made.eos_token is not None


def test_one_that_does_not_exist_is_named(documents: Artifact, store: ArtifactStore) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.name.*nowhere"):
        make(documents, store, name="./nowhere")


@pytest.mark.parametrize("place", ["store", "draft", "temporary files", "taken over"])
def test_a_full_disk_is_an_error_for_the_user(
    documents: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def execute(step: Any, items: Any) -> Iterator[Any]:
        for result in run_serially(step, items):
            if place == "draft":
                fill(disk)
            yield result

    config: dict[str, Any] = {"algorithm": "bpe", "vocab_size": 300}
    if place == "taken over":
        config = {"name": str(toy_model_dir(tmp_path / "model"))}
    with small_disk(tmp_path / "small", kilobytes=256) as disk:
        store = ArtifactStore(str(tmp_path / "other" if place == "temporary files" else disk / "store"))
        if place == "temporary files":
            monkeypatch.setattr("tempfile.tempdir", str(disk))
        if place != "draft":
            fill(disk)
            # Room for folders, not for files.
            with (disk / "filler").open("r+b") as file:
                file.truncate(250 << 10)
        with pytest.raises(ResourceError, match=r"cannot write: .*No space left"):
            make(documents, store, execute, **config)
