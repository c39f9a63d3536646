"""The section `tune` of the configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lspm_ray.config import Config
from lspm_ray.errors import ConfigError
from lspm_ray.tuning.goals import Goals, Limit
from lspm_ray.tuning.scheduler import Scheduler
from lspm_ray.tuning.searcher import Searcher
from lspm_ray.tuning.space import Domain, Space

SECTIONS = ("model", "task", "data", "finetune", "compress", "select")
"""Sections of the configuration whose fields can vary."""
PREPARED = ("model", "task", "data")
"""Those of them that decide what the trials are trained on, which is made before they start."""

FIXED = {
    "finetune.seed": "finalists are trained with several seeds",
    "finetune.workers": "it changes where a model is trained, not the model",
    "finetune.compare_scratch": "it changes no model",
    "finetune.metric": "trials are compared by it",
    "compress.workers": "it changes where a model is trained, not the model",
    "select.alpha": "a looser promise would always win",
    "select.delta": "a looser promise would always win",
    "select.risk": "a looser promise would always win",
}
"""Fields in these sections that cannot vary, and why."""


class BudgetConfig(Config):
    """When to stop searching, whichever comes first.

    Attributes:
        trials: points that are tried.
        minutes: about, of the whole sweep, all its runs and the finalists together: how long the finalists will take is
            reckoned from the search.
        cpu_hours: of the trials: reserved CPUs times the time they were.
    """

    trials: int = Field(20, ge=1)
    minutes: float | None = Field(None, gt=0)
    cpu_hours: float | None = Field(None, gt=0)


class TrialConfig(Config):
    """What one trial reserves, unless it trains on workers of its own (`finetune.workers.num_workers` above one).

    Attributes:
        cpus: parts of a CPU are possible; None for one, or for all of a node where speed is measured.
        gpus: parts of a GPU are possible; None for one if the cluster has any.
    """

    cpus: float | None = Field(None, gt=0)
    gpus: float | None = Field(None, ge=0)


class TuneConfig(Config):
    """A sweep.

    Attributes:
        space: path of a field in another section -> what it may be.
        searcher: `{searcher: NAME, ...}` or just the name.
        scheduler: the same; stops trials early by `finetune.metric` after each epoch.
        objectives: metric -> `max` or `min`; None for the best `finetune.metric`. Of several, the first decides between
            finalists, and the others show what it costs. Metrics are `validation.NAME` of the full model,
            `profile.MODEL.NAME` of any model, and `certified.NAME` of the cascade.
        constraints: metric -> `{min: ..., max: ...}` that a winner must keep.
        budget: when to stop.
        trial: what one trial reserves.
        concurrent: trials at the same time, at most; None for as many as the cluster holds.
        finalists: best points that are trained again with other seeds.
        seeds: that each finalist is trained with again. The score that made it a finalist is flattered by having been
            chosen, and does not count any more. With 0 it does.
        hang_s: seconds without any progress after which a trial is ended and reported.
        retry_failed: run failed trials of an earlier run of this sweep again.
        use_winner: `lspm run` and the later stages use the winner's settings (`--from-sweep`).
        seed: of the search.
    """

    space: dict[str, Domain] = Field(min_length=1)
    searcher: dict[str, Any] = Field(default_factory=lambda: {"searcher": "tpe"})
    scheduler: dict[str, Any] = Field(default_factory=lambda: {"scheduler": "asha"})
    objectives: dict[str, Literal["max", "min"]] | None = Field(None, min_length=1)
    constraints: dict[str, Limit] = Field(default_factory=dict)
    budget: BudgetConfig = BudgetConfig()
    trial: TrialConfig = TrialConfig()
    concurrent: int | None = Field(None, ge=1)
    finalists: int = Field(3, ge=1)
    seeds: int = Field(3, ge=0)
    hang_s: float = Field(900.0, gt=0)
    retry_failed: bool = False
    use_winner: bool = False
    seed: int = Field(0, ge=0)

    @field_validator("searcher", mode="before")
    @classmethod
    def _known_searcher(cls, value: Any) -> Any:
        return _known(Searcher, value)

    @field_validator("scheduler", mode="before")
    @classmethod
    def _known_scheduler(cls, value: Any) -> Any:
        return _known(Scheduler, value)

    @model_validator(mode="after")
    def _sound_space(self) -> TuneConfig:
        for path in self.space:
            if path.split(".")[0] not in SECTIONS or ("." not in path and path != "model"):
                raise ValueError(f"space: `{path}` cannot vary; fields of these sections can: {', '.join(SECTIONS)}")
            for fixed, why in FIXED.items():
                if path == fixed or path.startswith(f"{fixed}."):
                    raise ValueError(f"space: `{path}` cannot vary: {why}")
        try:
            Searcher.make(self.searcher).check(Space(self.space), Goals(objectives={"validation.loss": "min"}))
            Space(self.space).part(*PREPARED)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def goals(self, metric: str) -> Goals:
        """Objectives and constraints.

        Args:
            metric: `finetune.metric`.
        """
        usual: dict[str, Literal["max", "min"]] = {f"validation.{metric}": "min" if metric == "loss" else "max"}
        return Goals(objectives=self.objectives or usual, constraints=self.constraints)


def _known(kind: type[Searcher] | type[Scheduler], value: Any) -> Any:
    try:
        return kind.make(value).spec()
    except ConfigError as error:
        raise ValueError(str(error)) from None
