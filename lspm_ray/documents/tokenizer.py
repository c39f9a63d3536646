"""Stage `tokenizer`: train a tokenizer on the documents or on labelled texts, or take one over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.execute import Execute, Item, run_on_ray, write_error
from lspm_ray.corpus.staging import Staging
from lspm_ray.corpus.train_texts import TrainTexts
from lspm_ray.documents.tokenizer_config import TokenizerConfig
from lspm_ray.documents.train_tokenizer import train
from lspm_ray.errors import ConfigError
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.models.source import copy, fingerprint, locate_tokenizer
from lspm_ray.progress import Report

STAGE = "tokenizer"

_READ_ROWS = 512
_OF_ROWS = "model.tokenizer"
"""Section of the settings of a tokenizer that is trained on labelled texts."""


@dataclass(frozen=True)
class DocumentTexts:
    """The documents to train on, in their order: as that is pseudo-random, the first are a random sample."""

    documents: Artifact

    def __iter__(self) -> Iterator[str]:
        for name in sorted(name for name in self.documents.manifest.files if name.startswith("train/")):
            content = pa.BufferReader(self.documents.read_bytes(name))
            for batch in pq.ParquetFile(content).iter_batches(_READ_ROWS, columns=["text"], use_threads=False):
                yield from batch["text"].to_pylist()


@dataclass(frozen=True)
class TrainTokenizer:
    """Trains a tokenizer on the first texts (there is one item).

    Attributes:
        config: what the user says.
        texts: in random order.
        staging: where the files of the tokenizer go.
        section: of the settings, for messages.
    """

    config: TokenizerConfig
    texts: Iterable[str]
    staging: Staging
    section: str = "tokenizer"

    def __call__(self, item: Item) -> dict[str, Any]:
        """Train; returns the names of the files, the vocabulary size and perhaps a warning.

        Raises:
            DataError: there is too little text.
        """
        tokenizer, warning = train(self.config, iter(self.texts), section=self.section)
        with tempfile.TemporaryDirectory(prefix="lspm-tokenizer-") as folder:
            tokenizer.save_pretrained(folder)
            files = sorted(file for file in Path(folder).iterdir() if file.is_file())
            for file in files:
                with self.staging.open_output(file.name) as sink:
                    sink.write(file.read_bytes())
            return {"files": [file.name for file in files], "vocabulary": len(tokenizer), "warning": warning}


def make_tokenizer(
    config: TokenizerConfig,
    documents: Artifact,
    store: ArtifactStore,
    report: Report,
    *,
    execute: Execute | None = None,
) -> Artifact:
    """Train or take over the tokenizer, or find it if that was done already.

    Returns:
        A tokenizer in Hugging Face layout.

    Raises:
        ModelError: a tokenizer that is to be taken over cannot be found or loaded.
        ConfigError: it is not of the fast kind.
        DataError: there is too little text to train one.
        ResourceError: the disk is full.
    """
    if config.name is not None:
        return take_over(config, store)
    parents = {"documents": documents.digest}
    return _train(config, DocumentTexts(documents), {}, parents, store, report, execute or run_on_ray, "tokenizer")


def make_tokenizer_of_rows(
    config: TokenizerConfig,
    data: DataConfig,
    store: ArtifactStore,
    report: Report,
    *,
    execute: Execute | None = None,
) -> Artifact:
    """The same, from the texts of the training split of labelled data.

    Args:
        config: what the user says.
        data: the labelled data; no other split of theirs is looked at.
        store: where the artifact goes.
        report: progress.
        execute: runs the step.

    Returns:
        A tokenizer in Hugging Face layout.

    Raises:
        ModelError: a tokenizer that is to be taken over cannot be found or loaded.
        ConfigError: it is not of the fast kind.
        DataError: the data cannot be read, or there is too little text.
    """
    if config.name is not None:
        return take_over(config, store, _OF_ROWS)
    texts = TrainTexts(data)
    return _train(config, texts, {"texts": texts.key()}, {}, store, report, execute or run_on_ray, _OF_ROWS)


def _train(
    config: TokenizerConfig,
    texts: Iterable[str],
    about_texts: Mapping[str, Any],
    parents: Mapping[str, str],
    store: ArtifactStore,
    report: Report,
    execute: Execute,
    section: str,
) -> Artifact:
    settings = {"tokenizer": config.model_dump(mode="json"), **about_texts}
    key = store.key(STAGE, settings, parents)

    def build(draft: Draft) -> None:
        report(f"training a {config.algorithm} tokenizer of {config.vocab_size:,} tokens")
        staging = Staging(store.work_uri(STAGE, key))
        ((_, made),) = execute(TrainTokenizer(config, texts, staging, section), [{}])
        for name in made["files"]:
            with staging.open_input(name) as source:
                (draft.path / name).write_bytes(source.read())
        if made["warning"]:
            report(f"! {made['warning']}")
        draft.summary["vocabulary"] = made["vocabulary"]

    try:
        return store.make(STAGE, settings, parents, build)
    except Exception as error:
        raise write_error(error) from None


def take_over(config: TokenizerConfig, store: ArtifactStore, section: str = "tokenizer") -> Artifact:
    """The named tokenizer as an artifact, made if it is not there.

    Args:
        config: names it.
        store: where it goes.
        section: of the settings that names it, for messages.

    Raises:
        ModelError: it cannot be found or loaded.
        ConfigError: it is not of the fast kind.
    """
    source, field = config.source(), f"{section}.name"
    content = fingerprint(source, weights=False, field=field)
    settings = {"tokenizer": source.model_dump(mode="json"), "content": content}
    found = store.find(STAGE, store.key(STAGE, settings, {}))
    if found is not None:
        return found
    directory = locate_tokenizer(source, field)

    def build(draft: Draft) -> None:
        copy(directory, draft.path)
        for weights in draft.path.glob("*.safetensors*"):
            weights.unlink()
        tokenizer = load_tokenizer(draft.path, eos_pads=True, field="tokenizer.name")
        if not tokenizer.is_fast:
            raise ConfigError(
                "only tokenizers of the `tokenizers` library (a tokenizer.json) are fast enough",
                field=field,
                value=config.name,
            )
        tokenizer.save_pretrained(draft.path)
        draft.summary["vocabulary"] = len(tokenizer)

    try:
        return store.make(STAGE, settings, {}, build)
    except Exception as error:
        raise write_error(error) from None
