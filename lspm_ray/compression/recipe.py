"""Recipes: what is done to the full model, step by step, and in which order the steps of all variants run."""

from typing import Any

from pydantic import Field, field_validator

from lspm_ray.compression.method import Method
from lspm_ray.compression.presets import expand
from lspm_ray.config import Config, placed
from lspm_ray.errors import ConfigError, ModelError, UserError
from lspm_ray.models.shape import Shape

FULL = "full"
"""Name of the uncompressed model in every table and plan."""


class VariantConfig(Config):
    """One variant to make.

    Attributes:
        recipe: methods, applied in order; each is `{method: NAME, field: value, ...}` or just the name. Or the name of
            a preset (`lspm_ray/compression/presets.py`), which is replaced by its methods.
    """

    recipe: list[dict[str, Any]] = Field(min_length=1)

    @field_validator("recipe", mode="before")
    @classmethod
    def _normalise(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError("a recipe is the name of a preset or a list of methods")
        try:
            steps = expand(value) if isinstance(value, str) else value
        except ConfigError as error:
            raise ValueError(str(error)) from None
        methods = [_made(step, number) for number, step in enumerate(steps)]
        for method in methods[:-1]:
            if method.final:
                raise ValueError(f"`{method.name}` must be the last step: its result cannot be changed any further")
        return [method.spec() for method in methods]

    def methods(self) -> list[Method]:
        """The steps as plugins."""
        return [Method.make(step) for step in self.recipe]


def _made(step: Any, number: int) -> Method:
    try:
        return Method.make(step)
    except ConfigError as error:
        raise placed(error, str(number)) from None


def check_recipes(variants: dict[str, VariantConfig], shape: Shape, *, gpu: bool = True) -> None:
    """Refuse steps that do not fit the model they would be applied to.

    Args:
        variants: name -> recipe.
        shape: of the full model.
        gpu: whether variants are measured and served on GPUs.

    Raises:
        ModelError: names the variant and the step.
        ConfigError: the result of a step needs a library or a GPU that is not there.
    """
    for name, variant in variants.items():
        met = shape
        for number, method in enumerate(variant.methods()):
            field = f"compress.variants.{name}.recipe.{number}"
            if method.needs is not None:
                method.needs.check(field, method.name)
            if method.needs_gpu and not gpu:
                raise ConfigError(
                    "its result runs on GPUs only, and variants are measured and served on CPUs",
                    field=field,
                    value=method.name,
                    hint="Set serve.variant.gpus, and leave profile.gpu open",
                )
            try:
                met = method.check(met)
                _check_distillation(method, met, shape)
            except UserError as error:
                where = "the model" if number == 0 else "the result of the step before"
                raise ModelError(f"`{method.name}` does not fit {where}: {error}", field=field) from None


def _check_distillation(method: Method, student: Shape, teacher: Shape) -> None:
    """Here and not in each method, none of which can forget it then; see `check_match`."""
    distill = method.distillation
    if distill is not None and distill.matches:
        from lspm_ray.training.match import check_match

        check_match(distill, student, teacher, f"{method.name}.distill")


def waves(variants: dict[str, VariantConfig]) -> list[list[list[dict[str, Any]]]]:
    """Recipe prefixes to build, in waves: those of one wave need only the wave before, and none is built twice.

    Variants that begin with the same steps share them: `distil` and `distil, quantise` distil once.
    """
    depth = max((len(v.recipe) for v in variants.values()), default=0)
    result = []
    for length in range(1, depth + 1):
        wave: list[list[dict[str, Any]]] = []
        for variant in variants.values():
            prefix = variant.recipe[:length]
            if len(prefix) == length and prefix not in wave:
                wave.append(prefix)
        result.append(wave)
    return result
