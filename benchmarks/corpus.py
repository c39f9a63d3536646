"""The stage `blocks` against raw `tokenizers` and `datasets.map`, and the memory of `documents` and `blocks`.

    python -m venv build/peer && build/peer/bin/pip install datasets transformers
    python benchmarks/corpus.py --source 'runs/prose/data/**/documents.jsonl.zst' --mb 128 \\
      --peer-python build/peer/bin/python --out corpus.json

Speed: every contender runs in a process tree of its own, one after the other in each round (A B C, A B C, ...), so that
a slow minute of the machine hits all of them; reported are medians over the rounds, and ratios within each round. All
tokenise the same documents with the same tokenizer on all CPUs. What is timed:

    blocks        the whole stage on a Ray cluster that is up and has run a small corpus before: read and verify the
                  documents, tokenise, pack, write, describe
    encode_batch  `Tokenizer.encode_batch` of all texts, 10,000 at a time, which are in memory; nothing is kept
    datasets_map  `Dataset.map(batched=True, num_proc=CPUS)` of Hugging Face over the documents as memory-mapped Arrow
                  files, written to its cache; twice, as in the library's examples: to tokenise, and to concatenate and
                  cut. (No attention masks and labels, unlike there.)
    datasets_one_map  the same in a single pass, by one function that calls `encode_batch`

Memory: proportional set size (PSS) of the driver, Ray's processes and the workers together, sampled while the stages
run on growing corpora, each size in a fresh cluster. Shared memory (Ray's object store) is reported apart.

Text is that of --source, or, with --mb, as much as wanted of documents out of its sentences, drawn at random. Without
--source the sentences are made up, of random words with frequencies by Zipf's law.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

CONTENDERS = ("blocks", "encode_batch", "datasets_map", "datasets_one_map")
_PEER = [name for name in CONTENDERS if name.startswith("datasets")]
_PEER_MODULES = ("datasets", "tokenizers", "transformers")
TARGETS = {"encode_batch": 0.85, "datasets_map": 1.5}
"""Least ratio of the tokens per second of `blocks` to those of others."""

_ENCODE_ROWS = 10_000
_FILE_BYTES = 8 << 20
_WARM_UP_BYTES = 1 << 20
_SAMPLE_S = 0.1
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


# Text


def read_sentences(source: Sequence[str]) -> list[str]:
    """The sentences of the documents, roughly."""
    from lspm_ray.corpus.read import Row, read_unit
    from lspm_ray.corpus.sources import Layout, resolve
    from lspm_ray.documents.config import DocumentsConfig

    config = DocumentsConfig.parse({"source": list(source)})
    rows = itertools.chain.from_iterable(read_unit(unit, config) for unit in Layout().units(resolve(config)))
    texts = (row.text for row in rows if isinstance(row, Row) and row.text)
    return [sentence for text in texts for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of made-up words; the n-th most frequent word has a share proportional to 1/n."""
    chance = random.Random(seed)
    syllables = [a + b for a in "bdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "ist", "or")]
    words = ["".join(chance.choices(syllables, k=chance.choice((1, 2, 2, 3, 3, 4)))) for _ in range(50_000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    return [
        " ".join(chance.choices(words, cum_weights=weights, k=chance.randint(4, 30))).capitalize() + "."
        for _ in range(count)
    ]


def make_documents(sentences: Sequence[str], size: int, seed: int) -> Iterator[str]:
    """Documents of random sentences, `size` bytes in all; half of them have over 1,200 characters."""
    chance, made = random.Random(seed), 0
    while made < size:
        wanted, parts, length = chance.lognormvariate(math.log(1200), 1.0), list[str](), 0
        while length < wanted:
            parts.append(chance.choice(sentences))
            length += len(parts[-1]) + 1
        text = " ".join(parts)
        made += len(text.encode())
        yield text


def write_text(sentences: Sequence[str], size: int, folder: Path, seed: int = 0) -> str:
    """About `size` bytes of documents as JSON Lines; returns the glob of the files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = max(1, round(size / _FILE_BYTES))
    for part in range(parts):
        with (folder / f"{part:04d}.jsonl").open("w", encoding="utf-8") as out:
            for text in make_documents(sentences, size // parts, seed * 100_003 + part):
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return f"{folder}/*.jsonl"


# Processes and their memory


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the tree, and of children that have ended."""
    ticks = 0
    for pid in tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def proportional(rollup: str) -> tuple[int, int]:
    """KiB of private and file-backed memory, and of shared memory, in the text of a smaps_rollup file."""
    values = {name: int(kib) for name, kib in re.findall(r"^(Pss\w*):\s+(\d+)", rollup, re.MULTILINE)}
    return values["Pss"] - values.get("Pss_Shmem", 0), values.get("Pss_Shmem", 0)


def memory_mb(root: int) -> tuple[float, float]:
    """Memory of a process tree: without shared memory, and shared memory."""
    own = shared = 0
    for pid in tree(root):
        try:
            found = proportional(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except (OSError, KeyError):  # it has ended
            continue
        own, shared = own + found[0], shared + found[1]
    return own / 1024, shared / 1024


class Sampler(threading.Thread):
    """Peaks of memory of a process tree, by the phase that it is in."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = root, threading.Event()
        self.phase = "start"
        self.peaks: dict[str, tuple[float, float]] = {}

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            phase, (own, shared) = self.phase, memory_mb(self._root)
            before = self.peaks.get(phase, (0.0, 0.0))
            self.peaks[phase] = max(before[0], own), max(before[1], shared)

    def end(self) -> dict[str, tuple[float, float]]:
        self._ended.set()
        self.join()
        return self.peaks


def run_child(
    name: str, job: dict[str, Any], options: argparse.Namespace, python: str = sys.executable, *, watched: bool = False
) -> dict[str, Any]:
    """Run a part of this file in a process of its own.

    Args:
        watched: sample its memory; adds `peaks` to what it found.
    """
    log = Path(options.work) / f"{name}.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAYON_NUM_THREADS": str(options.threads), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [python, __file__, "--child", name, "--job", json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )
        sampler = Sampler(process.pid)
        if watched:
            sampler.start()
        found: dict[str, Any] | None = None
        assert process.stdout
        for line in process.stdout:
            if line.startswith("PHASE "):
                sampler.phase = line.split()[1]
            elif line.startswith("FOUND "):
                found = json.loads(line.removeprefix("FOUND "))
        process.wait()
    if found is None:
        raise SystemExit(f"{name} failed: see {log}")
    return found | ({"peaks": sampler.end()} if watched else {})


# What runs in children


def child_prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Documents and a tokenizer; the stage `documents` is timed on a cluster that has done a small corpus before."""
    from lspm_ray.artifact import ArtifactStore
    from lspm_ray.cluster import ClusterConfig, connect
    from lspm_ray.documents.tokenizer import make_tokenizer
    from lspm_ray.documents.tokenizer_config import TokenizerConfig

    store = ArtifactStore(job["store"])
    with connect(ClusterConfig(num_cpus=job["threads"])):
        small = _collect(job["small"], store)
        found = _timed(lambda: _collect(job["source"], store))
        documents = found.pop("result")
        config = TokenizerConfig.parse({"algorithm": job["algorithm"], "vocab_size": job["vocabulary"]})
        tokenizer = make_tokenizer(config, documents, store, _quiet)
    summary = documents.manifest.summary
    splits = summary["splits"].values()
    return found | {
        "small": small.uri,
        "documents": documents.uri,
        "tokenizer": tokenizer.uri,
        "read": summary["documents_read"],
        "characters_read": summary["characters_read"],
        "kept": sum(split["documents"] for split in splits),
        "kept_bytes": sum(split["bytes"] for split in splits),
    }


def child_blocks(job: dict[str, Any]) -> dict[str, Any]:
    from lspm_ray.cluster import ClusterConfig, connect

    with connect(ClusterConfig(num_cpus=job["threads"])):
        first = _timed(lambda: _pack(job | {"documents": job["small"]}, "small"))
        found = _timed(lambda: _pack(job, "blocks"))
    return found | {"tokens": found.pop("result"), "small_corpus_first_s": first["seconds"]}


def child_encode_batch(job: dict[str, Any]) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = _tokenizer(job)
    texts = [text for name in _shards(job) for text in _texts(name)]
    tokenizer.encode_batch(texts[:_ENCODE_ROWS], add_special_tokens=False)

    def encode() -> int:
        batches = (texts[at : at + _ENCODE_ROWS] for at in range(0, len(texts), _ENCODE_ROWS))
        return sum(len(one) for batch in batches for one in tokenizer.encode_batch(batch, add_special_tokens=False))

    found = _timed(encode)
    return found | {"tokens": found.pop("result") + len(texts)}  # every document gets a token at its end


def child_datasets_map(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the Python of the peer, which has neither this package nor Ray."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"], local_files_only=True)
    start, end, length = job["start"], job["end"], job["length"] - 1

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        rows = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*row, end] for row in rows]}

    def group(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        return {"input_ids": _cut(list(itertools.chain.from_iterable(batch["input_ids"])), start, length)}

    return _map(job, [tokenize, group])


def child_datasets_one_map(job: dict[str, Any]) -> dict[str, Any]:
    """Likewise."""
    tokenizer = _tokenizer(job)
    start, end, length = job["start"], job["end"], job["length"] - 1

    def pack(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        ids: list[int] = []
        for one in tokenizer.encode_batch(batch["text"], add_special_tokens=False):
            ids += one.ids
            ids.append(end)
        return {"input_ids": _cut(ids, start, length)}

    return _map(job, [pack])


def _cut(ids: list[int], start: int, length: int) -> list[list[int]]:
    """Blocks; what is left over of each batch is dropped, as in the library's examples."""
    return [[start, *ids[at : at + length]] for at in range(0, len(ids) - length + 1, length)]


def _map(job: dict[str, Any], functions: Sequence[Callable[..., Any]]) -> dict[str, Any]:
    """Apply functions one after the other, each to batches of the library's default size."""
    from datasets import Dataset

    work = Path(job["work"])
    shutil.rmtree(work, ignore_errors=True)
    source = Dataset.from_parquet([str(name) for name in _shards(job)], cache_dir=str(work / "in"), columns=["text"])

    def run() -> Any:
        made = source
        for number, function in enumerate(functions):
            made = made.map(
                function,
                batched=True,
                num_proc=job["threads"],
                remove_columns=made.column_names,
                cache_file_name=str(work / f"out-{number}.arrow"),
                load_from_cache_file=False,
            )
        return made

    found = _timed(run)
    tokens = len(found.pop("result")) * (job["length"] - 1)
    shutil.rmtree(work)
    return found | {"tokens": tokens}


def _tokenizer(job: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{job['tokenizer']}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def child_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Both stages in one cluster; says which one is running."""
    from lspm_ray.artifact import ArtifactStore
    from lspm_ray.cluster import ClusterConfig, connect

    with connect(ClusterConfig(num_cpus=job["threads"])):
        print("PHASE documents", flush=True)
        documents = _timed(lambda: _collect(job["source"], ArtifactStore(job["work"])))
        made = documents.pop("result")
        print("PHASE blocks", flush=True)
        blocks = _timed(lambda: _pack(job | {"documents": made.uri}, "blocks"))
        print("PHASE end", flush=True)
    kept = sum(split["bytes"] for split in made.manifest.summary["splits"].values())
    return {"documents": documents, "blocks": blocks, "kept_bytes": kept}


def _collect(source: str | list[str], store: Any) -> Any:
    from lspm_ray.documents.collect import collect_documents
    from lspm_ray.documents.config import DocumentsConfig

    return collect_documents(DocumentsConfig.parse({"source": source}), store, _quiet)


def _pack(job: dict[str, Any], name: str) -> int:
    """The stage `blocks` into a fresh store; returns the tokens."""
    from lspm_ray.artifact import ArtifactStore, open_artifact
    from lspm_ray.documents.blocks import make_blocks
    from lspm_ray.documents.blocks_config import BlocksConfig

    root = Path(job["work"]) / name
    shutil.rmtree(root, ignore_errors=True)
    documents, tokenizer = open_artifact(job["documents"]), open_artifact(job["tokenizer"])
    config = BlocksConfig.parse({"length": job["length"]})
    made = make_blocks(config, documents, tokenizer, ArtifactStore(str(root)), _quiet)
    tokens = sum(split["tokens"] for split in made.manifest.summary["splits"].values())
    shutil.rmtree(root)
    return tokens


def _quiet(line: str) -> None:
    print(line, file=sys.stderr)


def _shards(job: dict[str, Any]) -> list[Path]:
    return sorted(Path(job["documents"]).glob("*/*.parquet"))


def _texts(name: Path) -> list[str]:
    import pyarrow.parquet as pq

    texts: list[str] = pq.read_table(name, columns=["text"])["text"].to_pylist()
    return texts


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    cpu, started = cpu_seconds(os.getpid()), time.perf_counter()
    result = work()
    return {
        "result": result,
        "seconds": time.perf_counter() - started,
        "cpu_s": round(cpu_seconds(os.getpid()) - cpu, 2),
    }


CHILDREN = {
    "prepare": child_prepare,
    "blocks": child_blocks,
    "encode_batch": child_encode_batch,
    "datasets_map": child_datasets_map,
    "datasets_one_map": child_datasets_one_map,
    "memory": child_memory,
}


# The measurement


def summarise(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians of tokens per second, and of the ratios within each round."""
    rates = {name: [one[name]["tokens"] / one[name]["seconds"] for one in rounds] for name in rounds[0]}
    found: dict[str, Any] = {
        "tokens_per_s": {name: round(median(values)) for name, values in rates.items()},
        "tokens_per_cpu_s": {
            name: round(median(one[name]["tokens"] / one[name]["cpu_s"] for one in rounds)) for name in rates
        },
        "tokens_per_s_all_rounds": {name: [round(value) for value in values] for name, values in rates.items()},
        "ratio": {},
    }
    for other in list(rates)[1:]:
        ratios = [mine / theirs for mine, theirs in zip(rates["blocks"], rates[other], strict=True)]
        found["ratio"][f"blocks / {other}"] = {
            "median": round(median(ratios), 3),
            "all_rounds": [round(ratio, 3) for ratio in ratios],
            "target": TARGETS.get(other),
        }
    return found


def flatness(sizes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Peak memory with the most text over that with the least, by stage."""
    first, last = sizes[0], sizes[-1]
    ratio = {name: round(last["peak_mb"][name] / first["peak_mb"][name], 3) for name in first["peak_mb"]}
    return {"text": round(last["text_mb"] / first["text_mb"], 1), **ratio}


def measure_speed(options: argparse.Namespace, sentences: Sequence[str]) -> dict[str, Any]:
    work = Path(options.work)
    source: str | list[str] = options.source
    if options.mb:
        source = write_text(sentences, options.mb << 20, work / "text")
    small = write_text(sentences, _WARM_UP_BYTES, work / "small", seed=1)
    shutil.rmtree(work / "store", ignore_errors=True)
    job = {"store": str(work / "store"), "source": source, "small": small, "threads": options.threads}
    made = run_child("prepare", job | {"algorithm": options.algorithm, "vocabulary": options.vocabulary}, options)
    job = {name: made[name] for name in ("documents", "small", "tokenizer")}
    job |= {"threads": options.threads, "length": options.length, "work": str(work / "round")} | _marks(
        job["tokenizer"]
    )
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for name in options.contenders:
            python = options.peer_python if name in _PEER else sys.executable
            rounds[-1][name] = run_child(name, job, options, python)
            rate = rounds[-1][name]["tokens"] / rounds[-1][name]["seconds"]
            _quiet(f"round {number + 1}/{options.rounds}: {name}: {rate:,.0f} tokens/s, {rounds[-1][name]}")
    megabytes = made["kept_bytes"] / 1e6
    return {
        "text_mb": round(megabytes, 1),
        "documents": made["kept"],
        "tokens": rounds[0]["blocks"]["tokens"],
        "tokenizer": made["tokenizer"],
        "documents_stage": {
            "read": made["read"],
            "seconds": round(made["seconds"], 2),
            "cpu_s": made["cpu_s"],
            "documents_per_s": round(made["read"] / made["seconds"]),
            "mb_per_s": round(made["characters_read"] / 1e6 / made["seconds"], 2),
        },
        **summarise(rounds),
        "rounds": rounds,
    }


def _marks(tokenizer: str) -> dict[str, int]:
    """What the peer puts at the start of blocks and the end of documents: the same as the stage does."""
    from lspm_ray.documents.blocks import Marks
    from lspm_ray.models.directory import load_tokenizer

    marks = Marks(load_tokenizer(Path(tokenizer)), True)
    return {"start": int(marks.start or 0), "end": marks.end}


def measure_memory(options: argparse.Namespace, sentences: Sequence[str], tokenizer: str) -> dict[str, Any]:
    work, sizes = Path(options.work), []
    for factor in options.factors:
        size = options.memory_mb * factor
        source = write_text(sentences, size << 20, work / "text", seed=2)
        shutil.rmtree(work / "memory", ignore_errors=True)
        job = {"source": source, "work": str(work / "memory"), "tokenizer": tokenizer, "length": options.length}
        found = run_child("memory", job | {"threads": options.threads}, options, watched=True)
        stages = ("documents", "blocks")
        sizes.append(
            {
                "text_mb": size,
                "kept_mb": round(found["kept_bytes"] / 2**20, 1),
                "idle_mb": round(found["peaks"]["start"][0]),
                "peak_mb": {name: round(found["peaks"][name][0]) for name in stages},
                "object_store_mb": {name: round(found["peaks"][name][1], 1) for name in stages},
                "seconds": {name: round(found[name]["seconds"], 1) for name in stages},
            }
        )
        _quiet(f"{size} MiB: {json.dumps(sizes[-1])}")
    return {"sizes": sizes, "largest_over_smallest": flatness(sizes)}


def has_peer(python: str) -> bool:
    """Whether a Python can import what the peer needs."""
    code = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {_PEER_MODULES!r})))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def main() -> None:
    options = arguments()
    if options.child:
        print("FOUND " + json.dumps(CHILDREN[options.child](json.loads(options.job))), flush=True)
        return
    from lspm_ray.artifact import hardware

    options.contenders = [name for name in CONTENDERS if name not in _PEER or has_peer(options.peer_python)]
    if len(options.contenders) < len(CONTENDERS):
        _quiet(f"{', '.join(_PEER)} left out: --peer-python must be able to import {', '.join(_PEER_MODULES)}")
    options.work = str(Path(options.work).absolute())
    Path(options.work).mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    sentences = read_sentences(options.source) if options.source else make_sentences(200_000)
    speed = measure_speed(options, sentences)
    tokenizer = speed.pop("tokenizer")
    document: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/corpus.py", *sys.argv[1:]]),
        "design": __doc__,
        "hardware": hardware(),
        "load_before": round(load, 2),
        "settings": {name: getattr(options, name) for name in ("threads", "algorithm", "vocabulary", "length")},
        "speed": speed,
    }
    if options.memory_mb:
        document["memory"] = measure_memory(options, sentences, tokenizer)
    text = json.dumps(document, indent=1)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for pair, ratio in speed["ratio"].items():
        _quiet(f"{pair}: {ratio['median']} (target {ratio['target']})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", help="files, directories or globs of text; default: made-up text")
    parser.add_argument("--mb", type=int, help="MiB of text for the speed; default: --source as it is, else 64")
    parser.add_argument("--memory-mb", type=int, default=8, help="MiB of text for the memory, times --factors; 0: none")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPUs to use")
    parser.add_argument("--algorithm", choices=["bpe", "wordpiece", "unigram"], default="bpe")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--peer-python", help="a Python that has the library datasets; default: this one")
    parser.add_argument("--work", default="build/benchmark-corpus", help="directory for text, artifacts and logs")
    parser.add_argument("--out", help="JSON file; standard output without it")
    for hidden in ("--child", "--job"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.source and not options.mb:
        options.mb = 64
    options.peer_python = options.peer_python or sys.executable
    return options


if __name__ == "__main__":
    main()
