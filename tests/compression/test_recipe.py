import pytest

from lspm_ray.compression.compress import CompressConfig
from lspm_ray.compression.recipe import VariantConfig, check_recipes, waves
from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.shape import Shape


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


TO_ONNX = ["onnx", "quantize_int8", "quantize_static", "quantize_int4"]
BERT = Shape("bert", layers=6, max_tokens=512)


@pytest.mark.parametrize(
    "recipe",
    [
        [{"method": "distill_layers", "layers": 6}, "quantize_int8"],
        [{"method": "distill_layers", "layers": 2, "train": {"frozen_layers": 2}}],
        [{"method": "distill_layers", "layers": 2}, "prune", "onnx"],
        ["prune", "prune"],
        ["prune", "distill_bag"],
    ],
)
def test_recipes_that_fit(recipe):
    check_recipes(variants(a=recipe), BERT)


@pytest.mark.parametrize(
    ("shape", "recipe", "message"),
    [
        (
            BERT,
            [{"method": "distill_layers", "layers": 7}],
            r"a\.recipe\.0: `distill_layers`.*model.*6 layers \(got 7\)",
        ),
        (
            BERT,
            [{"method": "distill_layers", "layers": 2}] * 2 + [{"method": "distill_layers", "layers": 3}],
            r"2 layers",
        ),
        (
            BERT,
            ["prune", "distill_layers"],
            r"a\.recipe\.1: `distill_layers` does not fit the result of the step before",
        ),
        (
            BERT,
            [{"method": "distill_layers", "layers": 2, "train": {"frozen_layers": 3}}],
            r"a\.recipe\.0: .*distill_layers\.train\.frozen_layers: the model has 2 layers \(got 3\); valid: 0 to 2",
        ),
        (BERT, [{"method": "distill_bag", "train": {"frozen_layers": 1}}], r"distill_bag\.train\.frozen_layers"),
        (BERT, [{"method": "prune", "train": {"frozen_layers": 1}}], r"prune\.train\.frozen_layers.*lspm_pruned"),
        *((BERT, ["distill_bag", method], f"{method}`.*bag of n-grams cannot be exported") for method in TO_ONNX),
        (Shape("lspm_lstm", 0, None), ["quantize_static"], r"an LSTM cannot have fixed scales.*Take quantize_int8"),
        (Shape("lspm_lstm", 0, None), ["quantize_int4"], r"LSTM cannot have four bits.*Take quantize_int8"),
        (BERT, ["distill_bag", "prune"], r"a\.recipe\.1: `prune`.*lspm_bag_of_ngrams.*valid: bert"),
        (
            Shape("distilbert", 6, 512),
            ["prune"],
            r"compress\.variants\.a\.recipe\.0: `prune`.*'distilbert'.*valid: bert",
        ),
    ],
)
def test_steps_that_do_not_fit_are_named(shape, recipe, message):
    with pytest.raises(ModelError, match=message):
        check_recipes(variants(b=["onnx"], a=recipe), shape)
