"""Stage `blocks`: from documents and a tokenizer to shards of fixed-length blocks of tokens.

Every shard of documents becomes one shard of blocks, by itself: no step waits for another, and a killed run goes on
with the shards that are missing.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, filesystem, join
from lspm_ray.corpus.execute import Execute, Item, run_on_ray, write_error
from lspm_ray.corpus.split import mix
from lspm_ray.corpus.staging import Staging
from lspm_ray.documents.blocks_config import BlocksConfig
from lspm_ray.documents.config import SPLITS
from lspm_ray.documents.packing import Packed, best_fit, concatenate
from lspm_ray.documents.write import write_table
from lspm_ray.errors import ArtifactError, ConfigError, DataError
from lspm_ray.models.directory import load_tokenizer, vocabulary_size
from lspm_ray.progress import Report

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

STAGE = "blocks"
INDEX_FILE = "index.json"
STATS_FILE = "stats.json"
TOKENS_FILE = "tokens.parquet"

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("segments", pa.list_(pa.int32()))])
"""Columns of a shard. Every `input_ids` has the length of a block, padded at the end; `segments` are the lengths of the
pieces of documents in it, and sum to the tokens that are no padding."""

GROUP_ROWS = 64
"""Blocks of a row group: what training reads at once."""

_PACKINGS = {"concatenate": concatenate, "best_fit": best_fit}
_ENCODE_CHARACTERS = 1 << 18
"""The library needs some hundred bytes for each token that it has at hand."""

_BACKEND_FILE = "tokenizer.json"
_READ_ROWS = 64
_SUMS = 64


class Marks:
    """The token ids that separate documents and fill blocks.

    Attributes:
        start: at the start of every block; None for none.
        end: after every document.
        pad: fills a block up.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: bool | None) -> None:
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        if start and first is None:
            raise ConfigError("the tokenizer has no token to start a block with", field="blocks.start", value=start)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise ConfigError(
                "the tokenizer has no token that ends a document (eos or sep)",
                field="tokenizer.name",
                hint="Add eos_token to its tokenizer_config.json, or train one",
            )
        self.start: int | None = first if start is not False else None
        self.end = int(end)
        self.pad = int(tokenizer.pad_token_id)


@dataclass(frozen=True)
class PackShard:
    """Tokenises and packs shards of documents, each by itself (an item is `{"names": [shard, ...]}`).

    Attributes:
        documents: the artifact with the documents.
        config: what the user says.
        staging: holds the tokenizer, and finished shards until all are there.
        marks: of the tokenizer.
        vocabulary: one more than the highest token id of the tokenizer.
    """

    documents: Artifact
    config: BlocksConfig
    staging: Staging
    marks: Marks
    vocabulary: int

    def __call__(self, item: Item) -> dict[str, Any]:
        """Write the shards; returns what `shards` of them have, in order, and their `tokens`.

        Raises:
            ArtifactError: a shard is missing or damaged.
        """
        shards = [self._once(name) for name in item["names"]]
        return {"shards": shards, "tokens": sum(shard["tokens"] for shard in shards)}

    def _once(self, name: str) -> dict[str, Any]:
        done = f"done/{name}.json"
        return self.staging.read_result(done) or self.staging.write_result(done, self._pack(name))

    def _pack(self, name: str) -> dict[str, Any]:
        backend, marks = _backend(self.staging), self.marks
        counts = np.zeros(self.vocabulary, dtype=np.int64)
        encoded: list[NDArray[np.int32]] = []
        characters = text_bytes = 0
        for texts in self._texts(name):
            characters += sum(map(len, texts))
            text_bytes += sum(len(text.encode()) for text in texts)
            first = len(encoded)
            for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
                ids = np.empty(len(encoding) + 1, dtype=np.int32)
                ids[:-1] = encoding.ids
                ids[-1] = marks.end
                encoded.append(ids)
            counts += np.bincount(np.concatenate(encoded[first:]), minlength=self.vocabulary)
        packed = _PACKINGS[self.config.packing](encoded, self.config.length, marks.start, marks.pad)
        self._write(shuffled(packed, self.config.seed), name)
        with self.staging.open_output(f"counts/{name}.i8") as sink:
            sink.write(counts.astype("<i8").tobytes())
        return {
            "blocks": len(packed.segments),
            "documents": len(encoded),
            "tokens": int(counts.sum()),
            "bytes": text_bytes,
            "characters": characters,
        }

    def _texts(self, name: str) -> Iterator[list[str]]:
        """Texts to encode together: neighbours, of `_ENCODE_CHARACTERS` or so."""
        content = pa.BufferReader(self.documents.read_bytes(name))
        texts: list[str] = []
        characters = 0
        for batch in pq.ParquetFile(content).iter_batches(_READ_ROWS, columns=["text"], use_threads=False):
            for text in batch["text"].to_pylist():
                texts.append(text)
                characters += len(text)
                if characters >= _ENCODE_CHARACTERS:
                    yield texts
                    texts, characters = [], 0
        if texts:
            yield texts

    def _write(self, packed: Packed, name: str) -> None:
        blocks, length = packed.input_ids.shape
        offsets = np.arange(blocks + 1, dtype=np.int32) * length
        ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(packed.input_ids.reshape(-1)))
        ends = np.cumsum([0, *(len(part) for part in packed.segments)]).astype(np.int32)
        flat = np.concatenate([np.empty(0, dtype=np.int32), *packed.segments])
        segments = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))
        table = pa.Table.from_arrays([ids, segments], schema=SCHEMA)
        write_table(table, join(self.staging.uri, f"blocks/{name}"), GROUP_ROWS)


