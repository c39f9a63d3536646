"""Which validator escalates least at the same certified risk, from the stored outputs of a finished run.

    python benchmarks/validators.py config.yaml --first tiny --out validators.json
    python benchmarks/validators.py --data URI --full URI --first URI [--second URI] --out validators.json

The first form finds corpus and outputs through a configuration whose run is finished, the second takes the artifacts
themselves (`prepare-...`, `outputs-...`). All held-out rows are divided at random, again and again, into rows that
calibrators, validators and thresholds are learnt on (30 %), rows that certify (50 %) and fresh rows (20 %). Reported of
each validator are, over the divisions, the share of calibration rows that is escalated (1 where nothing can be
certified): its mean and the range of 95 % of the divisions, the same of its difference from `max_probability` on the
same division, the risk on the fresh rows, and the microseconds per row.

Beside the validators stand `random`, a score that knows nothing, `oracle`, one that knows the losses, and with a second
cheap variant `agreement`, the chance that independent answers of both are the same, which no plan can serve yet.

With --foreign and --model, texts of another corpus with the same tokenizer are answered as well: which share of them
would each validator accept at the threshold it was certified at?
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lspm_ray.selection.scorer as scorer_module
from lspm_ray.artifact import Artifact, hardware, open_artifact
from lspm_ray.corpus.shards import labels as label_names
from lspm_ray.evaluation.calibration import fit_temperature, softmax
from lspm_ray.evaluation.outputs import EVALUATION_SPLITS, read_outputs
from lspm_ray.selection.options import Rows
from lspm_ray.selection.points import tied_path
from lspm_ray.selection.scorer import Scorer
from lspm_ray.selection.select import inputs_of, training_of
from lspm_ray.validators import Outputs, Training, Validator
from lspm_ray.validators.kinds.familiarity import Familiarity

RISKS, DELTA = ("regret", "disagreement"), 0.05
BASELINE = "max_probability"
VALIDATORS: dict[str, dict[str, Any]] = {
    **{name: {"validator": name} for name in ("max_probability", "margin", "entropy", "energy")},
    "deferral, logistic": {"validator": "deferral"},
    "deferral, boosting": {"validator": "deferral", "model": "boosting"},
    "familiarity, unigram": {"validator": "familiarity"},
    "familiarity, mahalanobis": {"validator": "familiarity", "distance": "mahalanobis"},
    "familiarity, knn": {"validator": "familiarity", "distance": "knn"},
    "known_tokens": {"validator": "known_tokens"},
    "length": {"validator": "length"},
    "combined: max_probability, familiarity": {"validator": "combined"},
    "combined: confidence": {"validator": "combined", "of": ["max_probability", "margin", "entropy", "energy"]},
    "combined: all": {
        "validator": "combined",
        "of": ["max_probability", "margin", "entropy", "energy", "familiarity", "known_tokens", "length"],
    },
}
CALIBRATED = {f"max_probability, {kind}": kind for kind in ("vector", "isotonic")}
_FOREIGN, _CALIBRATORS = 500, 10
_OF_INPUTS = ("familiarity", "known_tokens", "length")
"""Validators that learn from training rows alone, so once is enough."""


@dataclass(frozen=True)
class Held:
    """Everything that is known of all held-out rows.

    Attributes:
        rows: of the first and the full model.
        second: logits of another cheap variant, or None.
        labels: names of the classes.
        training: the training rows.
        foreign: rows of another corpus, as the first model answers them, or None.
    """

    rows: Rows
    second: NDArray[np.float32] | None
    labels: list[str]
    training: Training
    foreign: Rows | None

    def some(self, index: NDArray[np.int64]) -> Rows:
        """These rows."""
        rows = self.rows
        inputs = [rows.inputs[row] for row in index.tolist()]
        return Rows(rows.labels[index], [logits[index] for logits in rows.stages], rows.full[index], inputs)


def main() -> None:
    """Measure, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="of a finished run")
    parser.add_argument("--data", help="the prepared corpus")
    parser.add_argument("--full", default="full", help="outputs of the full model")
    parser.add_argument("--first", required=True, help="outputs of the variant that answers first, or its name")
    parser.add_argument("--second", help="outputs of another cheap variant, or its name")
    parser.add_argument("--foreign", help="another prepared corpus")
    parser.add_argument("--model", help="the variant that answers first, to answer that corpus too")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--rows", type=int, help="held-out rows, evenly spaced; all unless given")
    parser.add_argument("--divisions", type=int, default=200)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.01, 0.02])
    arguments = parser.parse_args()
    held = _held(arguments)
    found = measure(held, arguments.alphas, arguments.divisions)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in table(found):
        print(line)


