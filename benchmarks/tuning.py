"""Searches against each other on a real task: how much training each needs to reach the score that a grid reaches.

    python benchmarks/tuning.py --out tuning.json

    grid      every point of a grid, each trained to its end
    random    random search (the same ranges), each point trained to its end
    ours      TPE with ASHA, what `lspm tune` does by default

The task: is the item of a clothing review recommended (CC0, examples/data/reviews), by an LSTM from fresh weights,
judged by balanced accuracy on validation. Each contender is a whole sweep of its own by `lspm_ray.sweep`, with as
many trials as the grid has points; random and ours are repeated with several seeds, in turn. Compute is counted in
epochs of training, in the order in which they ended. Reported are, per contender and seed, the epochs until the best
score so far equals that of the grid (None if it never did) as a share of all the grid's epochs, and medians over the
seeds; once for a score that is at least the grid's to the last digit, and once for one at most half a point below it:
the grid's best is the luckiest of all its evaluations, and the same point with another seed differs by more.

Overhead: of the time in which trials could run, what was spent between trials (scheduling, starting processes), and of
the time of a trial, what was not spent in epochs of training and validation (loading, writing the model), in the sweep
of the grid.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TARGETS = {"compute": 1 / 3, "overhead": 0.05}
"""Most of the grid's epochs that ours may need; most of a trial's time that is not its own."""
TOLERANCES = {"exactly": 0.0, "within_half_a_point": 0.005}
"""How far below the grid's best a score may be that counts as equal."""

_ROOT = Path(__file__).parents[1]
_GRID = {
    "finetune.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "finetune.dropout": [0.1, 0.4],
    "finetune.batch_size": [16, 64],
}


def settings_of(work: Path, rows: int, epochs: int, tune: dict[str, Any]) -> Any:
    """The configuration of one sweep."""
    from lspm_ray.settings import Settings

    raw = {
        "output": str(work),
        "model": {
            "architecture": "lstm",
            "config": {"embedding_size": 256, "hidden_size": 128},
            "tokenizer": {"algorithm": "word", "vocab_size": 10000, "lowercase": True},
        },
        "task": {"task": "text_classification", "max_length": 100, "class_weight": "sqrt"},
        "data": {
            "source": str(_ROOT / "examples/data/reviews/reviews.parquet"),
            "text": ["Title", "Review Text"],
            "label": "Recommended IND",
            "max_rows": rows,
            "splits": {"train": 0.5, "validation": 0.3, "selection": 0.05, "calibration": 0.1, "test": 0.05},
        },
        "finetune": {"epochs": epochs, "patience": epochs},
        "select": {"alpha": 0.05},
        "tune": {"objectives": {"validation.balanced_accuracy": "max"}, "finalists": 1, "seeds": 0} | tune,
    }
    return Settings.parse(raw)


def contenders(trials: int, seeds: Sequence[int]) -> list[tuple[str, int, dict[str, Any]]]:
    """Name, seed and section `tune` of every sweep, in the order in which they run."""
    ranges = {
        "finetune.learning_rate": {"loguniform": [1e-4, 3e-2]},
        "finetune.dropout": {"uniform": [0.1, 0.4]},
        "finetune.batch_size": {"choice": [16, 32, 64]},
    }
    grid = {path: {"choice": values} for path, values in _GRID.items()}
    plain = {"scheduler": "none", "budget": {"trials": trials}}
    found = [("grid", 0, plain | {"space": grid, "searcher": "grid", "finalists": trials})]
    for seed in seeds:
        found.append(("random", seed, plain | {"space": ranges, "searcher": "random", "seed": seed}))
        found.append(("ours", seed, {"space": ranges, "budget": {"trials": trials}, "seed": seed}))
    return found


