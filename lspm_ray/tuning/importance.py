"""How much each field matters. Pure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searchers.tpe import distributions, encoded
from lspm_ray.tuning.space import Domain, Params, Space
from lspm_ray.tuning.sweep import Importance

_FEWEST = 8
_MOST = 150
"""Trials that are looked at: more tell hardly more, and the time grows with their square."""
_SHUFFLES = 19
"""With so many, one share in twenty of a field that does not matter is above all of them."""
_TREES = 24


def importance(trials: Sequence[Trial], space: Space, goals: Goals, metric: str) -> dict[str, Importance]:
    """Share of the variance of the outcome that each field explains by itself (functional ANOVA, Hutter et al. 2014).

    The outcome is the first objective. Where that is `metric` on validation, trials that were stopped count with the
    best they had reached. Fields that do not always count are left out.

    Args:
        trials: without finalists' repetitions.
        space: that they are of.
        goals: what was wanted.
        metric: quality after each epoch.

    Returns:
        By path, the largest share first; shares sum to one. Empty if fewer than eight trials tell, or all ended alike.
    """
    outcomes = [(trial.params, found) for trial in trials if (found := _outcome(trial, goals, metric)) is not None]
    outcomes = outcomes[:: math.ceil(len(outcomes) / _MOST) or 1]
    if len(outcomes) < _FEWEST or not (shares := _shares(outcomes, space, _TREES)):
        return {}
    random, values = np.random.default_rng(0), [value for _, value in outcomes]
    chances = []
    for _ in range(_SHUFFLES):
        shuffled = random.permutation(values).tolist()
        chances.append(_shares([(point, v) for (point, _), v in zip(outcomes, shuffled, strict=True)], space, _TREES))
    return {
        path: Importance(share=share, by_chance=max(one.get(path, 0.0) for one in chances))
        for path, share in shares.items()
    }


def _shares(outcomes: Sequence[tuple[Params, float]], space: Space, trees: int) -> dict[str, float]:
    import optuna
    from optuna.trial import create_trial

    if len({value for _, value in outcomes}) < 2:
        return {}
    even = Space({path: _even(domain) for path, domain in space.domains.items()})
    points = [_place(params, space) for params, _ in outcomes]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            [
                create_trial(params=encoded(even, point), distributions=distributions(even, point), value=value)
                for point, (_, value) in zip(points, outcomes, strict=True)
            ]
        )
        try:
            found = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=0).evaluate(study)
        except RuntimeError:  # the fields that always count had the same values in all trials
            return {}
    total = sum(found.values())
    return {path: float(share / total) for path, share in found.items()} if total > 0 else {}


def _even(domain: Domain) -> Domain:
    """Optuna weighs numbers as if they were uniform: of logarithms they are."""
    if domain.loguniform is None:
        return domain
    low, high = domain.loguniform
    return domain.model_copy(update={"loguniform": None, "uniform": (math.log(low), math.log(high))})


def _place(params: Params, space: Space) -> Params:
    return {
        path: value if space.domains[path].loguniform is None else math.log(value) for path, value in params.items()
    }


def _outcome(trial: Trial, goals: Goals, metric: str) -> float | None:
    if trial.status == "done":
        return goals.gains(trial.values)[0]
    if goals.first != f"validation.{metric}" or not trial.history:
        return None
    values = [epoch.metrics[metric] for epoch in trial.history]
    return max(values) if goals.first_is_higher else -min(values)
