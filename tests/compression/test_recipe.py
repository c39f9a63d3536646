import importlib.util
import sys

import pytest

from lspm_ray.compression.compress import CompressConfig
from lspm_ray.compression.method import Method
from lspm_ray.compression.presets import PRESETS
from lspm_ray.compression.recipe import VariantConfig, check_recipes, waves
from lspm_ray.config import assign
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
        (["no_such"], r"unknown method.*valid: cast, compile, distill_bag, distill_layers"),
        ([{"method": "prune", "head": 0.5}], "did you mean `heads`"),
        ([{"method": "prune", "heads": 1.5}], "less than 1"),
        ([{"method": "gatekeeper", "alpha": 1}], "less than 1"),
        ([{"method": "gatekeeper", "distill": {"gatekeeper": {}}}], "set alpha and wrong_when of the method itself"),
        ([{"method": "sparsify", "sparsity": 1.0}], r"sparsity: .*less than 1"),
        ([{"method": "sparsify", "sparsity": 0.6, "pattern": "2:4"}], r"pattern: 2:4 is a sparsity of 0\.5"),
        ([{"method": "sparsify", "train": {"frozen_layers": 1}}], r"train: frozen_layers must be 0.*\(got 1\)"),
        (["quantize_int8", "prune"], "`quantize_int8` must be the last step"),
        (["torchao", "prune"], "`torchao` must be the last step"),
        (["compile", "cast"], "`compile` must be the last step"),
        ([{"method": "torchao", "scheme": "int4_weight_only", "group_size": 40}], r"multiple of 16 \(got 40\)"),
        ([], "at least 1 item"),
        ("prune", r"no such preset; a recipe is one of those or a list of methods.*valid: fast, gpu, small, tiny"),
        (7, "a recipe is the name of a preset or a list of methods"),
        ([{"heads": 0.5}], "say which method"),
    ],
)
def test_bad_recipes_are_refused(recipe, message):
    with pytest.raises(ConfigError, match=message):
        VariantConfig.parse({"recipe": recipe})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_becomes_its_methods_with_every_setting(name):
    preset, written = (VariantConfig.parse({"recipe": recipe}) for recipe in (name, list(PRESETS[name])))
    assert preset == written
    assert all(step == Method.make(step["method"]).parse(_settings(step)).spec() for step in preset.recipe)
    check_recipes({"a": preset}, BERT)
    assert VariantConfig.parse(preset.model_dump()) == preset


def _settings(step):
    return {key: value for key, value in step.items() if key != "method"}


def test_presets_share_steps_with_each_other():
    plan = waves(variants(fast="fast", small="small", gpu="gpu"))
    assert names(plan[0]) == [["distill_layers"]]


def test_the_smallest_preset_also_trims_the_vocabulary():
    methods = [step["method"] for step in variants(a="small")["a"].recipe]
    assert methods == ["distill_layers", "trim_vocabulary", "prune", "quantize_int8"]


def test_a_step_of_a_preset_cannot_be_set_before_it_is_written_out():
    raw = {"compress": {"variants": {"a": {"recipe": "fast"}}}}
    with pytest.raises(ConfigError, match=r"`compress\.variants\.a\.recipe` is a value, not a list.*got 'fast'.*Write"):
        assign(raw, "compress.variants.a.recipe.0.layers", 3)


@pytest.mark.parametrize("name", ["full", "../x", "a b", ""])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigError, match="cannot name a variant"):
        CompressConfig.parse({"variants": {name: {"recipe": ["onnx"]}}})


TO_ONNX = ["onnx", "openvino", "quantize_int8", "quantize_static", "quantize_int4"]
BERT = Shape("bert", layers=6, max_tokens=512)
LAYERS_MATCHED = {"method": "distill_layers", "layers": 2, "distill": {"hidden": 1, "attention": 1, "relations": 1}}
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


