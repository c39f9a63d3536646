"""Texts without labels: which become rows, how they are mixed in, and that students learn from them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import log_softmax

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.compress import CompressConfig, compress
from lspm_ray.compression.unlabelled import UnlabelledConfig, mix, unlabelled_rows
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import read_split, split_files
from lspm_ray.errors import ConfigError, DataError
from lspm_ray.evaluation.outputs import logits_array
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.tasks import Task
from tests.toy_corpus import toy_corpus
from tests.toys import toy_model_artifact, toy_texts, toy_tokenizer

TASK = Task.make("text_classification")
BAG = {
    "method": "distill_bag",
    "buckets": 512,
    "embedding_size": 8,
    "train": {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "precision": "fp32", "metric": "loss"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    return store, toy_corpus(store), toy_model_artifact(store, "finetune", "bert")


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def rows_of(world, source, **config):
    store, data, full = world
    settings = UnlabelledConfig.parse({"source": source, "text": "body"} | config)
    return unlabelled_rows(settings, TASK, full, data, store, lambda _: None, run_serially)


def table_of(artifact):
    return pa.concat_tables([pq.read_table(file) for file in split_files(artifact, "train", run_serially)])


def encoded(texts):
    return sorted(list(row) for row in TASK.encode(texts, toy_tokenizer()))


def test_texts_become_rows_without_a_label(world, tmp_path):
    texts = toy_texts(40, seed=7)
    made = rows_of(world, jsonl(tmp_path / "a.jsonl", [*texts, texts[0], ""]), near_duplicates=False)
    table = table_of(made)
    assert sorted(table["input_ids"].to_pylist()) == encoded(texts)
    assert set(table["label"].to_pylist()) == {-1}
    assert made.manifest.summary["rows"] == 40 and made.manifest.summary["dropped"]["exact duplicate"] == 1


@pytest.mark.parametrize("split", ["validation", "selection", "calibration", "test"])
def test_held_out_texts_are_left_out(world, tmp_path, split):
    held_out = max(read_split(world[1], split, ["text"])["text"].to_pylist(), key=lambda text: len(text.split()))
    run, fresh = " ".join(held_out.split()[:13]), toy_texts(20, seed=8)
    assert len(run.split()) == 13
    texts = [held_out.upper() + "!", f"before it {run} and after", *fresh]
    made = rows_of(world, jsonl(tmp_path / "a.jsonl", texts), near_duplicates=False)
    assert sorted(table_of(made)["input_ids"].to_pylist()) == encoded(fresh)
    assert sum(made.manifest.summary["dropped"].values()) == 2


def test_training_texts_may_be_seen_again(world, tmp_path):
    texts = read_split(world[1], "train", ["text"])["text"].to_pylist()[:30]
    held_out = set(read_split(world[1], "test", ["text"])["text"].to_pylist())
    made = rows_of(world, jsonl(tmp_path / "a.jsonl", texts), near_duplicates=False)
    assert made.manifest.summary["rows"] == len(set(texts) - held_out)


def test_max_rows_is_always_the_same_choice(world, tmp_path):
    texts = toy_texts(60, seed=9)
    source = jsonl(tmp_path / "a.jsonl", texts)
    made = rows_of(world, source, max_rows=25, near_duplicates=False)
    chosen = sorted(table_of(made)["input_ids"].to_pylist())
    assert len(chosen) == 25 and chosen != encoded(texts[:25])
    again = rows_of(world, jsonl(tmp_path / "b.jsonl", texts[::-1]), max_rows=25, near_duplicates=False)
    assert sorted(table_of(again)["input_ids"].to_pylist()) == chosen


def test_long_texts_are_cut_as_labelled_ones_are(world, tmp_path):
    text = " ".join(["dress"] * 90 + ["good"] * 90)  # the corpus cuts texts to 500 characters
    made = rows_of(world, jsonl(tmp_path / "a.jsonl", [text, *toy_texts(9)]), near_duplicates=False)
    expected = encoded([text[:500].rstrip()])[0]
    assert expected in table_of(made)["input_ids"].to_pylist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "no/such/file.jsonl"}, r"compress\.unlabelled\.source: no such file.*no/such/file\.jsonl"),
        ({"text": "words"}, r"compress\.unlabelled\.text: .*body"),
    ],
)
def test_mistakes_are_named_as_the_user_wrote_them(world, tmp_path, change, message):
    source = jsonl(tmp_path / "a.jsonl", toy_texts(20))
    with pytest.raises(DataError, match=message):
        rows_of(world, **({"source": source} | change))


def test_nothing_left_is_an_error(world, tmp_path):
    texts = read_split(world[1], "calibration", ["text"])["text"].to_pylist()[:20]
    with pytest.raises(DataError, match=r"compress\.unlabelled\.source: no document is left of 20"):
        rows_of(world, jsonl(tmp_path / "a.jsonl", texts))


@pytest.mark.parametrize("rows", [(30_000, 9_000), (5, 700), (1, 1)])
def test_mixed_rows_are_all_there_and_spread_evenly(tmp_path, rows):
    store = ArtifactStore(str(tmp_path))

    def taught(name, count, label, parts):
        def build(draft):
            (draft.path / "train").mkdir()
            for number, share in enumerate(np.array_split(np.arange(count), parts)):
                ids = pa.array([[int(row)] for row in share], pa.list_(pa.int32()))
                columns = {"input_ids": ids, "label": pa.array(np.full(len(share), label))}
                columns["teacher_logits"] = logits_array(np.stack([share, share], axis=1).astype(np.float32))
                pq.write_table(pa.table(columns), draft.path / "train" / f"part-{number:05d}.parquet")

        return store.make("teach", {"name": name}, {}, build)

    sources = {"labelled": taught("labelled", rows[0], 1, 3), "more": taught("more", rows[1], -1, 1)}
    made = mix(sources, store, lambda _: None)
    table = table_of(made)
    assert made.manifest.summary["rows"] == sum(rows) == table.num_rows
    ids, labels = np.concatenate(table["input_ids"].to_pylist()), table["label"].to_numpy()
    for label, count in ((1, rows[0]), (-1, rows[1])):
        assert sorted(ids[labels == label].tolist()) == list(range(count))
    assert all(logits == [float(row)] * 2 for row, logits in zip(ids, table["teacher_logits"].to_pylist(), strict=True))
    if min(rows) > 1000:
        shares = [(labels[start : start + 1024] == 1).mean() for start in range(0, len(labels) - 1024, 1024)]
        assert np.ptp(shares) < 0.15


def variants_of(world, unlabelled, lines=None, **recipes):
    store, data, full = world
    raw = {"variants": {name: {"recipe": [spec]} for name, spec in recipes.items()}}
    config = CompressConfig.parse(raw | ({"unlabelled": unlabelled} if unlabelled else {}))
    return compress(config, TASK, full, data, store, [].append if lines is None else lines.append, here=1)


def divergence(world, student, texts):
    examples = TASK.encode(texts, toy_tokenizer())
    full, mine = (log_softmax(load_predictor(m.local(), 1).predict(examples), axis=1) for m in (world[2], student))
    return float((np.exp(full) * (full - mine)).sum(axis=1).mean())


def test_a_student_learns_from_texts_without_labels(world, tmp_path):
    source = {"source": jsonl(tmp_path / "a.jsonl", toy_texts(800, seed=3)), "text": "body"}
    lines = []
    without = variants_of(world, None, lines, bag=BAG)["bag"]
    both = variants_of(world, source, lines, bag=BAG, labelled=BAG | {"distill": {"unlabelled": False}})
    fresh = toy_texts(200, seed=4)
    assert divergence(world, both["bag"], fresh) < 0.8 * divergence(world, without, fresh)
    assert divergence(world, both["labelled"], fresh) == divergence(world, without, fresh)
    # The schedule counts all rows: 800 of either kind, 16 at a time, 4 times over.
    assert {line.split(",")[0].rpartition("/")[2] for line in lines if ": step " in line} == {"200", "400"}


def test_other_texts_make_another_student(world, tmp_path):
    made = [
        variants_of(world, {"source": jsonl(tmp_path / f"{seed}.jsonl", toy_texts(60, seed)), "text": "body"}, bag=BAG)
        for seed in (5, 6)
    ]
    assert len({variants["bag"].uri for variants in made}) == 2
    moved = {"source": jsonl(tmp_path / "moved.jsonl", toy_texts(60, 5)), "text": "body", "max_rows": 1000}
    kept = {"source": str(tmp_path / "5.jsonl"), "text": "body"}
    assert variants_of(world, kept, bag=BAG)["bag"].uri == made[0]["bag"].uri
    assert variants_of(world, moved, bag=BAG)["bag"].uri == made[0]["bag"].uri  # the same rows after all


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (["quantize_int8"], "no recipe has a method that learns from texts without labels"),
        ([BAG | {"distill": {"unlabelled": False}}], "no recipe has a method"),
        ([BAG | {"distill": {"weight": 0}}], r"variants\.a\.recipe\.0\.distill\.weight: with 0 nothing is learnt"),
    ],
)
def test_texts_that_nobody_learns_from_are_refused(recipe, message):
    with pytest.raises(ConfigError, match=message):
        CompressConfig.parse({"variants": {"a": {"recipe": recipe}}, "unlabelled": {"source": "x.jsonl"}})


@pytest.mark.ray
def test_on_a_cluster_it_is_the_same_but_for_rounding(ray_cluster, world, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", toy_texts(300, seed=11))
    mixed = []
    for name, here in (("a", 1), ("b", None)):
        store = ArtifactStore(str(tmp_path / name))
        full = toy_model_artifact(store, "finetune", "bert")
        raw = {"variants": {"bag": {"recipe": [BAG]}}, "unlabelled": {"source": source, "text": "body"}}
        compress(CompressConfig.parse(raw), TASK, full, world[1], store, lambda _: None, here=here)
        mixed.append(table_of(next(a for a in store.artifacts() if a.manifest.stage == "mix")))
    here, there = mixed
    assert here.select(["input_ids", "label"]) == there.select(["input_ids", "label"])
    logits = [np.stack(table["teacher_logits"].to_numpy()) for table in mixed]
    assert np.allclose(*logits, atol=1e-4)
