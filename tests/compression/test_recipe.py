import pytest

from lspm_ray.compression.compress import CompressConfig
from lspm_ray.compression.recipe import VariantConfig, waves
from lspm_ray.errors import ConfigError


def variants(**recipes):
    return {name: VariantConfig.parse({"recipe": recipe}) for name, recipe in recipes.items()}


def names(wave):
    return [[step["method"] for step in prefix] for prefix in wave]


def test_shared_steps_are_built_once():
    plan = waves(variants(a=["distill_layers"], b=["distill_layers", "quantize_int8"], c=["quantize_int8"]))
    assert [names(wave) for wave in plan] == [
        [["distill_layers"], ["quantize_int8"]],
        [["distill_layers", "quantize_int8"]],
    ]


def test_same_method_with_other_settings_is_another_step():
    plan = waves(variants(a=[{"method": "distill_layers", "layers": 1}], b=[{"method": "distill_layers", "layers": 2}]))
    assert len(plan[0]) == 2


def test_defaults_are_filled_in():
    spec = VariantConfig.parse({"recipe": ["prune"]}).recipe[0]
    assert spec["method"] == "prune" and spec["neurons"] == 0.5


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (["no_such"], r"unknown method.*valid: distill_bag, distill_layers"),
        ([{"method": "prune", "head": 0.5}], "did you mean `heads`"),
        ([{"method": "prune", "heads": 1.5}], "less than 1"),
        (["quantize_int8", "prune"], "`quantize_int8` must be the last step"),
        ([], "at least 1 item"),
        ("prune", "list of methods"),
        ([{"heads": 0.5}], "say which method"),
    ],
)
def test_bad_recipes_are_refused(recipe, message):
    with pytest.raises(ConfigError, match=message):
        VariantConfig.parse({"recipe": recipe})


@pytest.mark.parametrize("name", ["full", "../x", "a b", ""])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigError, match="cannot name a variant"):
        CompressConfig.parse({"variants": {name: {"recipe": ["onnx"]}}})