@pytest.mark.parametrize(
    "recipe",
    [
        [{"method": "distill_layers", "layers": 6}, "quantize_int8"],
        [{"method": "distill_layers", "layers": 2, "train": {"frozen_layers": 2}}],
        [{"method": "distill_layers", "layers": 2}, "prune", "onnx"],
        ["prune", "prune"],
        ["prune", "distill_layers", "prune"],
        ["trim_vocabulary", "prune", "distill_layers", "trim_vocabulary", "quantize_int8"],
        ["distill_transformer", "trim_vocabulary"],
        ["distill_lstm", "trim_vocabulary"],
        ["prune", "distill_bag"],
        ["distill_bag", "gatekeeper"],
        [LAYERS_MATCHED],
        ["prune", {"method": "gatekeeper", "distill": {"relations": 1}}],
        [{"method": "distill_layers", "layers": 2}, "gatekeeper", "quantize_int8"],
        ["prune", "sparsify", "quantize_int8"],
        ["prune", "quantization_aware", "quantize_int8"],
        ["cast", "prune", "cast", "compile"],
        pytest.param(["prune", "torchao"], marks=needs_torchao),
        [{"method": "distill_layers", "layers": 2}, {"method": "quantization_aware", "train": {"frozen_layers": 2}}],
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
            ["prune", {"method": "distill_layers", "layers": 7}],
            r"a\.recipe\.1: `distill_layers` does not fit the result of the step before.*6 layers",
        ),
        (
            BERT,
            [{"method": "distill_layers", "layers": 2, "train": {"frozen_layers": 3}}],
            r"a\.recipe\.0: .*distill_layers\.train\.frozen_layers: the model has 2 layers \(got 3\); valid: 0 to 2",
        ),
        (BERT, [{"method": "distill_bag", "train": {"frozen_layers": 1}}], r"distill_bag\.train\.frozen_layers"),
        (
            BERT,
            [{"method": "gatekeeper", "train": {"frozen_layers": 7}}],
            r"gatekeeper\.train\.frozen_layers.*6 layers",
        ),
        *(
            (BERT, [{"method": name, "distill": {"hidden": 1}}], rf"{name}\.distill\.hidden: .*lspm_")
            for name in ("distill_bag", "distill_lstm")
        ),
        (BERT, ["prune", {"method": "gatekeeper", "distill": {"attention": 1}}], r"recipe\.1: .*gatekeeper.*attention"),
        (Shape("distilbert", 6, 512), [LAYERS_MATCHED], r"distill\.hidden: .*distilbert.*It can in: bert"),
        (BERT, [{"method": "prune", "train": {"frozen_layers": 1}}], r"prune\.train\.frozen_layers.*lspm_pruned"),
        (BERT, ["distill_bag", "sparsify"], r"a\.recipe\.1: `sparsify`.*lspm_bag_of_ngrams.*valid: bert"),
        (BERT, ["distill_bag", "quantization_aware"], r"a\.recipe\.1: `quantization_aware`.*no transformer layers"),
        (BERT, [{"method": "quantization_aware", "train": {"frozen_layers": 7}}], r"quantization_aware\.train\.frozen"),
        (Shape("gpt2", 6, 512), ["sparsify"], r"a\.recipe\.0: `sparsify`.*'gpt2'.*valid: bert"),
        (Shape("lspm_lstm", 0, None), ["quantization_aware"], r"no transformer layers \(got 'lspm_lstm'\)"),
        *((BERT, ["distill_bag", method], f"{method}`.*bag of n-grams cannot be exported") for method in TO_ONNX),
        (Shape("lspm_lstm", 0, None), ["quantize_static"], r"an LSTM cannot have fixed scales.*Take quantize_int8"),
        (Shape("lspm_lstm", 0, None), ["quantize_int4"], r"LSTM cannot have four bits.*Take quantize_int8"),
        (BERT, ["distill_bag", "prune"], r"a\.recipe\.1: `prune`.*lspm_bag_of_ngrams.*valid: bert"),
        (BERT, ["distill_bag", "trim_vocabulary"], r"a\.recipe\.1: `trim_vocabulary`.*lspm_bag_of_ngrams.*valid: bert"),
        (Shape("distilbert", 6, 512), ["trim_vocabulary", "sparsify"], r"recipe\.1: `sparsify`.*'distilbert'"),
        (BERT, ["distill_lstm", "trim_vocabulary", "sparsify"], r"recipe\.2: `sparsify`.*'lspm_lstm'"),
        (BERT, ["distill_lstm", "trim_vocabulary", "quantize_static"], "an LSTM cannot have fixed scales"),
        (BERT, ["distill_lstm", "trim_vocabulary", "quantize_int4"], "LSTM cannot have four bits"),
        (BERT, ["distill_lstm", "trim_vocabulary", "quantization_aware"], "no transformer layers"),
        *((Shape(family, 6, None), ["distill_layers"], "not one stack of layers") for family in ("t5", "albert")),
        (
            Shape("bert", 6, 512, hidden=384),
            [{"method": "distill_lstm", "embedding_size": 4096}],
            r"distill_lstm\.embedding_size: the teacher's embeddings have 384.*\(got 4096\); valid: 1 to 384",
        ),
        (Shape("distilbert", 6, 512), ["trim_vocabulary", "prune"], r"a\.recipe\.1: `prune`.*'distilbert'"),
        (Shape("gpt2", 6, 512), ["distill_transformer"], r"`distill_transformer`.*'gpt2'.*valid: bert"),
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


@needs_torchao
@pytest.mark.parametrize(
    ("shape", "recipe", "family"),
    [
        (BERT, ["distill_bag", "torchao"], "lspm_bag_of_ngrams"),
        (BERT, ["distill_lstm", "torchao"], "lspm_lstm"),
        (Shape("lspm_pruned", 0, None, "lspm_lstm"), ["torchao"], "lspm_lstm"),
        (Shape("gpt2", 6, 512), ["torchao"], "gpt2"),
    ],
)
def test_models_without_linear_layers_are_not_quantised_by_torchao(shape, recipe, family):
    with pytest.raises(ModelError, match=f"`torchao`.*elsewhere than in linear layers .got '{family}'"):
        check_recipes(variants(a=recipe), shape)


@needs_torchao
@needs_torchao
def test_groups_must_divide_the_matrices():
    recipe = [{"method": "torchao", "scheme": "int4_weight_only", "group_size": 256}]
    with pytest.raises(ModelError, match=r"torchao\.group_size: matrices of 384 columns cannot.*\(got 256\)"):
        check_recipes(variants(a=recipe), Shape("bert", 6, 512, hidden=384, neurons=1536))


def test_a_result_for_gpus_only_needs_one_to_be_served_by():
    recipes = variants(a=["onnx"], b=[{"method": "torchao", "scheme": "fp8_dynamic"}])
    check_recipes(recipes, BERT)
    check_recipes(variants(a=["torchao"]), BERT, gpu=False)
    with pytest.raises(ConfigError, match=r"b\.recipe\.0: .*runs on GPUs only.*'torchao'.*serve\.variant\.gpus"):
        check_recipes(recipes, BERT, gpu=False)


def test_a_library_that_is_not_installed_is_known_before(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"a\.recipe\.1: needs the library torchao.*lspm-ray\[torchao\]"):
        check_recipes(variants(a=["prune", "torchao"]), BERT)