def _hand_out(tokenizer: PreTrainedTokenizerBase, staging: Staging) -> None:
    """Put the tokenizer where every task finds it, in the form of the library below transformers.

    To import transformers takes a worker longer than to tokenise a shard, and several times the memory.

    Raises:
        ConfigError: it has no such form.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            "only tokenizers of the `tokenizers` library (a tokenizer.json) are fast enough",
            field="tokenizer.name",
            value=type(tokenizer).__name__,
        )
    backend.no_truncation()
    backend.no_padding()
    with staging.open_output(_BACKEND_FILE) as sink:
        sink.write(backend.to_str().encode())


@functools.lru_cache(maxsize=1)
def _backend(staging: Staging) -> Tokenizer:
    from tokenizers import Tokenizer

    with staging.open_input(_BACKEND_FILE) as source:
        backend = Tokenizer.from_str(source.read().decode())
    backend.encode_special_tokens = True  # "<s>" in a text is text
    return backend


def shuffled(packed: Packed, seed: int) -> Packed:
    """The blocks of a shard in a pseudo-random order: those of one long document do not follow each other."""
    numbers = np.arange(len(packed.segments), dtype=np.uint64)
    return packed.take(np.argsort(mix(mix(numbers + np.uint64(1)) + np.uint64(seed)), kind="stable"))


@dataclass(frozen=True)
class SumCounts:
    """Adds up the token counts of some shards (an item is `{"number": n, "names": [...]}`)."""

    staging: Staging

    def __call__(self, item: Item) -> dict[str, Any]:
        """Write the sum."""
        with self.staging.open_output(f"sums/{item['number']:06d}.i8") as sink:
            sink.write(_total(self.staging, [f"counts/{name}.i8" for name in item["names"]]).tobytes())
        return {}


def _total(staging: Staging, names: Sequence[str]) -> NDArray[np.int64]:
    total: NDArray[np.int64] | None = None
    for name in names:
        with staging.open_input(name) as source:
            counts = np.frombuffer(source.read(), dtype="<i8").astype(np.int64)
        total = counts if total is None else total + counts
    return np.empty(0, dtype=np.int64) if total is None else total


def group_shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """Pieces of work: neighbouring shards that together are no larger than the largest one.

    Args:
        sizes: bytes of each shard, by name.
    """
    most, groups, size = max(sizes.values(), default=0), list[list[str]](), 0
    for name, share in sizes.items():
        if not groups or size + share > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += share
    return groups


def _link(staging: Staging, target: str, name: str) -> bool:
    """Put a finished shard into the artifact without a copy, where the file system has hard links."""
    source, sink = join(staging.uri, f"blocks/{name}"), join(target, name)
    if "://" in source + sink:
        return False
    Path(sink).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, sink)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class CopyShard:
    """Moves a finished shard into the artifact (an item is `{"name": shard}`)."""

    staging: Staging
    target: str

    def __call__(self, item: Item) -> dict[str, Any]:
        """Copy."""
        fs, path = filesystem(join(self.target, item["name"]))
        fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self.staging.open_input(f"blocks/{item['name']}") as source, fs.open_output_stream(path) as sink:
            while chunk := source.read(1 << 22):
                sink.write(chunk)
        return {}


def make_blocks(
    config: BlocksConfig,
    documents: Artifact,
    tokenizer: Artifact,
    store: ArtifactStore,
    report: Report,
    *,
    execute: Execute | None = None,
) -> Artifact:
    """Tokenise and pack the documents, or find the blocks if they are made already.

    Returns:
        For every split `<split>/part-00000.parquet` ... (columns: `SCHEMA`), `index.json` (rows of each shard),
        `tokens.parquet` (how often each token occurs in the training split) and `stats.json`.

    Raises:
        DataError: a split makes no block.
        ConfigError: the tokenizer cannot be used.
        ArtifactError: a shard of the documents is damaged.
    """
    settings = {"blocks": config.model_dump(mode="json")}
    parents = {"documents": documents.digest, "tokenizer": tokenizer.digest}
    key = store.key(STAGE, settings, parents)

    def build(draft: Draft) -> None:
        loaded = load_tokenizer(tokenizer.local(), eos_pads=True)
        staging = Staging(store.work_uri(STAGE, key))
        pack = PackShard(documents, config, staging, Marks(loaded, config.start), vocabulary_size(loaded))
        _hand_out(loaded, staging)
        names = {split: _shards(documents, split) for split in SPLITS}
        every = [name for some in names.values() for name in some]
        run = _Runner(execute or run_on_ray, report)
        items = [{"names": group} for group in group_shards({n: documents.manifest.files[n].bytes for n in every})]
        made = run("tokenise and pack", pack, items)
        results = dict(zip(every, (shard for result in made for shard in result["shards"]), strict=True))
        unlinked = [{"name": name} for name in every if not _link(staging, draft.uri, name)]
        if unlinked:
            run("copy", CopyShard(staging, draft.uri), unlinked)
        counts = {split: _counts(staging, split, some, run) for split, some in names.items()}
        _describe(draft, config, loaded, names, results, counts)

    try:
        return store.make(STAGE, settings, parents, build)
    except OSError as error:
        raise write_error(error) from None


@dataclass(frozen=True)
class _Runner:
    execute: Execute
    report: Report

    def __call__(self, what: str, step: Any, items: Sequence[Item]) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}
        started = said = time.monotonic()
        for index, result in self.execute(step, items):
            results[index] = result
            now = time.monotonic()
            if now - said >= 1 or len(results) == len(items):
                said = now
                left = int((now - started) / len(results) * (len(items) - len(results)))
                tokens = sum(result.get("tokens", 0) for result in results.values())
                pace = f", {tokens:,} tokens ({tokens / (now - started):,.0f}/s)" if tokens else ""
                clock = f", {left // 60}:{left % 60:02d} left" if left else ""
                self.report(f"{what}: {len(results)} of {len(items)} parts{pace}{clock}")
        return [results[index] for index in range(len(items))]


def _shards(documents: Artifact, split: str) -> list[str]:
    names = sorted(name for name in documents.manifest.files if name.startswith(f"{split}/"))
    if not names:
        raise ArtifactError("these are no documents", field="artifact", value=documents.uri)
    return names


def _counts(staging: Staging, split: str, names: list[str], run: _Runner) -> NDArray[np.int64]:
    groups = [names[at : at + _SUMS] for at in range(0, len(names), _SUMS)]
    if len(groups) == 1:
        return _total(staging, [f"counts/{name}.i8" for name in names])
    # One sum per group, then the sums: no process reads the counts of all shards.
    offset = 0 if split == SPLITS[0] else 1 << 20
    items = [{"number": offset + number, "names": group} for number, group in enumerate(groups)]
    run(f"count tokens of {split}", SumCounts(staging), items)
    return _total(staging, [f"sums/{item['number']:06d}.i8" for item in items])


def _describe(
    draft: Draft,
    config: BlocksConfig,
    loaded: PreTrainedTokenizerBase,
    names: dict[str, list[str]],
    results: dict[str, dict[str, Any]],
    counts: dict[str, NDArray[np.int64]],
) -> None:
    rows = {split: [results[name]["blocks"] for name in some] for split, some in names.items()}
    splits = {}
    for split, some in names.items():
        splits[split] = {kind: sum(results[name][kind] for name in some) for kind in next(iter(results.values()))}
        if not splits[split]["blocks"]:
            raise DataError(f"the {split} split makes no block", field="blocks.length", value=config.length)
    size, used = vocabulary_size(loaded), np.array(sorted(loaded.get_vocab().values()))
    ordinary = np.zeros(size, dtype=bool)
    ordinary[used] = True  # an id in a gap names no token
    ordinary[loaded.all_special_ids] = False
    train, held_out = counts["train"], counts["validation"]
    unknown = int(train[loaded.unk_token_id]) if loaded.unk_token_id is not None else 0
    stats = {
        "length": config.length,
        "vocabulary": len(loaded),
        "splits": splits,
        "bytes_per_token": round(splits["train"]["bytes"] / max(1, int(train[ordinary].sum())), 4),
        "unknown_share": round(unknown / max(1, int(train.sum())), 8),
        "vocabulary_used": round(float((train[ordinary] > 0).mean()), 6),
        "padding_share": round(
            _padding(config.length, splits["train"], starts=Marks(loaded, config.start).start is not None), 6
        ),
        "unigram_loss": round(unigram_loss((train * ordinary)[used], (held_out * ordinary)[used]), 6),
    }
    index = {"length": config.length, "group_rows": GROUP_ROWS, "names": names, "rows": rows}
    (draft.path / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    (draft.path / STATS_FILE).write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    tokens = loaded.convert_ids_to_tokens(list(range(size)))
    columns = [pa.array(np.arange(size)), pa.array(tokens, pa.string()), pa.array(train)]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "token", "count"]), draft.path / TOKENS_FILE)
    draft.summary |= stats


def _padding(length: int, split: dict[str, int], *, starts: bool) -> float:
    """Share of the places of a split's blocks that hold nothing; `starts`: each block has a token at its start."""
    return 1 - (split["tokens"] + starts * split["blocks"]) / (split["blocks"] * length)


def unigram_loss(train: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
    """Cross entropy in nats per token of held-out counts under the training counts, one added to each.

    What a model reaches that knows how frequent each token is and nothing else; the least that pretraining must beat.
    """
    share = (train + 1) / (train.sum() + len(train))
    return float(-(held_out * np.log(share)).sum() / max(1, held_out.sum()))
