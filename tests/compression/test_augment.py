"""Altered copies of training rows, and that students learn from them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.augment import Alter, AugmentConfig, augmented_rows
from lspm_ray.compression.compress import CompressConfig, compress
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import class_counts, split_files
from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.tasks import Task
from tests.toy_corpus import toy_corpus
from tests.toys import toy_model_artifact, toy_tokenizer

TASK = Task.make("text_classification")
BAG = {
    "method": "distill_bag",
    "buckets": 512,
    "embedding_size": 8,
    "train": {"epochs": 1, "batch_size": 16, "precision": "fp32", "metric": "loss"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    return store, toy_corpus(store), toy_model_artifact(store, "finetune", "bert")


def table_of(artifact):
    return pa.concat_tables([pq.read_table(file) for file in split_files(artifact, "train", run_serially)])


def made(world, **config):
    store, data, full = world
    return augmented_rows(AugmentConfig(**config), full, data, store, lambda _: None, run_serially)


rows = st.lists(st.integers(10, 60), min_size=0, max_size=40).map(lambda ids: np.array([1, *ids, 2], dtype=np.int32))


@given(rows, st.integers(0, 2**32 - 1), st.floats(0, 0.99), st.floats(0, 1), st.floats(0.01, 1))
def test_special_tokens_stay_and_others_are_hidden_or_a_run(ids, seed, mask, run, shortest):
    alter = Alter(AugmentConfig(mask=max(mask, 0.01), run=run, shortest=shortest), hidden=4, special=(0, 1, 2, 3, 4))
    found = alter(ids, np.random.default_rng(seed))
    assert (found[0], found[-1]) == (1, 2)
    left = found[1:-1]
    count = len(ids) - 2
    assert min(count, max(1, round(shortest * count))) <= len(left) <= count
    starts = range(count - len(left) + 1)
    windows = [ids[1 + start : 1 + start + len(left)] for start in starts]
    assert any(((left == window) | (left == 4)).all() for window in windows)


def test_so_many_tokens_are_hidden_and_so_many_rows_cut():
    ids = np.arange(10, 110, dtype=np.int32)
    random = np.random.default_rng(0)
    hide = Alter(AugmentConfig(mask=0.2, run=0), hidden=4, special=())
    assert np.mean([(hide(ids, random) == 4).mean() for _ in range(200)]) == pytest.approx(0.2, abs=0.02)
    cut = Alter(AugmentConfig(mask=0, run=0.3, shortest=0.1), hidden=4, special=())
    lengths = np.array([len(cut(ids, random)) for _ in range(2000)])
    assert (lengths < 100).mean() == pytest.approx(0.3, abs=0.04)
    assert lengths.min() >= 10


def test_copies_of_all_training_rows_without_labels_always_the_same(world, tmp_path):
    first = made(world, copies=3)
    table = table_of(first)
    assert first.manifest.summary["rows"] == table.num_rows == 3 * sum(class_counts(world[1], "train"))
    assert set(table["label"].to_pylist()) == {-1}
    again = augmented_rows(
        AugmentConfig(copies=3), world[2], world[1], ArtifactStore(str(tmp_path)), lambda _: None, run_serially
    )
    assert table_of(again).equals(table)
    assert not table_of(made(world, copies=3, seed=1)).equals(table)


def test_students_learn_from_the_copies_as_well(world):
    store, data, full = world
    lines = []
    for augment in (None, {"copies": 2}):
        raw = {"variants": {"bag": {"recipe": [BAG]}}, "augment": augment}
        compress(CompressConfig.parse(raw), TASK, full, data, store, lines.append, here=1)
    steps = -(-sum(class_counts(data, "train")) // 16)
    totals = {int(line.split(",")[0].rpartition("/")[2]) for line in lines if ": step " in line}
    assert totals == {steps, -(-3 * sum(class_counts(data, "train")) // 16)}


def test_a_tokenizer_without_a_stand_in_is_refused():
    tokenizer = toy_tokenizer()
    tokenizer.mask_token = tokenizer.unk_token = None
    with pytest.raises(ModelError, match=r"compress\.augment\.mask: .*neither a mask token nor an unknown one"):
        Alter.of(AugmentConfig(), tokenizer)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"augment": {"mask": 0, "run": 0}}, "nothing would be altered"),
        ({"augment": {"mask": 1}}, r"augment\.mask"),
        ({"augment": {}, "variants": {"a": {"recipe": ["quantize_int8"]}}}, "augment: no recipe has a method"),
    ],
)
def test_bad_settings_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        CompressConfig.parse(raw)
