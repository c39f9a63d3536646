"""Sweeps as the tuner would leave them, of a made-up model whose quality follows from its settings.

`from tests.report.sweeps import sample_sweep`; `render(sample_sweep(), [], "lspm tune")` makes the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lspm_ray.artifact import hardware
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Epoch, Trial
from lspm_ray.tuning.space import Domain, Params, Space
from lspm_ray.tuning.sweep import Finalist, Gap, Importance, Sweep

DOMAINS: dict[str, dict[str, Any]] = {
    "finetune.learning_rate": {"loguniform": [1e-6, 1e-3]},
    "finetune.batch_size": {"choice": [16, 32, 64, 128]},
    "finetune.schedule": {
        "choice": [{"schedule": "constant"}, {"schedule": "cosine", "final": 0.1}, {"schedule": "linear"}]
    },
    "finetune.warmup_share": {"uniform": [0, 0.3], "when": {"finetune.freeze": False}},
    "finetune.freeze": {"choice": [False, True]},
    "finetune.layers": {"randint": [1, 4], "when": {"finetune.freeze": True}},
    "finetune.weight_decay": {"loguniform": [1e-4, 0.3]},
    "finetune.label_smoothing": {"uniform": [0, 0.2]},
    "finetune.class_weights": {"choice": ["none", "balanced", "square root of balanced"]},
    "finetune.gradient_clip": {"choice": [None, 0.5, 1.0]},
    "prepare.max_length": {"randint": [32, 512]},
    "base": {"choice": ["minilm", "a-base-with-a-rather-long-name-of-its-own-v2", "pretrain"]},
}
HOSTILE_TEXTS = ["<script>alert(1)</script>" + "x" * 5000, "日本語 $a_b$ 😀\nzwei", "\u202eevil\x07", 'a"b\' onload="x']
ONE: dict[str, Any] = {"objectives": {"accuracy": "max"}}
BOUNDED: dict[str, Any] = {"objectives": {"accuracy": "max"}, "constraints": {"latency_ms": {"max": 7.6}}}
TWO: dict[str, Any] = {"objectives": {"accuracy": "max", "latency_ms": "min"}}
THREE: dict[str, Any] = {"objectives": {"loss": "min", "latency_ms": "min", "accuracy": "max"}}


def sample_sweep(
    trials: int = 60,
    fields: int = 8,
    goals: Mapping[str, Any] = BOUNDED,
    epochs: int = 8,
    finalists: int = 4,
    seed: int = 0,
    **changes: Any,
) -> Sweep:
    """A finished sweep.

    Args:
        trials: that searched; every twelfth failed, and most others were stopped.
        fields: how many of `DOMAINS` vary.
        goals: objectives and constraints, of accuracy, loss and latency_ms.
        epochs: of a whole trial.
        finalists: at most so many points are trained with two more seeds.
        seed: of everything random.
        changes: fields of the sweep that are to be otherwise.
    """
    random = np.random.default_rng(seed)
    domains = {path: Domain.parse(raw) for path, raw in list(DOMAINS.items())[:fields]}
    domains = {
        p: d.model_copy(update={"when": {k: v for k, v in d.when.items() if k in domains}}) for p, d in domains.items()
    }
    space, aims = Space(domains), Goals.parse(dict(goals))
    made: list[Trial] = []
    for number in range(trials):
        made.append(_trial(number, space.draw(random), made, epochs, random))
    finished = {t.number: t.values for t in made if t.status == "done"}
    order = sorted((n for n in finished if aims.violation(finished[n]) == 0), key=lambda n: aims.order(finished[n]))
    best = [made[number] for number in order[:finalists]]
    repeats = [(trial, [_trial(trials + 2 * i + k, trial.params, made, epochs, random, trial) for k in (0, 1)])
               for i, trial in enumerate(best)]  # fmt: skip
    found = sorted((_finalist(t, again, aims) for t, again in repeats), key=lambda f: aims.order(f.values))
    ranked = [f if i == 0 else _behind(f, found[0], aims) for i, f in enumerate(found)]
    made += [trial for _, again in repeats for trial in again]
    shares = random.dirichlet(np.full(len(domains), 0.6)) if domains else []
    return Sweep(
        goals=aims,
        metric="accuracy",
        higher_is_better=True,
        space=domains,
        searcher={"searcher": "tpe", "startup_trials": 10},
        scheduler={"scheduler": "asha", "grace_epochs": 1, "reduction": 3},
        epochs=epochs,
        trials=made,
        finalists=ranked,
        front=aims.front(finished) if len(aims.objectives) > 1 else order[:1],
        importance={path: _share(share) for path, share in zip(domains, shares, strict=True)} if order else {},
        gap=_gap(ranked[0]) if ranked else None,
        seconds=max((trial.ended or 0.0 for trial in made), default=0.0) + 30,
        runs=2,
        hardware=hardware(),
        settings={"trials": trials, "searcher": {"searcher": "tpe"}, "seed": seed, "finalists": finalists},
    ).model_copy(update=changes)


def _trial(
    number: int, params: Params, before: list[Trial], epochs: int, random: np.random.Generator, of: Trial | None = None
) -> Trial:
    began = 40.0 * number * random.uniform(0.9, 1.0)
    top, latency = _quality(params), _latency(params) * random.uniform(0.9, 1.1)
    pace = 3 * latency
    curve = [top - 0.35 * math.exp(-0.6 * epoch) + random.normal(0, 0.006) for epoch in range(1, epochs + 1)]
    length, status, reason = epochs, "done", ""
    if of is None and number % 12 == 5:
        length, status, reason = number % 3, "failed", "CUDA out of memory: tried to allocate 2.4 GiB"
    elif of is None and before:
        for rung in (1, 3):
            reached = [t.history[rung - 1].metrics["accuracy"] for t in before if len(t.history) >= rung]
            if rung < epochs and reached and curve[rung - 1] < np.quantile(reached, 0.5):
                length, status, reason = rung, "stopped", f"not among the best third after {rung} epochs"
                break
    history = [
        Epoch(epoch=i + 1, metrics={"accuracy": a, "loss": _loss(a)}, seconds=began + pace * (i + 1))
        for i, a in enumerate(curve[:length])
    ]
    values = {"accuracy": curve[-1], "loss": _loss(curve[-1]), "latency_ms": latency} if status == "done" else {}
    return Trial.model_validate({
        "number": number, "params": params, "seed": 0 if of is None else number, "finalist": of is not None,
        "status": status, "history": history, "values": values, "reason": reason, "began": began,
        "ended": began + pace * length + 5,
    })  # fmt: skip


def _quality(params: Params) -> float:
    rate = abs(math.log10(params.get("finetune.learning_rate", 3e-5)) + 4.3)
    decay = abs(math.log10(params.get("finetune.weight_decay", 0.01)) + 2)
    frozen = 0.03 if params.get("finetune.freeze") else 0.0
    return 0.93 - 0.06 * rate**2 - 0.01 * decay - frozen - 0.0001 * params.get("finetune.batch_size", 16)


def _latency(params: Params) -> float:
    return 2 + params.get("finetune.layers", 5) + 0.01 * params.get("finetune.batch_size", 16)


def _loss(accuracy: float) -> float:
    return -math.log(min(max(accuracy, 0.01), 0.999))


def _finalist(trial: Trial, again: list[Trial], goals: Goals) -> Finalist:
    scores = [t.values[goals.first] for t in (trial, *again)]
    values = {name: float(np.mean([t.values[name] for t in (trial, *again)])) for name in trial.values}
    return Finalist(number=trial.number, params=trial.params, scores=scores, mean=_estimate(scores), values=values)


def _behind(finalist: Finalist, winner: Finalist, goals: Goals) -> Finalist:
    sign = 1 if goals.first_is_higher else -1
    behind = _estimate([sign * (a - b) for a, b in zip(winner.scores, finalist.scores, strict=True)])
    return finalist.model_copy(update={"behind": behind, "distinguishable": not behind.low <= 0 <= behind.high})


def _estimate(scores: list[float]) -> Estimate:
    mean, half = float(np.mean(scores)), 2 * float(np.std(scores)) + 0.002
    return Estimate(value=mean, low=mean - half, high=mean + half)


def _gap(winner: Finalist) -> Gap:
    accuracy = winner.values["accuracy"]
    test = Estimate(value=accuracy - 0.012, low=accuracy - 0.02, high=accuracy - 0.004)
    return Gap(metric="accuracy", validation=accuracy, test=test)


def _share(share: float) -> Importance:
    return Importance(share=share, by_chance=0.3)
