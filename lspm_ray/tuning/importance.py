"""How much each field matters. Pure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searchers.tpe import distributions, encoded
from lspm_ray.tuning.space import Domain, Params, Space

_FEWEST = 8


def importance(trials: Sequence[Trial], space: Space, goals: Goals, metric: str) -> dict[str, float]:
    """Share of the variance of the outcome that each field explains by itself (functional ANOVA, Hutter et al. 2014).

    The outcome is the first objective. Where that is `metric` on validation, trials that were stopped count with the
    best they had reached. Fields that do not always count are left out.

    Args:
        trials: without finalists' repetitions.
        space: that they are of.
        goals: what was wanted.
        metric: quality after each epoch.

    Returns:
        Path -> share, the largest first, summing to one; empty if fewer than eight trials tell, or all ended alike.
    """
    import optuna
    from optuna.trial import create_trial

    outcomes = [(trial, found) for trial in trials if (found := _outcome(trial, goals, metric)) is not None]
    if len(outcomes) < _FEWEST or len({value for _, value in outcomes}) < 2:
        return {}
    even = Space({path: _even(domain) for path, domain in space.domains.items()})
    points = [_place(trial.params, space) for trial, _ in outcomes]
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
            found = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
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
