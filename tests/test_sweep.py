import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.errors import ConfigError, ResourceError, UserError
from lspm_ray.settings import Settings
from lspm_ray.sweep import check_settings, points_to_prepare, reserve_for
from lspm_ray.trial import shared_key
from lspm_ray.tuning.space import Space
from tests.toys import toy_model_dir

LR = {"finetune.learning_rate": {"loguniform": [1e-5, 1e-3]}}


@pytest.fixture
def raw(tmp_path):
    """A configuration with a sweep in which nothing is wrong."""
    texts = [f"dress number {number}" for number in range(20)]
    pq.write_table(pa.table({"text": texts, "label": [n % 2 for n in range(20)]}), tmp_path / "data.parquet")
    return {
        "output": str(tmp_path / "run"),
        "model": {"name": str(toy_model_dir(tmp_path / "model"))},
        "data": {"source": str(tmp_path / "data.parquet"), "text": "text", "label": "label"},
        "task": {"task": "text_classification", "max_length": 64},
        "finetune": {"epochs": 3},
        "compress": {"variants": {"small": {"recipe": [{"method": "distill_layers", "layers": 1}, "prune"]}}},
        "tune": {"space": LR},
    }


def parse(raw, **tune):
    return Settings.parse(raw | {"tune": raw["tune"] | tune})


def test_what_there_will_be_is_said(raw):
    space = LR | {"compress.variants.small.recipe.0.layers": {"choice": [1, 2]}, "model": {"choice": [raw["model"]]}}
    settings = parse(raw, space=space, objectives={"certified.cost": "min", "profile.small.p50_ms": "min"})
    assert check_settings(settings) == (
        "tune: 20 trials at most over finetune.learning_rate, compress.variants.small.recipe.0.layers, model; "
        "by certified.cost, profile.small.p50_ms"
    )


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (
            {"space": {"finetune.learning_rat": {"uniform": [0.1, 0.2]}}},
            r"^tune\.space\.finetune\.learning_rat: .*did you mean `learning_rate`\?.*\(got 0\.1\)",
        ),
        (
            {"space": {"task.min_length": {"choice": [1]}}},
            r"^tune\.space\.task\.min_length: .*max_length.*\(got 1\)",
        ),
        (
            {"space": {"finetune.learning_rate": {"uniform": [-0.1, 0.1]}}},
            r"^tune\.space\.finetune\.learning_rate: .*greater than 0.*\(got -0\.1\)",
        ),
        (
            {"space": {"finetune.epochs": {"choice": [3, "many"]}}},
            r"^tune\.space\.finetune\.epochs: .*integer.*\(got 'many'\)",
        ),
        (
            {"space": {"finetune.epochs": {"uniform": [2, 5]}}},
            r"^tune\.space: some values do not go together: finetune\.epochs: .*integer.*\(got \{'finetune\.epochs': ",
        ),
        (
            {"space": {"compress.variants.small.recipe.5.layers": {"choice": [1]}}},
            r"^tune\.space\.compress\.variants\.small\.recipe\.5\.layers: .*no such list element.*valid: 0, 1",
        ),
        (
            {"space": {"compress.variants.small.recipe.1.headz": {"choice": [0.5]}}},
            r"^tune\.space\.compress\.variants\.small\.recipe\.1\.headz: .*did you mean `heads`",
        ),
        (
            {"space": {"select.first": {"choice": ["small", "big"]}}},
            r"^tune\.space\.select\.first: .*no such variant \(got 'big'\); valid: full, small",
        ),
        (
            {"searcher": "grid", "space": {"finetune.batch_size": {"randint": [1, 21]}}},
            r"^tune\.budget\.trials: the grid has 21 points, .* \(got 20\)\. Raise it",
        ),
        (
            {"searcher": "grid", "space": {"finetune.batch_size": {"randint": [1, 2**31]}}},
            r"^tune\.budget\.trials: the grid has over 1,000,000 points",
        ),
        (
            {"space": {"finetune.batch_size": {"grid": list(range(1, 6))}, "data.seed": {"grid": list(range(5))}}},
            r"^tune\.budget\.trials: the grid has 25 points, .* \(got 20\)",
        ),
        (
            {"objectives": {"validation.f1": "max"}},
            r"^tune: no trial reports such a metric \(got 'validation\.f1'\); valid: validation\.accuracy, .*macro_f1",
        ),
        (
            {"constraints": {"profile.big.p50_ms": {"max": 1}}},
            r"^tune: .*\(got 'profile\.big\.p50_ms'\); valid: .*profile\.small\.p50_ms",
        ),
        (
            {"scheduler": {"scheduler": "asha", "grace_epochs": 3}},
            r"^tune\.scheduler\.grace_epochs: trials of 3 epoch.*\(got 3\)\. Raise finetune\.epochs",
        ),
    ],
)
def test_mistakes_are_known_before_anything_is_made(raw, tune, message):
    settings = parse(raw, **tune)
    with pytest.raises(ConfigError, match=message):
        check_settings(settings)