def _held(arguments: argparse.Namespace) -> Held:
    names = [arguments.first, arguments.full, *([arguments.second] if arguments.second else [])]
    if arguments.config is None:
        data, outputs = open_artifact(arguments.data), {name: open_artifact(name) for name in names}
    else:
        data, outputs = _of_run(arguments.config)
    read = {name: [read_outputs(outputs[name], split) for split in EVALUATION_SPLITS] for name in names}
    logits = {name: np.concatenate([split[2] for split in splits]) for name, splits in read.items()}
    truth = np.concatenate([split[1] for split in read[arguments.first]])
    inputs = [row for split in EVALUATION_SPLITS for row in inputs_of(data, split)]
    full = logits[arguments.full]
    second = logits[arguments.second] if arguments.second else None
    rows = Rows(truth, [logits[arguments.first], full], full, inputs)
    foreign = None if arguments.foreign is None else _foreign(arguments.foreign, arguments.model)
    return Held(rows, second, label_names(data), training_of(data), foreign)


def _foreign(data: str, model: str) -> Rows:
    from lspm_ray.inference.predictor import load_predictor

    inputs = inputs_of(open_artifact(data), "selection")[:_FOREIGN]
    logits = load_predictor(open_artifact(model).local(), 1).predict(inputs)
    return Rows(np.zeros(len(inputs), dtype=np.int64), [logits, logits], logits, inputs)


def _of_run(config: Path) -> tuple[Artifact, Mapping[str, Artifact]]:
    from lspm_ray.config import load
    from lspm_ray.pipeline import Pipeline, ReadOnlyStore
    from lspm_ray.settings import Settings

    settings = load(Settings, config)
    pipeline = Pipeline(settings, ReadOnlyStore(settings.output), lambda _: None)
    return pipeline.prepare, pipeline.outputs


def measure(held: Held, alphas: list[float], divisions: int) -> dict[str, Any]:
    """All numbers."""
    began = time.monotonic()
    _remember()
    rates: dict[str, dict[str, list[float]]] = {}
    risks: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    accepted_foreign: dict[str, dict[str, list[float]]] = {}
    for number in range(divisions):
        order = np.random.default_rng(number).permutation(len(held.rows.labels))
        cuts = np.split(order, [int(0.3 * len(order)), int(0.8 * len(order))])
        calibration, fresh = (held.some(cut) for cut in cuts[1:])
        for risk in RISKS:
            for name, scores, foreign in _scores(held, cuts, risk, number, seconds):
                grid = tied_path([scores[0]], 200)[:, 0]
                for alpha in alphas:
                    point = calibration.certify(risk, scores[1], grid, alpha, DELTA).point  # type: ignore[arg-type]
                    limit = np.inf if point is None else point.threshold
                    accepted = scores[2] >= limit
                    level = f"{risk} {alpha:g}"
                    if foreign is not None:
                        share = float((foreign >= limit).mean())
                        accepted_foreign.setdefault(level, {}).setdefault(name, []).append(share)
                    rate = 1.0 if point is None else point.escalation_rate
                    rates.setdefault(level, {}).setdefault(name, []).append(rate)
                    lost = fresh.risk(risk, np.where(accepted, 0, 1))  # type: ignore[arg-type]
                    risks.setdefault(level, {}).setdefault(name, []).append(lost)
        if (number + 1) % 10 == 0:
            print(f"{number + 1}/{divisions} divisions, {time.monotonic() - began:.0f} s", flush=True)
    rows = held.rows
    return {
        "rows": {"held_out": len(rows.labels), "selection": len(cuts[0]), "calibration": len(cuts[1])},
        "labels": len(held.labels),
        "accuracy": {"first": _accuracy(rows.first, rows.labels), "full": _accuracy(rows.full, rows.labels)},
        "delta": DELTA,
        "divisions": divisions,
        "levels": {
            level: {
                name: {
                    "escalation_rate": _spread(values),
                    f"against_{BASELINE}": _spread(np.array(values) - np.array(found[BASELINE])),
                    "fresh_risk": float(np.mean(risks[level][name])),
                    "foreign_accepted": _spread(kept) if (kept := accepted_foreign.get(level, {}).get(name)) else None,
                }
                for name, values in found.items()
            }
            for level, found in rates.items()
        },
        "us_per_row": {name: float(1e6 * np.median(values)) for name, values in seconds.items()},
        "seconds": time.monotonic() - began,
        "hardware": hardware(),
    }


