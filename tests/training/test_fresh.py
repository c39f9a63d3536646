"""A fresh base: tokenizer from the training split, weights from the seed, and a start for fine-tuning."""

import json
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.prepare import prepare
from lspm_ray.corpus.shards import class_counts, labels, read_split, split_files
from lspm_ray.documents.tokenizer import make_tokenizer_of_rows
from lspm_ray.errors import ConfigError, DataError
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_model, load_tokenizer
from lspm_ray.tasks import Task
from lspm_ray.training.config import TrainConfig
from lspm_ray.training.finetune import _export
from lspm_ray.training.fresh import fresh_base
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.start_config import FreshConfig, StartConfig
from lspm_ray.training.trainer import fit_here
from tests.toy_corpus import toy_rows
from tests.toys import toy_model_dir

TASK = Task.make({"task": "text_classification", "max_length": 32})
WORDS = {"algorithm": "word", "vocab_size": 300, "lowercase": True, "min_frequency": 1}


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Every text holds a number of its own, so that one sees which texts a tokenizer has learnt from."""
    rows = [{"text": text, "label": label} for text, label in zip(*toy_rows(300, seed=3), strict=True)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig.parse({"source": str(file), "text": "text", "label": "label", "near_duplicates": False})


def start(**changes: Any) -> FreshConfig:
    made = StartConfig.parse({"architecture": "lstm", "tokenizer": WORDS, "config": {"hidden_size": 8}} | changes).fresh
    assert made is not None
    return made


def tokenizer_of(config: FreshConfig, data: DataConfig, store: ArtifactStore) -> Artifact:
    return make_tokenizer_of_rows(config.tokenizer, data, store, lambda line: None, execute=run_serially)


def make(config: FreshConfig, data: DataConfig, store: ArtifactStore) -> Artifact:
    return fresh_base(config, tokenizer_of(config, data, store), TASK.max_length, store)


def test_the_tokenizer_knows_texts_of_the_training_split_only(data: DataConfig, store: ArtifactStore) -> None:
    tokenizer = tokenizer_of(start(), data, store)
    corpus = prepare(data, TASK, tokenizer, store, lambda line: None, execute=run_serially)
    known = set(load_tokenizer(tokenizer.local()).get_vocab())
    for split in ("train", "validation", "selection", "calibration", "test"):
        numbers = {
            word for text in read_split(corpus, split)["text"].to_pylist() for word in text.split() if word.isdigit()
        }
        assert numbers and (numbers <= known if split == "train" else not numbers & known), split


def test_the_base_is_a_model_directory(data: DataConfig, store: ArtifactStore) -> None:
    made = make(start(), data, store)
    tokenizer, model = load_tokenizer(made.local()), load_model(made.local(), ["a", "b", "c"])
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.hidden_size == 8
    assert made.manifest.summary["parameters"] > 0


def test_the_key_is_that_of_data_tokenizer_architecture_config_and_seed(data: DataConfig, store: ArtifactStore) -> None:
    made = make(start(), data, store)
    assert make(start(), data, store).uri == made.uri
    changes: list[dict[str, Any]] = [
        {"tokenizer": WORDS | {"lowercase": False}},
        {"architecture": "bert", "size": "toy", "config": {}},
        {"config": {"hidden_size": 9}},
        {"seed": 1},
    ]
    others = {make(start(**change), data, store).uri for change in changes}
    others.add(make(start(), data.model_copy(update={"seed": 1}), store).uri)
    assert len(others | {made.uri}) == 6


def test_models_that_differ_in_weights_share_a_tokenizer(data: DataConfig, store: ArtifactStore) -> None:
    first, other = start(), start(seed=1, config={"hidden_size": 16})
    assert tokenizer_of(first, data, store).uri == tokenizer_of(other, data, store).uri


@pytest.mark.parametrize(
    ("architecture", "algorithm", "vocab_size"),
    [
        ("lstm", "word", 300),
        ("bert", "wordpiece", 120),
        ("gpt2", "bpe", 300),
        ("llama", "bpe", 300),
        ("t5", "unigram", 90),
    ],
)
def test_it_is_trained_like_any_other(
    data: DataConfig, store: ArtifactStore, tmp_path: Path, architecture: str, algorithm: str, vocab_size: int
) -> None:
    tokenizer = {"algorithm": algorithm, "vocab_size": vocab_size, "lowercase": True}
    size = None if architecture == "lstm" else "toy"
    config = start(architecture=architecture, size=size, config={}, tokenizer=tokenizer)
    base = make(config, data, store)
    corpus = prepare(data, TASK, tokenizer_of(config, data, store), store, lambda line: None, execute=run_serially)
    job = TrainJob(
        model_uri=base.uri,
        labels=labels(corpus),
        task=TASK.spec(),
        train_files=split_files(corpus, "train"),
        validation_files=split_files(corpus, "validation"),
        train_rows=sum(class_counts(corpus, "train")),
        class_counts=class_counts(corpus, "train"),
        config=TrainConfig.parse({"epochs": 4, "learning_rate": 0.01, "batch_size": 16, "precision": "fp32"}),
        work_uri=str(tmp_path / "work"),
    )
    best, history = fit_here(job, threads=1, report=lambda line: None)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    full = tmp_path / "full"
    full.mkdir()
    _export(best.local(), base.local(), full)
    batch = TASK.encode(["the dress is lovely", "terrible"], load_tokenizer(full))
    assert load_predictor(full, threads=1).predict(batch).shape == (2, 2)


def test_a_tokenizer_that_there_is_is_taken_over(data: DataConfig, store: ArtifactStore, tmp_path: Path) -> None:
    directory = toy_model_dir(tmp_path / "model")
    made = make(start(tokenizer={"name": str(directory)}), data, store)
    assert load_tokenizer(made.local()).get_vocab() == load_tokenizer(directory).get_vocab()


def test_too_little_text_names_the_setting(data: DataConfig, store: ArtifactStore) -> None:
    with pytest.raises(DataError, match=r"model\.tokenizer\.vocab_size: .* instead of 50000"):
        tokenizer_of(start(tokenizer={"algorithm": "bpe", "vocab_size": 50_000}), data, store)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "give either `name`"),
        ({"name": "a/b", "architecture": "lstm"}, "give either `name`"),
        ({"name": "a/b", "seed": 3, "config": {"x": 1}}, "config, seed would change nothing"),
        ({"architecture": "lstm"}, "a fresh model needs a `tokenizer`"),
        ({"architecture": "lstm", "revision": "main", "tokenizer": WORDS}, "`revision` goes with `name`"),
    ],
)
def test_either_a_name_or_an_architecture(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StartConfig.parse(raw)


def test_a_section_survives_being_written_down() -> None:
    for raw in ({"name": "a/b"}, {"architecture": "lstm", "tokenizer": WORDS}):
        made = StartConfig.parse(raw)
        assert StartConfig.parse(made.model_dump(mode="json")) == made
    with pytest.raises(ConfigError, match=r"model\.name: this configuration makes a fresh model"):
        _ = made.pretrained