def test_trials_are_judged_by_a_metric_that_they_report(raw):
    settings = parse(raw | {"finetune": {"epochs": 3, "metric": "selective_accuracy"}})
    with pytest.raises(ConfigError, match=r"finetune\.metric: .*cannot judge.*valid: accuracy"):
        check_settings(settings)


def test_a_grid_of_as_many_points_as_trials_is_fine(raw):
    check_settings(parse(raw, searcher="grid", space={"finetune.batch_size": {"randint": [1, 20]}}))
    grids = {"finetune.batch_size": {"grid": [1, 2, 3, 4]}, "data.seed": {"grid": [1, 2, 3, 4, 5]}}
    check_settings(parse(raw, space=grids | LR))


def test_the_longest_trial_decides_whether_the_scheduler_can_stop_any(raw):
    scheduler = {"scheduler": "median", "grace_epochs": 3}
    check_settings(parse(raw, scheduler=scheduler, space={"finetune.epochs": {"choice": [2, 4]}}))
    with pytest.raises(ConfigError, match=r"trials of 3 epoch"):
        check_settings(parse(raw, scheduler=scheduler, space={"finetune.epochs": {"choice": [2, 3]}}))


def test_a_cascade_needs_variants(raw):
    raw.pop("compress")
    with pytest.raises(ConfigError, match=r"tune: .*needs compress\.variants \(got 'certified\.cost'\)"):
        check_settings(parse(raw, objectives={"certified.cost": "min"}))


def test_values_that_do_not_go_together_are_named(raw):
    space = {
        "data.splits": {"choice": [{"train": 0.5, "test": 0.2}, {"train": 0.6, "test": 0.1}]},
        "data.splits.validation": {"choice": [0.1]},
    }
    with pytest.raises(ConfigError, match=r"tune\.space\.data\.splits\.validation: varies inside `data\.splits`"):
        parse(raw, space=space)
    shares = {
        "data.splits.train": {"choice": [0.6, 0.5]},
        "data.splits.test": {"choice": [0.1, 0.2]},
    }
    with pytest.raises(ConfigError, match=r"^tune\.space.*shares of .* must sum to 1"):
        check_settings(parse(raw, space=shares))


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"searcher": "bayes"}, r"tune\.searcher: .*unknown searcher \(got 'bayes'\); valid: grid, random, tpe"),
        ({"scheduler": "hyperband"}, r"tune\.scheduler: .*\(got 'hyperband'\); valid: asha, median, none"),
        ({"space": {"nonsense.x": {"choice": [1]}}}, r"tune: space: `nonsense\.x` cannot vary; .*: model, task, data"),
        ({"space": {"finetune.x": {"uniform": [2, 1]}}}, r"tune\.space\.finetune\.x: uniform needs a lower"),
        ({"sapce": {}}, r"tune\.sapce: unknown key; did you mean `space`"),
    ],
)
def test_mistakes_that_are_known_when_the_file_is_read(raw, tune, message):
    with pytest.raises(ConfigError, match=message):
        parse(raw, **tune)


def test_a_sweep_needs_labelled_texts_and_a_section(raw):
    text = {"output": raw["output"], "documents": {"source": "x.txt"}, "tune": raw["tune"]}
    with pytest.raises(ConfigError, match="`tune` needs `data`"):
        Settings.parse(text)
    raw.pop("tune")
    with pytest.raises(ConfigError, match=r"^tune: .*Add a section `tune`"):
        check_settings(Settings.parse(raw))


