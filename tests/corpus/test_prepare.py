import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.corpus.config import SPLITS
from lspm_ray.corpus.execute import _cpus_per_task, _Guarded, _rebuild, run_on_ray, run_serially
from lspm_ray.corpus.shards import class_counts, labels, read_split
from lspm_ray.corpus.sources import Layout
from lspm_ray.errors import ArtifactError, DataError, ResourceError, UserError

Make = Callable[..., Artifact]
REVIEWS = Path(__file__).parents[2] / "examples" / "data" / "reviews" / "reviews.parquet"


def outcome_of(step: Callable[[Any], Any], item: Any = None) -> Any:
    return json.loads(_Guarded(step)({"index": 3, "item": json.dumps(item)})["outcome"])


def test_results_pass_through() -> None:
    assert outcome_of(lambda item: {"twice": 2 * item["n"]}, {"n": 4}) == {"result": {"twice": 8}}


@pytest.mark.parametrize(
    "error",
    [
        DataError("no such column", field="data.text", value="a", valid=["b", 1], hint="Look again"),
        ArtifactError("bare"),
        DataError("odd value", value=["not", "JSON"]),
    ],
)
def test_a_users_mistake_comes_back_whole(error: UserError) -> None:
    def step(item: Any) -> Any:
        raise error

    back = _rebuild(outcome_of(step)["error"])
    assert type(back) is type(error)
    assert str(back).replace('"', "") == str(error).replace('"', "")
    assert back.field == error.field


def test_only_user_errors_are_rebuilt() -> None:
    with pytest.raises(TypeError, match="is no user error"):
        _rebuild({"type": "Iterable", "message": ""})


def test_a_full_disk_becomes_a_users_error_and_other_errors_stay() -> None:
    def step(item: Any) -> Any:
        raise OSError(item, "what happened", "/data/file")

    assert outcome_of(step, errno.ENOSPC)["error"]["type"] == "ResourceError"
    with pytest.raises(OSError, match="what happened"):
        outcome_of(step, errno.EIO)


def test_tasks_fit_on_any_cluster_that_has_a_cpu() -> None:
    assert [_cpus_per_task(cpus) for cpus in (0.5, 1, 2, 64)] == [0.25, 0.5, 0.5, 0.5]
    with pytest.raises(ResourceError, match="the cluster has no CPU"):
        _cpus_per_task(0)


@pytest.fixture
def reviews(tmp_path: Path) -> dict[str, Any]:
    """A config for 600 of the demo's reviews in three row groups, some without text."""
    table = pq.read_table(REVIEWS).slice(0, 600)
    pq.write_table(table, tmp_path / "reviews.parquet", row_group_size=200)
    return {
        "source": str(tmp_path / "reviews.parquet"),
        "text": ["Title", "Review Text"],
        "label": "Recommended IND",
        "labels": {0: "no", 1: "yes"},
        "rows_per_shard": 100,
    }


@pytest.mark.ray
def test_ray_gives_what_one_process_gives_however_the_work_is_cut(
    ray_cluster: None, reviews: dict[str, Any], make_corpus: Make, tmp_path: Path
) -> None:
    layouts = (Layout(), Layout(unit_bytes=10_000, unit_growth=1, chunk_rows=64, partition_bytes=100_000))
    made = [
        make_corpus(reviews, layout=layout, execute=run_on_ray, into=ArtifactStore(str(tmp_path / f"s{index}")))
        for index, layout in enumerate(layouts)
    ]
    alone = make_corpus(reviews, execute=run_serially)
    assert made[0].digest == made[1].digest == alone.digest
    made[0].verify()
    assert labels(made[0]) == ["no", "yes"]
    summary = made[0].manifest.summary
    missing = pq.read_table(reviews["source"], columns=["Review Text"])["Review Text"].null_count
    assert 0 < summary["dropped"]["no text"] <= missing
    assert summary["rows_read"] == 600 == summary["rows_kept"] + sum(summary["dropped"].values())
    assert [sum(class_counts(alone, split)) for split in SPLITS] == [
        read_split(made[1], split).num_rows for split in SPLITS
    ]


@pytest.mark.ray
def test_a_mistake_found_by_a_worker_reaches_the_user_as_it_is(
    ray_cluster: None, make_corpus: Make, tmp_path: Path
) -> None:
    rows = "".join(f"review {i},{i % 2 if i < 2000 else 'oops'}\n" for i in range(2001))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    config = {"source": str(tmp_path / "a.csv"), "text": "text", "label": "label", "labels": [0, 1]}
    with pytest.raises(DataError, match=r"data.labels: .* in line 2002 of a.csv \(got 'oops'\); valid: 0, 1"):
        make_corpus(config, execute=run_on_ray)
    assert not list((tmp_path / "store").glob("prepare-*"))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.ray
def test_pickled_objects_in_parquet_are_not_executed_where_ray_knows_their_type(
    ray_cluster: None, make_corpus: Make, tmp_path: Path
) -> None:
    """Ray registers an Arrow type whose values it unpickles: workers must refuse it too, not only a plain process."""
    payload = pickle.dumps(Canary(tmp_path / "canary"))
    meta = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": b""}
    schema = pa.schema([pa.field("text", pa.binary(), metadata=meta), pa.field("label", pa.int64())])
    for number, column in enumerate(([payload] * 2, [b"plain", b"bytes"])):
        plain = number == 1
        fields = pa.schema([pa.field("text", pa.binary()), pa.field("label", pa.int64())]) if plain else schema
        pq.write_table(pa.table([column, [0, 1]], schema=fields), tmp_path / f"{1 - number}.parquet")
    # The first file passes the first look; the second is met by a worker.
    config = {"source": f"{tmp_path}/*.parquet", "text": "text", "label": "label"}
    with pytest.raises(DataError, match=r"column 'text' of 1.parquet has a type that is not read"):
        make_corpus(config, execute=run_on_ray)
    assert not (tmp_path / "canary").exists()


@pytest.mark.ray
def test_who_gets_no_cpu_is_told_so(ray_cluster, monkeypatch):
    import ray

    monkeypatch.setattr("lspm_ray.corpus.execute._START_WITHIN_S", 1.0)
    holder = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(holder.ready())
    try:
        with pytest.raises(ResourceError, match=r"no task could start within 1 s.*holding"):
            list(run_on_ray(lambda item: item, [{}]))
    finally:
        ray.util.remove_placement_group(holder)
    assert list(run_on_ray(lambda item: item, [{"fine": 1}])) == [(0, {"fine": 1})]


@pytest.mark.ray
def test_a_task_keeps_to_its_share_of_a_cpu(ray_cluster):
    def threads_of_a_tokenizer(item):
        from tokenizers import Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        before = len(os.listdir("/proc/self/task"))
        tokenizer.encode_batch(["a a a"] * 1000)
        return {"started": len(os.listdir("/proc/self/task")) - before}

    assert [result for _, result in run_on_ray(threads_of_a_tokenizer, [{}])] == [{"started": 0}]