Three = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _scores(
    held: Held, cuts: list[NDArray[np.int64]], risk: str, seed: int, seconds: dict[str, list[float]]
) -> Iterator[tuple[str, Three, NDArray[np.float64] | None]]:
    """Of each validator, on selection, calibration and fresh rows, and on foreign ones where it can judge them."""
    parts = [held.some(cut) for cut in cuts]
    selection = parts[0]
    for name, spec in VALIDATORS.items():
        if spec["validator"] in _OF_INPUTS:
            known, strange = _of_inputs(held, name)
            yield name, _three(known, cuts), strange
            continue
        fitted = _fit(selection, spec, "temperature", risk, held)
        began = time.perf_counter()
        first = selection.scores(fitted)
        if not Validator.make(spec).reads_training or spec["validator"] == "deferral":  # the others' scores are kept
            seconds.setdefault(name, []).append((time.perf_counter() - began) / len(first))
        strange = None if held.foreign is None else held.foreign.scores(fitted)
        yield name, (first, parts[1].scores(fitted), parts[2].scores(fitted)), strange
    for name, kind in CALIBRATED.items():
        fitted = _fit(selection, VALIDATORS[BASELINE], kind, risk, held)
        strange = None if held.foreign is None else held.foreign.scores(fitted)
        yield name, (parts[0].scores(fitted), parts[1].scores(fitted), parts[2].scores(fitted)), strange
    random = np.random.default_rng([seed, 1]).random(len(held.rows.labels))
    yield "random", _three(random, cuts), None
    (lost, _) = held.rows.lost(risk, last_is_full=False)  # type: ignore[arg-type]
    yield "oracle", _three(random - lost, cuts), None
    if held.second is not None:
        some = [(held.rows.first, cuts[0]), (held.second, cuts[0])]
        first_t, second_t = (fit_temperature(logits[cut], held.rows.labels[cut]) for logits, cut in some)
        both = softmax(held.rows.first, first_t) * softmax(held.second, second_t)
        yield "agreement", _three(both.sum(axis=1), cuts), None


def _fit(selection: Rows, spec: dict[str, Any], calibrator: Any, risk: Any, held: Held) -> Scorer:
    return selection.fit_scorer(Validator.make(spec), [], calibrator, risk, held.labels, lambda: held.training)


def _three(scores: NDArray[np.float64], cuts: list[NDArray[np.int64]]) -> Three:
    return scores[cuts[0]], scores[cuts[1]], scores[cuts[2]]


_KEPT: dict[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]] = {}


def _of_inputs(held: Held, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Scores of all held-out and foreign rows by a validator that looks at their token ids alone."""
    if name not in _KEPT:
        fitted = _fit(held.rows, VALIDATORS[name], "temperature", "regret", held)
        strange = None if held.foreign is None else held.foreign.scores(fitted)
        _KEPT[name] = held.rows.scores(fitted), strange
    return _KEPT[name]


def _remember() -> None:
    """Do once what every division would do again: familiarity looks at a row and the training rows alone."""
    fit, score, calibrate = Familiarity.fit, Familiarity.score, scorer_module.fit_calibrator
    fitted: dict[str, Any] = {}
    known: dict[tuple[str, bytes], float] = {}
    calibrated: dict[tuple[str, bytes], Any] = {}

    def fit_once(self: Familiarity, examples: Any) -> Any:
        key = str(self.spec())
        if key not in fitted:
            fitted[key] = fit(self, examples)
        return fitted[key]

    def score_once(self: Familiarity, outputs: Outputs, state: Any) -> NDArray[np.float64]:
        keys = [(str(self.distance), row.tobytes()) for row in outputs.inputs]
        for number, key in enumerate(keys):
            if key not in known:
                known[key] = float(score(self, outputs[number : number + 1], state)[0])
        return np.array([known[key] for key in keys])

    def calibrate_once(kind: Any, logits: Any, labels: Any) -> Any:
        key = kind, logits.tobytes()
        if key not in calibrated:
            if len(calibrated) > _CALIBRATORS:
                calibrated.clear()
            calibrated[key] = calibrate(kind, logits, labels)
        return calibrated[key]

    Familiarity.fit, Familiarity.score = fit_once, score_once  # type: ignore[method-assign]
    scorer_module.fit_calibrator = calibrate_once


def _spread(values: Any) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def _accuracy(logits: Any, labels: Any) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown for a person."""
    levels = list(found["levels"])
    yield f"| validator | {' | '.join(f'{level.split()[0]} {float(level.split()[1]):.0%}' for level in levels)} |"
    yield "|---|" + "---:|" * len(levels)
    for name in found["levels"][levels[0]]:
        cells = []
        for level in levels:
            entry = found["levels"][level][name]
            rate, against = entry["escalation_rate"], entry[f"against_{BASELINE}"]
            change = "" if name == BASELINE else f" ({100 * against['low']:+.1f} to {100 * against['high']:+.1f})"
            cells.append(f"{100 * rate['mean']:.1f} %{change}")
        yield f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
