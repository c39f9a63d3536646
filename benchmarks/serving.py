"""The cascade against the full model on plain Ray Serve, and against the bare model in a loop.

    python benchmarks/serving.py --run runs/demo --out serving.json

Every contender runs in a process tree of its own, with a Ray cluster of its own, one after the other in each round
(A B C ..., A B C ...), so that a slow minute of the machine hits all of them. Reported are medians over the rounds.
Two loads: closed (a number of connections, each sending its next text when the answer to the last one is there) for
throughput, and open (texts arrive at random at a given rate, answered or not) for latencies that can be compared.
CPU time is that of the contender's whole process tree, from /proc; the client's is reported apart.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lspm_ray.artifact import Artifact, ArtifactStore, hardware, open_artifact, open_beside
from lspm_ray.corpus.clean import normalize
from lspm_ray.corpus.shards import read_split
from lspm_ray.serving.bundle import load_bundle
from lspm_ray.serving.files import read_items, source_config

CONTENDERS = {
    "cascade": "the plan, as `lspm serve` deploys it",
    "full_plain": "the full model on Ray Serve as in a tutorial: FastAPI, @serve.batch, one replica, Ray's defaults",
    "full_tuned": "the same app with HAProxy, throughput settings and one replica per CPU",
    "last_tuned": "the same app with the plan's last model, which may be cheaper than full, in place of the full one",
    "full_loop": "the full model in one process, batches of 64, no server, all CPUs",
}
PLAIN_BATCH = 32
LOOP_BATCH = 64
_OPEN_CONNECTIONS = 128
_PATIENCE_S = 60.0
_LABEL = re.compile(rb'"label":\s*"((?:[^"\\]|\\.)*)"')


# The load


@dataclass
class Load:
    """What one run of the client saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    labels: dict[int, bytes] = field(default_factory=dict)
    client_cpu_s: float = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection: a bare HTTP client, because a full one costs more CPU time than some servers.

    Args:
        load: where answers are counted.
        idle: called when the connection may be used: after it was made, and after each answer.
    """

    def __init__(self, load: Load, idle: Callable[["Connection"], None]) -> None:
        self.load, self.idle = load, idle
        self.buffer = b""
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.idle(self)

    def ask(self, index: int, request: bytes, due: float) -> None:
        """Send a request whose latency counts from `due`, seconds on the clock of `time.perf_counter`."""
        self.index, self.start = index, due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        size = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        if len(rest) < size:
            return
        self.load.latencies_s.append(time.perf_counter() - self.start)
        status = int(head[9:12])
        self.load.statuses[status] += 1
        if status == 200 and (found := _LABEL.search(rest)):
            self.load.labels[self.index] = found[1]
        self.buffer = rest[size:]
        self.idle(self)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def closed_loop(port: int, texts: Sequence[str], connections: int, seconds: float) -> Load:
    """Each of some connections asks again as soon as it was answered: how much a contender can do."""
    requests = [http_request(text) for text in texts]
    load, order = Load(), itertools.cycle(range(len(requests)))
    cpu, start = time.process_time(), time.perf_counter()

    def idle(connection: Connection) -> None:
        if (now := time.perf_counter()) >= start + seconds:
            connection.transport.close()
        else:
            index = next(order)
            connection.ask(index, requests[index], now)

    while (left := start + seconds - time.perf_counter()) > 0:
        # A connection that the server closes is opened again.
        made = [await connect(port, load, idle) for _ in range(connections)]
        await asyncio.wait([connection.closed for connection in made], timeout=left + _PATIENCE_S)
    load.seconds = time.perf_counter() - start
    load.client_cpu_s = time.process_time() - cpu
    return load


async def open_loop(port: int, texts: Sequence[str], rate: float, seconds: float) -> Load:
    """Requests arrive at random times, `rate` per second on average, whether or not earlier ones were answered.

    Latency counts from the arrival, so that waiting for a slow server is not left out. What has no answer when the
    patience ends counts as status 0.
    """
    requests = [http_request(text) for text in texts]
    gaps = random.Random(0)
    load, free, waiting = Load(), list[Connection](), deque[tuple[int, float]]()
    all_answered = asyncio.Event()
    cpu, start, sent = time.process_time(), time.perf_counter(), 0

    def idle(connection: Connection) -> None:
        if waiting:
            index, due = waiting.popleft()
            connection.ask(index, requests[index], due)
        else:
            free.append(connection)
        if load.statuses.total() == sent:
            all_answered.set()

    made = [await connect(port, load, idle) for _ in range(_OPEN_CONNECTIONS)]
    due = start
    while (due := due + gaps.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        waiting.append((sent % len(requests), due))
        sent += 1
        all_answered.clear()
        if free:
            idle(free.pop())
    load.seconds = time.perf_counter() - start
    with suppress(TimeoutError):
        await asyncio.wait_for(all_answered.wait(), _PATIENCE_S)
    load.client_cpu_s = time.process_time() - cpu
    if missing := sent - load.statuses.total():
        load.statuses[0] = missing
    for connection in made:
        connection.transport.close()
    return load


async def connect(port: int, load: Load, idle: Callable[[Connection], None]) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(load, idle), "127.0.0.1", port
    )
    return connection


def http_request(text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


# What a process tree costs


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
    """User and system time of the tree."""
    ticks = 0
    for pid in tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(root: int) -> float:
    """Proportional memory of the tree."""
    total = 0
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return total / 1024


# The contenders, each in a child process


def child(name: str, plan: str, port: int, threads: int) -> None:
    """Run one contender until stdin closes; a line on stdout says that it is up."""
    contenders = {"cascade": cascade, "full_plain": full_plain, "full_tuned": full_tuned, "last_tuned": last_tuned}
    with contenders[name](plan, port, threads):
        print("READY", flush=True)
        sys.stdin.read()


@contextmanager
def cascade(plan: str, port: int, threads: int) -> Iterator[None]:
    from lspm_ray.cluster import ClusterConfig, connect
    from lspm_ray.serving.config import ServeConfig
    from lspm_ray.serving.deploy import deploy, undeploy

    replicas = max(1, threads - 1)  # the ingress needs a CPU too
    variant = {"min_replicas": replicas, "max_replicas": replicas}
    with connect(ClusterConfig()):
        deploy(plan, ServeConfig.parse({"port": port, "variant": variant}))
        yield
        undeploy()


@contextmanager
def full_plain(plan: str, port: int, threads: int) -> Iterator[None]:
    import ray
    from ray import serve

    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(plain_app(full_model(plan), plan, replicas=1, cpus=1.0), route_prefix="/")
    yield
    serve.shutdown()
    ray.shutdown()


def full_tuned(plan: str, port: int, threads: int) -> AbstractContextManager[None]:
    return tuned(full_model(plan), plan, port, threads)


def last_tuned(plan: str, port: int, threads: int) -> AbstractContextManager[None]:
    return tuned(load_bundle(plan).models[-1], plan, port, threads)


@contextmanager
def tuned(model: Artifact, plan: str, port: int, threads: int) -> Iterator[None]:
    from ray import serve

    from lspm_ray.cluster import ClusterConfig, connect

    with connect(ClusterConfig()):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
        serve.run(plain_app(model, plan, replicas=threads, cpus=0.5), route_prefix="/")
        yield
        serve.shutdown()


def full_model(plan: str) -> Artifact:
    """What the certificate compares with; without a certificate the plan serves it alone."""
    bundle = load_bundle(plan)
    if bundle.certificate is None:
        return bundle.models[-1]
    return open_beside(bundle.certificate.full.uri, open_artifact(plan))


def plain_app(model: Artifact, plan: str, replicas: int, cpus: float) -> Any:
    """One model behind FastAPI and @serve.batch, as the Ray Serve documentation shows it."""
    from fastapi import FastAPI
    from pydantic import BaseModel
    from ray import serve

    from lspm_ray.evaluation.calibration import softmax
    from lspm_ray.inference.predictor import load_predictor
    from lspm_ray.tasks import Task

    api = FastAPI()

    class Body(BaseModel):
        text: str

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=100, ray_actor_options={"num_cpus": cpus})
    @serve.ingress(api)
    class Plain:
        def __init__(self) -> None:
            bundle = load_bundle(plan)
            self.labels = bundle.plan.labels
            self.task = Task.make(bundle.plan.task)
            self.tokenizer = bundle.tokenizer()
            self.predictor = load_predictor(model.local(), 1)

        @serve.batch(max_batch_size=PLAIN_BATCH, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
        async def infer(self, texts: list[str]) -> list[dict[str, Any]]:
            logits = self.predictor.predict(self.task.encode(texts, self.tokenizer))
            answers = self.task.decode(softmax(logits, 1.0), self.labels)
            return [answer.model_dump() for answer in answers]

        @api.post("/v1/predict")
        async def predict(self, body: Body) -> dict[str, Any]:
            found: dict[str, Any] = await self.infer(body.text)
            return found

    bound: Any = Plain
    return bound.bind()


def full_loop(plan: str, texts: Sequence[str], threads: int, seconds: float) -> dict[str, Any]:
    """The bare loop: no server, no cluster."""
    from lspm_ray.inference.predictor import load_predictor
    from lspm_ray.tasks import Task

    bundle = load_bundle(plan)
    task, tokenizer = Task.make(bundle.plan.task), bundle.tokenizer()
    predictor = load_predictor(full_model(plan).local(), threads)

    def batch(start: int) -> list[str]:
        part = [texts[(start + offset) % len(texts)] for offset in range(LOOP_BATCH)]
        best = predictor.predict(task.encode(part, tokenizer)).argmax(axis=1)
        return [bundle.plan.labels[index] for index in best]

    batch(0)
    labels: dict[int, str] = {}
    done, latencies = 0, []
    cpu, begin = time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        for offset, label in enumerate(batch(done)):
            labels[(done + offset) % len(texts)] = label
        latencies.append(time.perf_counter() - start)
        done += LOOP_BATCH
    elapsed = time.perf_counter() - begin
    return figures(done, elapsed, latencies, time.process_time() - cpu) | {"labels": labels}


# The measurement


def measure_server(name: str, options: argparse.Namespace, texts: Sequence[str]) -> list[dict[str, Any]]:
    port = free_port()
    command = [sys.executable, __file__, "--child", name, "--plan", options.plan, "--port", str(port)]
    command += ["--threads", str(options.threads)]
    log = Path(options.logs) / f"{name}.log"
    results = []
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment(name)
        )
        assert process.stdin and process.stdout
        try:
            for line in process.stdout:
                if line.strip() == b"READY":
                    break
            else:
                raise SystemExit(f"{name} did not start: see {log}")
            asyncio.run(closed_loop(port, texts, max(options.concurrency), options.warmup))
            loads = [("concurrency", closed_loop, value) for value in options.concurrency]
            loads += [("rate", open_loop, value) for value in options.rate]
            for kind, run, value in loads:
                before = cpu_seconds(process.pid)
                load = asyncio.run(run(port, texts, value, options.seconds))
                cpu = cpu_seconds(process.pid) - before
                found = figures(len(load.latencies_s), load.seconds, load.latencies_s, cpu)
                found[kind] = value
                found["statuses"] = dict(load.statuses)
                found["client_cpu_us_per_request"] = round(1e6 * load.client_cpu_s / max(1, len(load.latencies_s)))
                found["client_busy"] = round(load.client_cpu_s / load.seconds, 3)
                found["memory_mb"] = round(memory_mb(process.pid))
                found["labels"] = {index: json.loads(b'"' + label + b'"') for index, label in load.labels.items()}
                results.append(found)
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    return results


def figures(requests: int, seconds: float, latencies_s: list[float], cpu_s: float) -> dict[str, Any]:
    ordered = sorted(latencies_s) or [0.0]
    return {
        "requests": requests,
        "texts_per_s": round(requests / seconds, 1),
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "cpu_us_per_text": round(1e6 * cpu_s / max(1, requests)),
    }


def environment(name: str) -> dict[str, str]:
    """Ports and files apart from any other Ray on the machine; for the plain contender Ray's own defaults."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    kept |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    kept["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    if name != "full_plain":
        kept["RAY_SERVE_HAPROXY_STATS_PORT"] = str(free_port())
        kept["RAY_SERVE_HAPROXY_METRICS_PORT"] = str(free_port())
        kept["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] = str(free_port())
    return kept


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def measure_loop(options: argparse.Namespace, texts_file: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", "full_loop", "--plan", options.plan, "--texts", str(texts_file)]
    command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
    with (Path(options.logs) / "full_loop.log").open("ab") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, env=environment("full_loop"), check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarise(rounds: list[dict[str, list[dict[str, Any]]]], reference: dict[int, str]) -> dict[str, Any]:
    """Medians per contender and load, and how often its label is the full model's."""
    summary: dict[str, Any] = {}
    for name in rounds[0]:
        for position, first in enumerate(rounds[0][name]):
            runs = [one[name][position] for one in rounds]
            key = name + (f"@{first['concurrency']}" if "concurrency" in first else "")
            key += f"@{first['rate']:g}/s" if "rate" in first else ""
            numbers = [figure for figure, value in first.items() if isinstance(value, int | float)]
            medians = {figure: median(run[figure] for run in runs) for figure in numbers}
            pairs = [(label, reference.get(index)) for run in runs for index, label in run["labels"].items()]
            common = [label == full for label, full in pairs if full is not None]
            failures = sum(
                count for run in runs for status, count in run.get("statuses", {}).items() if int(status) != 200
            )
            summary[key] = medians | {
                "same_label_as_full": round(sum(common) / len(common), 4) if common else None,
                "texts_per_s_all_rounds": [run["texts_per_s"] for run in runs],
                "not_200": failures,
            }
    return summary


def ratios(summary: dict[str, Any]) -> dict[str, float]:
    """Throughput of the cascade over that of every other contender at the same number of connections."""
    found = {}
    for key, value in summary.items():
        name, _, concurrency = key.partition("@")
        for ours, mine in summary.items():
            if "/s" in ours or "/s" in key:
                continue  # everybody who keeps up with a given rate has the same throughput
            if ours.startswith("cascade@") and name != "cascade" and concurrency in ("", ours.partition("@")[2]):
                found[f"{ours} / {key}"] = round(mine["texts_per_s"] / value["texts_per_s"], 2)
    return found


def read_texts(path: str, column: str, limit: int) -> list[str]:
    """Lines of a .txt file, or a column of any data file."""
    if path.endswith(".txt"):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        texts = [line for line in lines if line.strip()]
    else:
        from lspm_ray.serving.files import check_source

        config = source_config(path, column)
        texts = [item.text for file in check_source(config) for item in read_items(file, config) if item.text]
    if not texts:
        raise SystemExit(f"no texts in {path}")
    return [text for text in map(normalize, texts[:limit]) if text]


def held_out_texts(plan: str, limit: int) -> list[str]:
    """Texts of the test split of the corpus that the certificate is about."""
    certificate = load_bundle(plan).certificate
    if certificate is None:
        raise SystemExit("the plan has no certificate, so its corpus is not known: give --texts")
    corpus = open_beside(certificate.data.uri, open_artifact(plan))
    return [str(text) for text in read_split(corpus, "test", ["text"])["text"].to_pylist()[:limit]]


def find_plan(run: str) -> str:
    """The newest select artifact of a run directory, or the artifact itself."""
    if Path(run).name.startswith("select-"):
        return str(Path(run).absolute())
    found = [a for a in ArtifactStore(run).artifacts() if a.manifest.stage == "select"]
    if not found:
        raise SystemExit(f"no select artifact in {run}: run `lspm select` first")
    return found[-1].uri


def table(summary: dict[str, Any]) -> str:
    columns = ("texts_per_s", "p50_ms", "p99_ms", "cpu_us_per_text", "memory_mb", "same_label_as_full", "not_200")
    lines = [f"{'':16}" + "".join(f"{name:>20}" for name in columns)]
    for key, row in summary.items():
        lines.append(f"{key:16}" + "".join(f"{row.get(name, '')!s:>20}" for name in columns))
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    if options.child == "full_loop":
        texts = json.loads(Path(options.texts).read_text(encoding="utf-8"))
        print(json.dumps(full_loop(options.plan, texts, options.threads, options.seconds)))
        return
    if options.child:
        child(options.child, options.plan, options.port, options.threads)
        return
    options.plan = find_plan(options.run)
    if options.texts:
        texts = read_texts(options.texts, options.column, options.max_texts)
    else:
        texts = held_out_texts(options.plan, options.max_texts)
    Path(options.logs).mkdir(parents=True, exist_ok=True)
    texts_file = Path(options.logs) / "texts.json"
    texts_file.write_text(json.dumps(texts), encoding="utf-8")
    rounds: list[dict[str, list[dict[str, Any]]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for name in options.contenders:
            print(f"round {number + 1}/{options.rounds}: {name}", file=sys.stderr, flush=True)
            found = [measure_loop(options, texts_file)] if name == "full_loop" else measure_server(name, options, texts)
            for result in found:
                result["labels"] = {int(index): label for index, label in result["labels"].items()}
            rounds[-1][name] = found
    reference = {i: label for one in rounds for run in one.get("full_loop", []) for i, label in run["labels"].items()}
    summary = summarise(rounds, reference)
    report(options, texts, rounds, summary)


def report(
    options: argparse.Namespace, texts: Sequence[str], rounds: list[dict[str, list[dict[str, Any]]]], summary: Any
) -> None:
    plan = load_bundle(options.plan).plan
    for one in rounds:
        for runs in one.values():
            for run in runs:
                del run["labels"]
    document = {
        "command": " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
        "design": __doc__,
        "contenders": {name: CONTENDERS[name] for name in options.contenders},
        "plan": {
            "stages": [stage.model.name for stage in plan.stages],
            "threshold": plan.stages[0].threshold,
            "expected": plan.expected,
            "certificate_id": plan.certificate_id,
        },
        "texts": {"count": len(texts), "mean_characters": round(sum(map(len, texts)) / len(texts))},
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "threads": options.threads},
        "hardware": hardware(),
        "client_is_bottleneck": any(row.get("client_busy", 0) > 0.8 for row in summary.values()),
        "median": summary,
        "cascade_throughput_ratio": ratios(summary),
        "rounds": rounds,
    }
    text = json.dumps(document, indent=1)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    print(table(summary), file=sys.stderr)
    for pair, ratio in document["cascade_throughput_ratio"].items():
        print(f"{pair}: {ratio}x", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run directory, or its select artifact")
    parser.add_argument(
        "--texts", help=".txt (a text per line), .csv, .jsonl or .parquet; default: the run's test split"
    )
    parser.add_argument("--column", default="text", help="column with the text")
    parser.add_argument("--max-texts", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16])
    parser.add_argument("--rate", type=float, nargs="*", default=[20.0], help="texts per second of the open load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPUs to use")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--logs", default="build/benchmark-serving")
    parser.add_argument("--out", help="JSON file; standard output without it")
    for hidden in ("--child", "--plan"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child and not options.run:
        parser.error("--run is required")
    return options


if __name__ == "__main__":
    main()
