"""The pretraining loop against a bare loop of torch, with one and with two workers.

    python benchmarks/training.py --out training.json
    python benchmarks/training.py --device cuda --no-ray --out training.json    # one GPU: size large, length 1024, bf16

Every contender runs in a process tree of its own, one after the other in each round (A B C D, A B C D, ...), so that a
slow minute of the machine hits all of them; reported are medians over the rounds, and ratios within each round.

    ours    `pretrain_model` on workers of Ray Train: reads blocks from Parquet, corrupts, trains, logs, validates, and
            writes checkpoints. With --no-ray it runs in the process itself, with one worker.
    bare    forward, backward, clip, AdamW over batches that are in memory already; several workers by
            `torch.multiprocessing` and DistributedDataParallel. Nothing else.
    bare_keeping    the same with the settings of malloc that workers of Ray Train get from us, on CPUs.

All have the same model (gpt2 preset), the same batches, precision, optimiser and number of threads, and the same way
of adding up micro-batches. The first steps are left out on both sides, as are validation and, in the ratio, the time
that a checkpoint stops training, of which there is one in the steps that count; writing it in the background is in. How
long it stops training, and how long training waits for data, is what the loop's own history says.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TARGETS = {"throughput": 0.97, "data_wait_share": 0.02}
"""Least ratio of the tokens per second; most of the time that training may wait for data."""

_CHECKPOINT_EVERY = 100
"""Steps between checkpoints by default: what their share is reported for."""

_TEXT_BYTES = 8 << 20
_DOCUMENT_BYTES = 4 << 10


# Data


def make_data(work: Path, length: int, vocabulary: int) -> dict[str, str]:
    """Blocks and their tokenizer out of random words, by the stages that make them; returns their URIs."""
    import numpy as np

    from lspm_ray.artifact import ArtifactStore
    from lspm_ray.corpus.execute import run_serially
    from lspm_ray.documents.blocks import make_blocks
    from lspm_ray.documents.blocks_config import BlocksConfig
    from lspm_ray.documents.collect import collect_documents
    from lspm_ray.documents.config import DocumentsConfig
    from lspm_ray.documents.tokenizer import make_tokenizer
    from lspm_ray.documents.tokenizer_config import TokenizerConfig

    random = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "ist")])
    words = ["".join(random.choice(syllables, size=count)) for count in random.integers(1, 5, size=30_000)]
    shares = 1 / np.arange(1, len(words) + 1)
    source = work / "text.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    with source.open("w", encoding="utf-8") as out:
        for _ in range(_TEXT_BYTES // _DOCUMENT_BYTES):
            text = " ".join(random.choice(words, size=_DOCUMENT_BYTES // 6, p=shares / shares.sum()))
            out.write(json.dumps({"text": text}) + "\n")
    store, how = ArtifactStore(str(work / "store")), {"report": _quiet, "execute": run_serially}
    documents = collect_documents(
        DocumentsConfig.parse({"source": str(source), "validation": 0.05}), store, _quiet, execute=run_serially
    )
    config = TokenizerConfig.parse({"algorithm": "bpe", "vocab_size": vocabulary})
    tokenizer = make_tokenizer(config, documents, store, **how)
    blocks = make_blocks(BlocksConfig.parse({"length": length}), documents, tokenizer, store, **how)
    return {"blocks": blocks.uri, "tokenizer": tokenizer.uri}


def settings(options: argparse.Namespace, workers: int) -> dict[str, Any]:
    """The section `pretrain`, of both contenders."""
    return {
        "objective": "causal_lm",
        "model": {"architecture": "gpt2", "size": options.size},
        "steps": options.warmup + options.steps,
        "batch_size": options.batch_size,
        "micro_batch_size": options.micro_batch_size,
        "precision": options.precision,
        # The first entry of the history ends where the steps that count begin.
        "validate_every_steps": options.warmup,
        "validation_blocks": 2 * workers,
        # Once among the steps that count, and not right after a validation: the clock stands still there.
        "checkpoint_every_steps": options.warmup + options.steps // 2 + 1,
        "workers": {"num_workers": workers, "use_gpu": options.device == "cuda"},
    }


# Ours


def child_ours(job: dict[str, Any]) -> dict[str, Any]:
    """The loop; returns its history."""
    if job["no_ray"]:
        return {"history": _in_process(job)}
    from lspm_ray.artifact import ArtifactStore, open_artifact
    from lspm_ray.cluster import ClusterConfig, connect
    from lspm_ray.training.pretrain import HISTORY_FILE, pretrain
    from lspm_ray.training.pretrain_config import PretrainConfig

    blocks, tokenizer = open_artifact(job["blocks"]), open_artifact(job["tokenizer"])
    config = PretrainConfig.parse(job["settings"])
    with connect(ClusterConfig()):
        made = pretrain(config, blocks, tokenizer, None, ArtifactStore(job["work"]), _quiet)
    entries = zip(made.read_json(HISTORY_FILE), made.manifest.summary["timings"], strict=True)
    return {"history": [entry | timing for entry, timing in entries]}


def _in_process(job: dict[str, Any]) -> list[dict[str, float]]:
    import torch

    from lspm_ray.training.pretrain_config import PretrainConfig
    from lspm_ray.training.pretrain_loop import PretrainJob, PretrainWorker, pretrain_model

    if job["device"] == "cpu":
        torch.set_num_threads(job["threads"])
    made = PretrainJob(
        blocks_uri=job["blocks"],
        tokenizer_uri=job["tokenizer"],
        base_uri=None,
        config=PretrainConfig.parse(job["settings"]),
        work_uri=f"{job['work']}/checkpoints",
        log_uri=f"{job['work']}/log",
    )
    return pretrain_model(
        made, PretrainWorker(0, 1, torch.device(job["device"]), lambda tensor: None, lambda values: None)
    )


def counted(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """What the history says of the steps after its first entry.

    Returns:
        tokens, seconds, stalled_s (of these, in which a checkpoint stopped training) and waited_s (for data); mfu, over
        all of these seconds.
    """
    first, last = history[0], history[-1]
    found = {"tokens": last["tokens"] - first["tokens"], "seconds": last["seconds"] - first["seconds"]}
    spans = [(after, after["seconds"] - before["seconds"]) for before, after in pairwise(history)]
    for name, share in (("stalled_s", "checkpoint_share"), ("waited_s", "data_wait_share")):
        found[name] = sum(entry[share] * seconds for entry, seconds in spans)
    found["mfu"] = sum(entry["mfu"] * seconds for entry, seconds in spans) / found["seconds"]
    return found


# Bare


def child_bare(job: dict[str, Any]) -> dict[str, Any]:
    """The bare loop on `workers` processes; the first one's clock counts."""
    import torch.multiprocessing as mp

    result = Path(job["work"]) / "bare.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    if job["workers"] == 1:
        _bare(0, job, str(result))
    else:
        job["port"] = _free_port()
        mp.spawn(_bare, args=(job, str(result)), nprocs=job["workers"])
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def _bare(rank: int, job: dict[str, Any], result: str) -> None:
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    config, world, cuda = job["settings"], job["workers"], job["device"] == "cuda"
    device = torch.device(job["device"], rank) if cuda else torch.device("cpu")
    if not cuda:
        torch.set_num_threads(job["threads"])
    if world > 1:
        address = f"tcp://127.0.0.1:{job['port']}"
        dist.init_process_group("nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=world)
    model = _model(job).to(device)
    steps = _batches(job, rank, device)
    groups = [[p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        lr=5e-4,
        betas=(0.9, 0.98),
        fused=True,
    )
    network: Any = model
    if world > 1:
        network = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if cuda else None, gradient_as_bucket_view=True
        )
    if cuda:
        network = torch.compile(network)
    half, positions = config["precision"] == "bf16", job["length"] - 1
    targets = config["batch_size"] * positions / world
    started = 0.0
    for number, micros in enumerate(steps):
        if number == job["warmup"]:
            _wait(cuda)
            started = time.perf_counter()
        for place, (ids, labels) in enumerate(micros):
            last = place + 1 == len(micros)
            with nullcontext() if last or world == 1 else network.no_sync():
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = network(input_ids=ids, use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
                (loss / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(cuda)
    seconds = time.perf_counter() - started
    if rank == 0:
        tokens = (len(steps) - job["warmup"]) * config["batch_size"] * job["length"]
        Path(result).write_text(json.dumps({"tokens": tokens, "seconds": seconds}))
    if world > 1:
        dist.destroy_process_group()


def _wait(cuda: bool) -> None:
    import torch

    if cuda:
        torch.cuda.synchronize()


def _model(job: dict[str, Any]) -> Any:
    from lspm_ray.artifact import open_artifact
    from lspm_ray.models.directory import load_tokenizer
    from lspm_ray.models.presets import build_config, build_model
    from lspm_ray.training.objective import Vocabulary

    vocabulary = Vocabulary.of(load_tokenizer(open_artifact(job["tokenizer"]).local()))
    size, length = job["settings"]["model"]["size"], job["length"]
    config = build_config("gpt2", size, vocab_size=vocabulary.size, length=length, ids=vocabulary.ids)
    return build_model("AutoModelForCausalLM", config, 0)


def _batches(job: dict[str, Any], rank: int, device: Any) -> list[list[tuple[Any, Any]]]:
    """Token ids, and the next ones, of every micro-batch of every step of a worker: those that the loop sees."""
    import torch

    from lspm_ray.artifact import open_artifact
    from lspm_ray.training.sampler import Blocks, Share, steps_from

    config = job["settings"]
    blocks = Blocks(open_artifact(job["blocks"]), "train")
    share = Share(config["batch_size"], rank, job["workers"])
    found = steps_from(blocks, 0, share, epoch=0, first=0, epochs=1 << 10)
    made = []
    for step, _ in zip(found, range(config["steps"]), strict=False):
        ids = torch.from_numpy(step.rows.input_ids).to(device)
        following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        made.append(list(zip(*(part.split(config["micro_batch_size"]) for part in (ids, following)), strict=True)))
    return made


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _quiet(line: str) -> None:
    print(line, file=sys.stderr)


# The measurement

CHILDREN = {"ours": child_ours, "bare": child_bare, "bare_keeping": child_bare}


def run_child(name: str, job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(job["work"], ignore_errors=True)
    log = Path(options.work) / f"{name}-{job['workers']}.log"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    if name == "bare_keeping":
        from lspm_ray.training.trainer import KEEP_MEMORY

        kept |= KEEP_MEMORY
    command = [sys.executable, __file__, "--child", name, "--job", json.dumps(job)]
    with log.open("ab") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, env=kept, check=False, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        raise SystemExit(f"{name} failed: see {log}")
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return counted(found["history"]) if name == "ours" else found


def summarise(rounds: Sequence[dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """Medians over the rounds, by number of workers."""
    found: dict[str, Any] = {}
    for workers in rounds[0]:
        ours = [one[workers]["ours"] for one in rounds]
        rates = {"ours": [run["tokens"] / (run["seconds"] - run["stalled_s"]) for run in ours]}
        for name in list(rounds[0][workers])[1:]:
            rates[name] = [one[workers][name]["tokens"] / one[workers][name]["seconds"] for one in rounds]
        tokens_per_checkpoint = _CHECKPOINT_EVERY * rounds[0][workers]["ours"]["tokens_per_step"]
        stall = median(run["stalled_s"] for run in ours)
        found[workers] = {
            "tokens_per_s": {name: round(median(values)) for name, values in rates.items()},
            "ratio": {f"ours / {name}": _ratio(rates["ours"], values) for name, values in list(rates.items())[1:]},
            "data_wait_share": round(median(run["waited_s"] / run["seconds"] for run in ours), 5),
            "checkpoint_stall_s": round(stall, 3),
            f"checkpoint_share_every_{_CHECKPOINT_EVERY}_steps": round(
                stall / (stall + tokens_per_checkpoint / median(rates["ours"])), 5
            ),
            "mfu": round(median(run["mfu"] for run in ours), 4),
        }
    return found


def _ratio(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(ours, others, strict=True)]
    return {"median": round(median(ratios), 3), "all_rounds": [round(ratio, 3) for ratio in ratios]}


def main() -> None:
    options = arguments()
    if options.child:
        print("FOUND " + json.dumps(CHILDREN[options.child](json.loads(options.job))), flush=True)
        return
    from lspm_ray.artifact import hardware

    work = Path(options.work).absolute()
    options.work, load = str(work), os.getloadavg()[0]
    shutil.rmtree(work, ignore_errors=True)
    data = make_data(work / "data", options.length, options.vocabulary)
    rounds: list[dict[str, dict[str, dict[str, float]]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for workers in options.workers:
            # As many as the loop gives to each worker by itself.
            job = data | {"workers": workers, "threads": max(1, options.threads // workers)}
            job |= {name: getattr(options, name) for name in ("device", "no_ray", "length", "warmup")}
            job |= {"settings": settings(options, workers), "work": str(work / "round")}
            names = [name for name in CHILDREN if options.device == "cpu" or name != "bare_keeping"]
            runs = {name: run_child(name, job, options) for name in names}
            runs["ours"]["tokens_per_step"] = options.batch_size * options.length
            rounds[-1][str(workers)] = runs
            rates = {name: round(run["tokens"] / run["seconds"]) for name, run in runs.items()}
            _quiet(f"round {number + 1}/{options.rounds}, {workers} worker(s): {rates} tokens/s")
    summary = summarise(rounds)
    shown = ("device", "no_ray", "size", "length", "vocabulary", "batch_size", "micro_batch_size", "precision")
    document = {
        "command": " ".join(["python", "benchmarks/training.py", *sys.argv[1:]]),
        "design": __doc__,
        "hardware": hardware(),
        "load_before": round(load, 2),
        "settings": {name: getattr(options, name) for name in (*shown, "warmup", "steps", "threads")},
        "targets": TARGETS,
        "workers": summary,
        "rounds": rounds,
    }
    text = json.dumps(document, indent=1)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for workers, found in summary.items():
        _quiet(f"{workers} worker(s): {json.dumps(found)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-ray", action="store_true", help="ours in one process, without a cluster")
    parser.add_argument("--workers", type=int, nargs="+", help="default: 1 2; 1 on a GPU and without Ray")
    parser.add_argument("--size", help="of gpt2; default: mini, or large on a GPU")
    parser.add_argument("--length", type=int, help="tokens of a block; default: 256, or 1024 on a GPU")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=16, help="blocks per step")
    parser.add_argument("--micro-batch-size", type=int, default=8, help="blocks per forward pass")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: fp32, or bf16 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="that count")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them, that do not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPUs to use")
    parser.add_argument("--work", default="build/benchmark-training", help="directory for data, checkpoints and logs")
    parser.add_argument("--out", help="JSON file; standard output without it")
    for hidden in ("--child", "--job"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gpu = options.device == "cuda"
    options.size = options.size or ("large" if gpu else "mini")
    options.length = options.length or (1024 if gpu else 256)
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    options.workers = options.workers or ([1] if gpu or options.no_ray else [1, 2])
    if options.no_ray and options.workers != [1]:
        parser.error("--no-ray has one worker")
    if options.warmup < 2 or options.steps < 2 * options.warmup or options.steps % (2 * options.warmup):
        parser.error("--steps must be an even multiple of --warmup, which must be at least 2")
    return options


if __name__ == "__main__":
    main()
