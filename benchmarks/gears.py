"""The gear table's model against the endpoint: predicted and seen p99 and throughput of the plan as it is deployed.

    python benchmarks/gears.py --run runs/demo --out gears.json

Predicted: the queues are simulated with the times of the run's profile. Seen: an open load on the real endpoint,
texts of the test split at random times, medians over the rounds; at each rate the same number of seconds. Client and
endpoint share the machine, of which the model knows nothing.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import find_plan, held_out_texts, measure_server, read_texts
from lspm_ray.artifact import Artifact, ArtifactStore, hardware, open_artifact
from lspm_ray.profiling.profile import read_profile
from lspm_ray.selection.gears import GearsConfig, predict
from lspm_ray.selection.plan import Plan
from lspm_ray.serving.bundle import load_bundle
from lspm_ray.serving.config import ServeConfig, is_inline


def profile_of(plan: str) -> Artifact:
    """The profile that the plan was chosen by."""
    select = open_artifact(plan)
    digest = select.manifest.parents["profile"]
    store = ArtifactStore(str(Path(select.uri).parent))
    found = [artifact for artifact in store.artifacts() if artifact.digest == digest]
    if not found:
        raise SystemExit(f"the profile of {plan} is not beside it")
    return found[0]


def predicted(uri: str, plan: Plan, rates: list[float], threads: int, requests: int) -> dict[float, dict[str, float]]:
    """Rate -> what the model expects of the endpoint as `benchmarks/serving.py` deploys it."""
    settings = ServeConfig()
    config = GearsConfig(requests=requests).as_served(settings.inline_latency_ms, settings.ingress.threads)
    first = 1 if is_inline(plan, settings) else 0
    replicas = {stage.model.name: max(1, threads - 1) for stage in plan.stages[first:]}
    found = {}
    for rate in rates:
        gear, expected = predict(
            config,
            read_profile(profile_of(uri)),
            plan,
            rate,
            ingress_replicas=1,
            replicas=replicas,
            max_batch_size=settings.max_batch_size,
        )
        found[rate] = {
            "p50_ms": round(expected.p50_ms, 2),
            "p99_ms": round(expected.p99_ms, 2),
            "texts_per_s": round(min(rate, gear.capacity), 1),
            "cpu_ms_per_text": round(expected.cpu_ms, 3),
            "capacity": round(gear.capacity, 1),
            "load": round(rate / gear.capacity, 3),
        }
    return found


def seen(options: argparse.Namespace) -> list[dict[float, dict[str, Any]]]:
    """For each round: rate -> what the client saw; under 0 the closed load."""
    if options.texts:
        texts = read_texts(options.texts, options.column, options.max_texts)
    else:
        texts = held_out_texts(options.plan, options.max_texts)
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
        found = measure_server("cascade", options, texts)
        rounds.append({run.get("rate", 0.0): {k: run[k] for k in _KEPT} for run in found})
    return rounds


_CONNECTIONS = 64
"""Of the closed load, which shows how much the endpoint can do."""
_KEPT = ("p50_ms", "p99_ms", "texts_per_s", "cpu_us_per_text", "statuses", "client_busy")


def compare(model: dict[float, dict[str, float]], rounds: list[dict[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each rate: predicted, the median seen, and their ratio."""
    rows = []
    for rate, expected in model.items():
        row: dict[str, Any] = {"rate": rate, "load": expected["load"]}
        for figure in ("p50_ms", "p99_ms", "texts_per_s"):
            values = [one[rate][figure] for one in rounds]
            row[figure] = {
                "predicted": expected[figure],
                "seen": median(values),
                "seen_all_rounds": values,
                "predicted_over_seen": round(expected[figure] / median(values), 2),
            }
        row["not_200"] = sum(n for one in rounds for status, n in one[rate]["statuses"].items() if int(status) != 200)
        rows.append(row)
    return rows


def main() -> None:
    options = arguments()
    options.plan = find_plan(options.run)
    options.concurrency = [_CONNECTIONS]
    Path(options.logs).mkdir(parents=True, exist_ok=True)
    plan = load_bundle(options.plan).plan
    model = predicted(options.plan, plan, options.rate, options.threads, options.requests)
    before = os.getloadavg()[0]
    rounds = seen(options)
    rows = compare(model, rounds)
    document = {
        "command": " ".join(["python", "benchmarks/gears.py", *sys.argv[1:]]),
        "design": __doc__,
        "plan": {"stages": [stage.model.name for stage in plan.stages], "expected": plan.expected},
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "threads": options.threads},
        "hardware": hardware(),
        "load_average_before": round(before, 2),
        "model": model,
        "comparison": rows,
        "capacity": {
            "predicted": model[options.rate[0]]["capacity"],
            "seen_closed": median(one[0.0]["texts_per_s"] for one in rounds),
        },
        "rounds": rounds,
    }
    text = json.dumps(document, indent=1)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    print(f"capacity, texts/s: {document['capacity']}", file=sys.stderr)
    for row in rows:
        p99, rate = row["p99_ms"], row["texts_per_s"]
        print(
            f"{row['rate']:g}/s (load {row['load']:.0%}): p99 {p99['predicted']} predicted, {p99['seen']} ms seen; "
            f"{rate['seen']} texts/s seen; {row['not_200']} not answered",
            file=sys.stderr,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run directory, or its select artifact")
    parser.add_argument("--rate", type=float, nargs="+", default=[5.0, 20.0, 50.0, 100.0], help="texts per second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=50_000, help="simulated for each rate")
    parser.add_argument("--texts", help="as for benchmarks/serving.py; default: the run's test split")
    parser.add_argument("--column", default="text", help="column with the text")
    parser.add_argument("--max-texts", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPUs to use")
    parser.add_argument("--logs", default="build/benchmark-gears")
    parser.add_argument("--out", help="JSON file; standard output without it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