def run(work: Path, rows: int, epochs: int, tune: dict[str, Any]) -> tuple[Any, Any]:
    """A whole sweep: its `Sweep`, and the store with what it made."""
    from lspm_ray.artifact import ArtifactStore
    from lspm_ray.sweep import read_sweep, sweep

    settings, store = settings_of(work, rows, epochs, tune), ArtifactStore(str(work))
    last = [""]

    def say(line: str) -> None:
        head = line.splitlines()[0]
        if head.split(";")[0] != last[0]:
            last[0] = head.split(";")[0]
            print(f"  {head}", file=sys.stderr)

    return read_sweep(sweep(settings, store, say)), store


def path_to(trials: Sequence[Any], target: float) -> dict[str, Any]:
    """Epochs of a sweep until its best score equalled `target`, by tolerance; the best score, and all its epochs."""
    ends = sorted(
        (epoch.seconds, epoch.metrics["balanced_accuracy"])
        for trial in trials
        if not trial.finalist
        for epoch in trial.history
    )
    scores = [score for _, score in ends]
    reached = {
        name: next((number for number, score in enumerate(scores, 1) if score >= target - tolerance), None)
        for name, tolerance in TOLERANCES.items()
    }
    return {"reached": reached, "epochs": len(scores), "best": max(scores)}


def overhead(found: Any, store: Any, slots: int) -> dict[str, float]:
    """Shares of time that were not spent training, in a sweep whose models were all kept."""
    trials = [trial for trial in found.trials if not trial.finalist]
    wall = max(trial.ended for trial in trials) - min(trial.began for trial in trials)
    held = sum(trial.seconds for trial in trials)
    made = [artifact for artifact in store.artifacts() if artifact.manifest.stage == "finetune"]
    trained = sum(sum(artifact.manifest.summary["seconds"]) for artifact in made)
    return {"between_trials": 1 - held / (slots * wall), "within_trials": 1 - trained / held, "trials": len(trials)}


def conclude(raw: dict[str, Any]) -> dict[str, Any]:
    """Medians over the seeds, against the targets."""
    return {
        "share_of_the_grids_epochs": {
            tolerance: {name: _shares(runs, tolerance, raw["grid"][0]["epochs"]) for name, runs in raw.items()}
            for tolerance in TOLERANCES
        },
        "all_epochs_as_a_share": {
            name: median(run["epochs"] for run in runs) / raw["grid"][0]["epochs"] for name, runs in raw.items()
        },
        "targets": TARGETS,
    }


def _shares(runs: Sequence[dict[str, Any]], tolerance: str, total: int) -> dict[str, Any]:
    reached = [run["reached"][tolerance] for run in runs]
    shares = [None if epochs is None else epochs / total for epochs in reached]
    middle = median(sorted(float("inf") if share is None else share for share in shares))
    return {"per_seed": shares, "median": None if middle == float("inf") else middle}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tuning.json"))
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where the sweeps go; run again with the same one, it goes on")
    options = parser.parse_args(arguments)

    from lspm_ray.artifact import cpu_count, hardware
    from lspm_ray.cluster import ClusterConfig, connect

    trials = 1
    for values in _GRID.values():
        trials *= len(values)
    raw: dict[str, Any] = {"grid": [], "random": [], "ours": []}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        with connect(ClusterConfig(), work / "log.txt"):
            target, shares = 0.0, {}
            for name, seed, tune in contenders(trials, range(options.seeds)):
                print(f"{name}, seed {seed}", file=sys.stderr)
                found, store = run(work / f"{name}-{seed}", options.rows, options.epochs, tune)
                if name == "grid":
                    shares = overhead(found, store, slots=cpu_count())
                    target = max(e.metrics["balanced_accuracy"] for trial in found.trials for e in trial.history)
                raw[name].append({"seed": seed, "seconds": found.seconds} | path_to(found.trials, target))
    result = {
        "hardware": hardware(),
        "task": {"rows": options.rows, "epochs": options.epochs, "trials": trials, "target": target},
        "sweeps": raw,
        "overhead": shares,
        "summary": conclude(raw),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"] | {"overhead": shares}, indent=1))


if __name__ == "__main__":
    main()
