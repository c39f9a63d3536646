import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.config import TuneConfig
from lspm_ray.tuning.goals import Goals, Limit

LR = {"finetune.learning_rate": {"loguniform": [1e-5, 1e-3]}}


def test_only_the_space_must_be_given():
    config = TuneConfig.parse({"space": LR})
    assert config.searcher["searcher"] == "tpe"
    assert config.scheduler == {"scheduler": "asha", "grace_epochs": 1, "reduction": 3.0}
    assert config.goals("accuracy") == Goals(objectives={"validation.accuracy": "max"})
    assert config.goals("loss") == Goals(objectives={"validation.loss": "min"})
    assert TuneConfig.parse({"space": LR, "searcher": "random"}).searcher == {"searcher": "random"}


def test_goals_are_what_was_asked_for():
    config = TuneConfig.parse(
        {"space": LR, "objectives": {"certified.cost": "min"}, "constraints": {"validation.accuracy": {"min": 0.8}}}
    )
    assert config.goals("loss") == Goals(
        objectives={"certified.cost": "min"}, constraints={"validation.accuracy": Limit(min=0.8)}
    )


def test_a_config_survives_its_yaml_form():
    config = TuneConfig.parse({"space": LR | {"model": {"choice": [{"name": "a"}]}}, "scheduler": "median"})
    assert TuneConfig.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "path", ["model", "model.name", "task.max_length", "data.seed", "select.min_saving", "compress.a.b"]
)
def test_fields_of_these_sections_vary(path):
    assert list(TuneConfig.parse({"space": {path: {"choice": [1]}}}).space) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space: .*at least 1"),
        (
            {"space": {"finetun.epochs": {"choice": [1]}}},
            r"`finetun\.epochs` cannot vary; .*: model, task, data, finetune, compress, select",
        ),
        ({"space": {"serve.port": {"choice": [1]}}}, r"`serve\.port` cannot vary"),
        ({"space": {"finetune": {"choice": [{}]}}}, "`finetune` cannot vary"),
        ({"space": {"tune.seed": {"choice": [1]}}}, r"`tune\.seed` cannot vary"),
        (
            {"space": {"finetune.learning_rate": {"loguniform": [0, 1]}}},
            r"space\.finetune\.learning_rate: loguniform needs numbers above zero",
        ),
        (
            {"space": {"finetune.x": {"choice": [1], "when": {"finetune.y": 1}}}},
            r"tune\.space\.finetune\.x\.when: no such field is varied \(got 'finetune\.y'\); valid: finetune\.x",
        ),
        (
            {"searcher": "bayes"},
            r"searcher: .*unknown searcher \(got 'bayes'\); valid: grid, random, tpe",
        ),
        ({"searcher": {"searcher": "tpe", "candidate": 1}}, r"candidate: unknown key; did you mean `candidates`"),
        ({"searcher": {"searcher": "tpe", "candidates": 0}}, r"candidates: .*greater than or equal to 1"),
        ({"searcher": None}, r"searcher: .*say which searcher; valid: grid, random, tpe"),
        ({"searcher": 3}, r"say which searcher \(got 3\); valid: grid, random, tpe"),
        (
            {"searcher": "grid"},
            r"tune\.space\.finetune\.learning_rate: loguniform has infinitely many.*; valid: choice, grid, randint",
        ),
        ({"scheduler": "hyperband"}, r"unknown scheduler \(got 'hyperband'\); valid: asha, median, none"),
        ({"scheduler": {"scheduler": "asha", "reduction": 1}}, r"reduction: .*greater than 1"),
        ({"objectives": {}}, "objectives: .*at least 1"),
        ({"objectives": {"validation.loss": "low"}}, r"objectives\.validation\.loss: .*'max' or 'min'.*got 'low'"),
        ({"constraints": {"validation.loss": {}}}, "give min, max or both"),
        ({"budget": {"trials": 0}}, r"budget\.trials: .*greater than or equal to 1 \(got 0\)"),
        ({"budget": {"hours": 1}}, r"budget\.hours: unknown key.*cpu_hours, minutes, trials"),
        ({"budget": {"minutes": 0}}, r"budget\.minutes: .*greater than 0"),
        ({"trial": {"cpus": 0}}, r"trial\.cpus: .*greater than 0"),
        ({"trial": {"gpus": -1}}, r"trial\.gpus: .*greater than or equal to 0"),
        ({"seeds": -1}, "seeds: .*greater than or equal to 0"),
        ({"space": {"select.alpha": {"uniform": [0.01, 0.1]}}}, "`select.alpha` cannot vary: a looser promise"),
        ({"space": {"finetune.seed": {"randint": [1, 9]}}}, "`finetune.seed` cannot vary"),
        (
            {"space": {"finetune.workers.num_workers": {"randint": [1, 9]}}},
            "`finetune.workers.num_workers` cannot vary",
        ),
        ({"finalist": 2}, "finalist: unknown key; did you mean `finalists`"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig.parse({"space": LR} | changes)
