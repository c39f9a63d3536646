"""Mistakes that are known before work starts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.commands.predict import Request, predict
from lspm_ray.commands.preflight import check
from lspm_ray.errors import ConfigError, ModelError, UserError
from lspm_ray.models.base import base
from lspm_ray.pipeline import STAGES
from lspm_ray.settings import Settings
from tests.toys import toy_model_dir


@pytest.fixture
def raw(tmp_path):
    """A configuration in which nothing is wrong."""
    texts = [f"dress number {number}" for number in range(20)]
    pq.write_table(pa.table({"text": texts, "label": [n % 2 for n in range(20)]}), tmp_path / "data.parquet")
    return {
        "output": str(tmp_path / "run"),
        "model": {"name": str(toy_model_dir(tmp_path / "model"))},
        "data": {"source": str(tmp_path / "data.parquet"), "text": "text", "label": "label"},
        "task": {"task": "text_classification", "max_length": 64},
        "compress": {"variants": {"small": {"recipe": [{"method": "distill_layers", "layers": 2}, "prune"]}}},
        "cluster": {"num_cpus": 2, "num_gpus": 0},
    }


def test_what_fits_is_said(raw):
    assert any(
        line.startswith("model: ")
        and line.endswith("bert, 0 MB of weights, tokenizer loads, fits the task and the recipes")
        for line in check(Settings.parse(raw), STAGES)
    )


@pytest.mark.parametrize("made", [False, True], ids=["fresh", "model already in the store"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": {"task": "text_classification", "max_length": 65}}, ConfigError, r"task\.max_length: .* 64 tokens"),
        (
            {"compress": {"variants": {"deep": {"recipe": [{"method": "distill_layers", "layers": 3}]}}}},
            ModelError,
            r"compress\.variants\.deep\.recipe\.0: `distill_layers` does not fit the model: .*has 2 layers \(got 3\)",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(raw, made, changes, error, message):
    settings = Settings.parse(raw | changes)
    if made:
        base(settings.model, ArtifactStore(settings.output))
    with pytest.raises(error, match=message):
        check(settings, STAGES[1:] if made else STAGES)


def test_sample_before_a_run_says_what_to_run_first(raw, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(raw))
    request = Request(texts=[], file=None, out=None, sample=8, offline=False, url=None)
    with pytest.raises(
        UserError, match=r"stage `base` has not been run yet.*First: lspm run .*mine\.yaml data\.seed=1"
    ):
        predict(file, ["data.seed=1"], request)


@pytest.mark.parametrize("first", ["small", "full", None])
def test_first_names_a_model_that_there_will_be(raw, first):
    assert Settings.parse(raw | {"select": {"first": first}}).select.first == first


def test_first_that_names_none_is_refused(raw):
    with pytest.raises(
        ConfigError, match=r"1 problem.*\n.*select: first: no such variant \(got 'no'\); valid: full, small"
    ):
        Settings.parse(raw | {"select": {"first": "no"}})
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*compress\.variants"):
        Settings.parse(raw | {"select": {"first": "no"}, "compress": {"variants": 1}})
