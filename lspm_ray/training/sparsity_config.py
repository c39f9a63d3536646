"""Settings of unstructured pruning, shared by the method and by what it does while a model is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from lspm_ray.config import Config

_SEMI_STRUCTURED = "2:4"
_AS_YAML_READS_IT = 124
"""YAML 1.1 takes an unquoted 2:4 for a number in base 60."""


class SparsityConfig(Config):
    """Which weights are set to zero, and when.

    Attributes:
        sparsity: share of the weights of every pruned matrix that are zero in the end.
        pattern: `unstructured`, or `2:4`: two of every four weights that stand side by side in a row (Mishra et al.
            2021), which is a sparsity of 0.5.
        criterion: `magnitude` removes the weights nearest to zero (Han et al. 2015). `movement` removes those that
            fine-tuning moves towards zero (Sanh et al. 2020, sections 3 and 4: hard movement pruning, top v of each
            matrix); it is made for high sparsity and long training: what a few dozen steps tell of a weight is noise.
        schedule: `oneshot` prunes before the first step. `cubic` prunes more and more, first fast, then slowly (Zhu &
            Gupta 2017, section 3).
        ramp_start: share of all steps after which `cubic` begins.
        ramp_end: share of all steps after which `cubic` has reached `sparsity`; the rest is recovery.
    """

    sparsity: float = Field(0.5, ge=0, lt=1)
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    criterion: Literal["magnitude", "movement"] = "magnitude"
    schedule: Literal["oneshot", "cubic"] = "cubic"
    ramp_start: float = Field(0.1, ge=0, lt=1)
    ramp_end: float = Field(0.7, gt=0, le=1)

    @field_validator("pattern", mode="before")
    @classmethod
    def _unquoted(cls, pattern: Any) -> Any:
        return _SEMI_STRUCTURED if pattern == _AS_YAML_READS_IT else pattern

    @field_validator("pattern")
    @classmethod
    def _half(cls, pattern: str, info: ValidationInfo) -> str:
        if pattern == _SEMI_STRUCTURED and info.data.get("sparsity", 0.5) != 0.5:
            raise ValueError(f"2:4 is a sparsity of 0.5: set sparsity to it, not to {info.data['sparsity']:g}")
        return pattern

    @field_validator("schedule")
    @classmethod
    def _learnt(cls, schedule: str, info: ValidationInfo) -> str:
        if schedule == "oneshot" and info.data.get("criterion") == "movement":
            raise ValueError("movement is only known once training has begun: take cubic")
        return schedule

    @field_validator("ramp_end")
    @classmethod
    def _after_start(cls, end: float, info: ValidationInfo) -> float:
        if end <= info.data.get("ramp_start", 0.0):
            raise ValueError(f"must be more than ramp_start ({info.data['ramp_start']:g})")
        return end