@pytest.mark.parametrize(
    ("tune", "have", "node", "expected"),
    [
        ({}, {"CPU": 4}, 4, (1, 0, 4)),
        ({}, {"CPU": 0.5}, 0.5, (0.5, 0, 1)),
        ({"concurrent": 3}, {"CPU": 4}, 4, (1, 0, 3)),
        ({"trial": {"cpus": 0.1}}, {"CPU": 0.3}, 0.3, (0.1, 0, 3)),
        ({"trial": {"cpus": 1.5}}, {"CPU": 8}, 4, (1.5, 0, 5)),
        ({}, {"CPU": 8, "GPU": 2}, 8, (1, 1, 2)),
        ({"trial": {"gpus": 0.25}}, {"CPU": 8, "GPU": 1}, 8, (1, 0.25, 4)),
        ({"trial": {"gpus": 0}}, {"CPU": 8, "GPU": 2}, 8, (1, 0, 8)),
        ({"objectives": {"profile.full.p50_ms": "min"}}, {"CPU": 8}, 4, (4, 0, 2)),
        ({"objectives": {"certified.cost": "min"}, "trial": {"cpus": 2}}, {"CPU": 8}, 4, (2, 0, 4)),
    ],
)
def test_what_a_trial_reserves_and_how_many_fit(raw, tune, have, node, expected):
    found = reserve_for(parse(raw, **tune), have, {"CPU": node, "GPU": have.get("GPU", 0)})
    assert (found.cpus, found.gpus, found.concurrent, found.fresh) == (*expected, False)


def test_gpus_that_training_does_not_use_are_not_reserved(raw):
    raw["finetune"]["workers"] = {"use_gpu": False}
    assert reserve_for(parse(raw), {"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 2}).gpus == 0


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ({"cpus": 5}, r"^tune\.trial\.cpus: a trial asks for 5 CPU of one node, there are 4 \(got 5\.0\)\. Lower"),
        ({"gpus": 2}, r"^tune\.trial\.gpus: a trial asks for 2 GPU of one node, there are 1 \(got 2\.0\)\. Lower"),
    ],
)
def test_a_trial_that_fits_on_no_node_is_refused(raw, trial, message):
    with pytest.raises(ResourceError, match=message):
        reserve_for(parse(raw, trial=trial), {"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 1})


def test_trials_with_workers_of_their_own(raw):
    raw["finetune"]["workers"] = {"num_workers": 2, "cpus_per_worker": 1}
    found = reserve_for(parse(raw), {"CPU": 8}, {"CPU": 4})
    assert (found.gpus, found.concurrent, found.fresh) == (0, 3, True)
    assert found.cpus < 0.1
    assert reserve_for(parse(raw, concurrent=2), {"CPU": 8}, {"CPU": 4}).concurrent == 2


def test_workers_that_do_not_fit_are_refused(raw):
    raw["finetune"]["workers"] = {"num_workers": 4, "cpus_per_worker": 1}
    with pytest.raises(UserError, match=r"finetune\.workers\.num_workers: .*4 worker"):
        reserve_for(parse(raw), {"CPU": 4}, {"CPU": 4})


def test_data_and_model_are_prepared_for_every_combination(raw):
    space = LR | {
        "model": {"choice": [{"name": "a"}, {"name": "b"}]},
        "data.seed": {"randint": [1, 2]},
        "task.max_length": {"choice": [16], "when": {"model": {"name": "a"}, "finetune.scheduler": "linear"}},
        "finetune.scheduler": {"choice": ["linear", "other"]},
    }
    settings = parse(raw, space=space)
    keys = {shared_key(point) for point in points_to_prepare(settings)}
    assert len(keys) == len(points_to_prepare(settings)) == 6
    random = np.random.default_rng(0)
    assert {shared_key(Space(settings.tune.space).draw(random)) for _ in range(100)} == keys
    assert points_to_prepare(parse(raw)) == [{}]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"data.seed": {"randint": [0, 64]}},
            r"^tune\.space: more than 64 combinations of data\.seed: the data are prepared for each.*Vary fewer",
        ),
        ({"data.seed": {"randint": [0, 2**31]}}, r"^tune\.space: more than 64 combinations"),
        (
            {"data.splits.train": {"uniform": [0.1, 0.2]}},
            r"^tune\.space\.data\.splits\.train: uniform has infinitely many values",
        ),
    ],
)
def test_too_many_combinations_to_prepare_are_refused(raw, space, message):
    with pytest.raises(ConfigError, match=message):
        points_to_prepare(parse(raw, space=space))
    assert len(points_to_prepare(parse(raw, space={"data.seed": {"randint": [1, 64]}}))) == 64
