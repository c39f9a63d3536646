import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ConfigError
from lspm_ray.inference.predictor import Predictor
from lspm_ray.profiling.baselines import linear, majority
from lspm_ray.profiling.measure import Bench, Candidate, size_mb, summarize
from lspm_ray.profiling.profile import ProfileConfig, _speeds
from lspm_ray.tasks import Task
from tests.toy_corpus import toy_corpus
from tests.toys import toy_model_artifact, toy_model_dir


def test_bench_measures_the_served_object(tmp_path):
    artifact = toy_model_artifact(ArtifactStore(str(tmp_path)), "toy")
    bench = Bench(Candidate.of(artifact, 1, False).load, [np.arange(5, 5 + n) for n in range(1, 12)], cell_s=0.02)
    assert bench.load_time() > 0
    assert len(bench.latencies()) >= 2 and min(bench.latencies()) > 0
    assert bench.rows_per_s(8) > 0
    assert bench.peak_memory_mb() > 50


def test_every_example_is_used_in_turn(tmp_path):
    artifact = toy_model_artifact(ArtifactStore(str(tmp_path)), "toy")
    bench = Bench(Candidate.of(artifact, 1, False).load, [np.array([n]) for n in (1, 2, 3)], cell_s=0.01)
    start = bench._next
    taken = [int(example[0]) for example in bench._take(7)]
    assert taken == [(start + i) % 3 + 1 for i in range(7)]


class Crowded(Predictor):
    """Answers the first label alone, and the second in a batch whose longest row is at least twice as long."""

    def predict(self, batch):
        longest = max(map(len, batch))
        return np.array([[1.0, float(longest >= 2 * len(row)) * 2] for row in batch], dtype=np.float32)


def test_answers_that_depend_on_the_batch_are_counted(tmp_path):
    rows = [np.arange(length) for length in (1, 1, 1, 4)]
    found = Bench(lambda: Crowded(["a", "b"]), rows, cell_s=0.01).company(4)
    assert (found.rows, found.changed) == (4, 3)
    assert found.largest == pytest.approx(0.4621, abs=1e-4)
    toy = toy_model_artifact(ArtifactStore(str(tmp_path)), "toy")
    plain = Bench(Candidate.of(toy, 1, False).load, [np.arange(5, 5 + n) for n in range(1, 30)], cell_s=0.01)
    assert plain.company(8).changed == 0 and plain.company(8).largest < 1e-5


def test_what_never_joins_rows_has_no_company():
    Alone = type("Alone", (Crowded,), {"joins_rows": False})  # noqa: N806
    assert Bench(lambda: Alone(["a", "b"]), [np.arange(3)], cell_s=0.01).company(4) is None


def test_peak_memory_never_falls():
    # In a process of its own: the peak of this one may long be higher than anything allocated here.
    code = """
import numpy as np
from lspm_ray.inference.predictor import Predictor
from lspm_ray.profiling.measure import peak_memory_mb
before = peak_memory_mb()
block = np.ones(30_000_000)
during = peak_memory_mb()
del block
print(before, during, peak_memory_mb())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, during, after = map(float, output.split())
    assert before + 200 <= during <= after + 5  # the kernel counts in batches, give or take a few MB


def test_size_counts_what_the_runtime_needs(tmp_path):
    directory = toy_model_dir(tmp_path / "m")
    (directory / "model.onnx").write_bytes(b"x" * 2_000_000)
    assert size_mb(directory, "onnxruntime") == 2.0
    assert size_mb(directory, "torch") == (directory / "model.safetensors").stat().st_size / 1e6


def test_summary_is_the_median_of_medians_and_the_tail_of_all():
    rounds = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [4.0, 5.0, 6.0]]
    p50, p99 = summarize(rounds)
    assert p50 == 5.0
    assert p99 == pytest.approx(np.percentile(np.concatenate(rounds), 99))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "batch_sizes: List should have at least 1 item"),
        ([8, 0], r"batch_sizes\.1: Input should be greater than 0"),
        ([-8], r"batch_sizes\.0: Input should be greater than 0"),
    ],
)
def test_batch_sizes_that_cannot_be_measured(sizes, message):
    with pytest.raises(ConfigError, match=message):
        ProfileConfig.parse({"batch_sizes": sizes})


@pytest.mark.ray
@pytest.mark.parametrize("threads", [1, 2])
def test_several_threads_are_measured_beside_one(ray_cluster, tmp_path, threads):
    store = ArtifactStore(str(tmp_path))
    models = {name: toy_model_artifact(store, name) for name in ("full", "small")}
    config = ProfileConfig.parse({"batch_sizes": [1, 2], "rounds": 2, "cell_s": 0.01, "rows": 8, "threads": threads})
    task = Task.make("text_classification")
    speeds, encode_s, _ = _speeds(config.as_served(1, 0), task, models, toy_corpus(store), lambda _: None)
    assert encode_s > 0 and set(speeds) == set(models)
    for speed in speeds.values():
        assert speed.threads == threads
        assert (speed.one_thread is not None) == (threads > 1)
        if speed.one_thread is not None:
            assert set(speed.one_thread.rows_per_s) == {1, 2} and speed.one_thread.p50_ms > 0


def test_majority_is_the_class_shares():
    logits = majority([30, 70, 0], rows=2)
    assert logits.shape == (2, 3)
    assert np.exp(logits[0]) == pytest.approx([0.3, 0.7, 0.0], abs=1e-6)


def test_linear_baseline_learns_the_toy(tmp_path):
    from lspm_ray.corpus.shards import read_split

    data = toy_corpus(ArtifactStore(str(tmp_path)))
    logits, seconds = linear(data.uri, ["test", "selection"])
    assert set(logits) == {"test", "selection"} and seconds > 0
    truth = read_split(data, "test", ["label"])["label"].to_numpy()
    assert (logits["test"].argmax(1) == truth).mean() > 0.85
    assert np.exp(logits["test"]).sum(1) == pytest.approx(np.ones(len(truth)), abs=1e-5)


def labelled(store, texts):
    """A corpus of these texts in the training and the test split, labels in turn."""

    def build(draft):
        table = pa.table({"text": texts, "label": pa.array([row % 2 for row in range(len(texts))], pa.int64())})
        for split in ("train", "test"):
            (draft.path / split).mkdir()
            pq.write_table(table, draft.path / split / "part-00000.parquet")
        draft.summary["class_counts"] = {"train": [1, 1], "test": [1, 1]}

    return store.make("prepare", {"texts": texts}, {}, build)


@pytest.mark.parametrize(
    "texts",
    [["red dress", "blue shirt"], ["a b", "c d"], ["好", "坏"], ["!!", "??"], ["bad", "!"]],
    ids=["no word occurs twice", "words of one letter", "one sign each", "no words", "no word in some"],
)
def test_linear_baseline_is_fitted_whatever_the_texts(tmp_path, texts):
    logits, _ = linear(labelled(ArtifactStore(str(tmp_path)), texts).uri, ["test"])
    assert logits["test"].argmax(1).tolist() == [0, 1]
