import shutil
from pathlib import Path

import numpy as np
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.calibration import by_entropy, by_percentile, check_rows, collect_ranges, training_rows
from lspm_ray.compression.export import export
from lspm_ray.compression.graph import Graph, load, session_of
from lspm_ray.compression.int8 import watched_by
from lspm_ray.corpus.shards import read_split
from lspm_ray.errors import ConfigError
from tests.toy_corpus import toy_corpus
from tests.toys import toy_model_dir


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_corpus(ArtifactStore(str(tmp_path_factory.mktemp("store"))))


def test_rows_are_those_of_the_training_split_and_of_no_other(data):
    first = [list(row) for row in read_split(data, "train", ["input_ids"])["input_ids"].to_pylist()[:450]]
    for split in ("validation", "selection", "calibration", "test"):
        shutil.rmtree(Path(data.uri) / split)
    found = training_rows(data, 450)  # of both shards
    assert [row.tolist() for row in found] == first


def test_more_rows_than_there_are(data):
    check_rows(data, 800, "x.calibration_rows")
    with pytest.raises(ConfigError, match=r"x\.calibration_rows: the training split has 800 rows \(got 801\); valid:"):
        check_rows(data, 801, "x.calibration_rows")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    (root / "onnx").mkdir()
    return Graph(load(export(toy_model_dir(root / "torch"), root / "onnx", "fp32")))


def rows(count=24):
    random = np.random.default_rng(0)
    return [random.integers(5, 90, random.integers(2, 20)) for _ in range(count)]


def values(graph):
    """All values of every tensor, in memory at once: what the code under test avoids."""
    names = watched_by(graph)
    session = session_of(graph.watched(names))
    runs = [
        session.run(names, {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), int)}) for row in rows()
    ]
    return {name: np.concatenate([run[index].ravel() for run in runs]) for index, name in enumerate(names)}


@pytest.mark.parametrize("threads", [1, 2])
def test_minmax_is_the_whole_range(graph, threads):
    found = collect_ranges(graph, rows(), "minmax", 99.9, threads)
    assert found == {name: (value.min(), value.max()) for name, value in values(graph).items()}


def test_percentile_leaves_out_as_many_values_as_it_says(graph):
    found = collect_ranges(graph, rows(), "percentile", 98.0, 2)
    kept = {}
    for name, value in values(graph).items():
        low, high = found[name]
        kept[name] = ((value >= low) & (value <= high)).mean()
        assert value.min() - 1e-6 <= low < high <= value.max() + 1e-6
    # More stay where many values lie close to an end, as those of GELU and tanh do.
    assert 0.979 <= min(kept.values()) < 0.981 and max(kept.values()) < 0.996


def test_entropy_is_inside_the_range(graph):
    whole, found = (collect_ranges(graph, rows(), name, 99.9, 2) for name in ("minmax", "entropy"))
    assert all(whole[name][0] <= low < high <= whole[name][1] for name, (low, high) in found.items())
    assert found != whole


def test_percentile_of_a_known_histogram():
    histogram = np.array([1, 0, 0, 49, 49, 0, 0, 1])
    assert by_percentile(histogram, (-4.0, 4.0), 98.0) == (-1.0, 1.0)
    assert by_percentile(histogram, (-4.0, 4.0), 99.0) == (-4.0, 4.0)
    assert by_percentile(histogram, (-4.0, 4.0), 100.0) == (-4.0, 4.0)


def test_entropy_cuts_a_lone_outlier_and_not_a_uniform_range():
    random = np.random.default_rng(0)
    sample = np.append(random.normal(0, 1, 100_000), 40.0)
    ends = (float(sample.min()), 40.0)
    low, high = by_entropy(np.histogram(sample, 2048, ends)[0], ends)
    assert -4.5 < low < -2.5 and 2.5 < high < 20
    ends = (-1.0, 1.0)
    low, high = by_entropy(np.histogram(random.uniform(-1, 1, 100_000), 2048, ends)[0], ends)
    assert low < -0.9 and high > 0.9
    assert by_entropy(np.array([5]), (0.0, 0.0)) == (0.0, 0.0)
