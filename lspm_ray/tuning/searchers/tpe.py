"""Tree-structured Parzen estimators, by Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.searcher import Searcher, settled
from lspm_ray.tuning.space import Domain, Params, Space

if TYPE_CHECKING:
    import optuna

_VIOLATION = "violation"


class Tpe(Searcher):
    """Points like those that were good, unlike those that were not (Bergstra et al. 2011; multivariate: Falkner et al.
    2018, who call it BOHB together with successive halving: here `scheduler: asha`; several objectives: Ozaki et al.
    2022).

    Trials that were stopped early count as worse than all that were not, the earlier the worse (with several objectives
    they do not count); a point that breaks a constraint counts as worse than all that break none.

    Attributes:
        random_trials: that come first.
        candidates: points that are compared for each suggestion.
    """

    random_trials: int = Field(8, ge=1)
    candidates: int = Field(24, ge=1)

    def suggest(
        self, space: Space, goals: Goals, trials: Sequence[Trial], fixed: Params, random: np.random.Generator
    ) -> Params:
        """The best of some candidates."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            # Groups of fields are marked as experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.random_trials,
                n_ei_candidates=self.candidates,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=int(random.integers(1 << 31)),
            )
            study = optuna.create_study(directions=["maximize"] * len(goals.objectives), sampler=sampler)
            study.add_trials([_as_optuna(trial, space, goals) for trial in trials])
            asked = study.ask()
            return space.sample(settled(fixed, lambda path, domain: _suggest(asked, path, domain)))


def distributions(space: Space, params: Params) -> dict[str, Any]:
    """Optuna's distribution of each field of a point."""
    return {path: _distribution(space.domains[path]) for path in params}


def encoded(space: Space, params: Params) -> dict[str, Any]:
    """A point in Optuna's terms: options by their number, as Optuna takes no lists or mappings."""
    return {path: _encode(space.domains[path], value) for path, value in params.items()}


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.randint is not None:
        return IntDistribution(*domain.randint)
    if domain.bounds is not None:
        return FloatDistribution(*domain.bounds, log=domain.loguniform is not None)
    return CategoricalDistribution(range(len(domain.options or [])))


def _encode(domain: Domain, value: Any) -> Any:
    return value if domain.options is None else domain.options.index(value)


def _suggest(asked: optuna.Trial, path: str, domain: Domain) -> Any:
    if domain.randint is not None:
        return asked.suggest_int(path, *domain.randint)
    if domain.bounds is not None:
        return asked.suggest_float(path, *domain.bounds, log=domain.loguniform is not None)
    options = domain.options or []
    return options[asked.suggest_categorical(path, range(len(options)))]


def _as_optuna(trial: Trial, space: Space, goals: Goals) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    told: dict[str, Any] = {"params": encoded(space, trial.params), "distributions": distributions(space, trial.params)}
    if trial.status == "done":
        told |= {"state": TrialState.COMPLETE, "values": list(goals.gains(trial.values))}
        told["constraints"] = {_VIOLATION: goals.violation(trial.values)}
    elif trial.status == "stopped" and len(goals.objectives) == 1:
        # The value at the end only orders the stopped ones among themselves.
        epochs = {epoch.epoch: -epoch.metrics["loss"] for epoch in trial.history}
        told |= {"state": TrialState.PRUNED, "intermediate_values": epochs}
    else:
        told["state"] = TrialState.RUNNING if trial.status == "running" else TrialState.FAIL
    return create_trial(**told)
