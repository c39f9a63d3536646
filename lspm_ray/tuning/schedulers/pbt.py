"""Population-based training."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.scheduler import EPOCH, Scheduler, check_before_end
from lspm_ray.tuning.space import Domain, Space

MUTABLE = ("finetune.learning_rate", "finetune.weight_decay", "finetune.max_grad_norm", "finetune.dropout")
"""Fields that may change while a model is trained."""


class Pbt(Scheduler):
    """Now and then the worst trials go on from the weights of the best, with settings changed a little (Jaderberg et
    al. 2017). A point is then the settings that a trial ended with; finalists are trained with them from the beginning.

    Attributes:
        every_epochs: between such moments.
        share: of the trials at each end.
        resample: how often a changed setting is drawn afresh.
    """

    population: ClassVar[bool] = True

    every_epochs: int = Field(1, ge=1)
    share: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)

    def check(self, epochs: int, space: Space, goals: Goals) -> None:
        """Some field must be one that can change on the way, and only quality on validation can be the goal."""
        check_before_end("every_epochs", self.every_epochs, epochs)
        if not set(space.domains) & set(MUTABLE):
            raise ConfigError(
                "pbt needs a field that can change while a model is trained", field="tune.space", valid=MUTABLE
            )
        for path in set(space.domains) & set(MUTABLE):
            if space.domains[path].when:
                raise ConfigError(
                    "pbt cannot change a field that does not always count",
                    field=f"tune.space.{path}.when",
                    value=space.domains[path].when,
                )
        for name in goals.names:
            if not name.startswith("validation."):
                raise ConfigError(
                    "pbt knows only the quality of the full model on validation", field="tune.objectives", value=name
                )

    def build(self, metric: str, mode: str, trials: Sequence[Trial], space: Space) -> Any:
        """Ray Tune's, asynchronous. Earlier trials are over, and nobody can go on from them."""
        from ray.tune.schedulers import PopulationBasedTraining

        changes = {path: _as_ray(domain) for path, domain in space.domains.items() if path in MUTABLE}
        return PopulationBasedTraining(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            perturbation_interval=self.every_epochs,
            hyperparam_mutations={"trial": {"params": changes}},
            custom_explore_fn=partial(_inside, space),
            quantile_fraction=self.share,
            resample_probability=self.resample,
            log_config=False,
        )


def _inside(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """Ray Tune changes numbers by a factor, which may lead out of their domains."""
    params = config["trial"]["params"]
    for path in set(params) & set(MUTABLE):
        if (bounds := space.domains[path].bounds) is not None:
            params[path] = min(max(params[path], bounds[0]), bounds[1])
    return config


def _as_ray(domain: Domain) -> Any:
    from ray import tune

    if domain.loguniform is not None:
        return tune.loguniform(*domain.loguniform)
    if domain.uniform is not None:
        return tune.uniform(*domain.uniform)
    return list(domain.values or [])
