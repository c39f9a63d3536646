"""The whole of `prepare`, run without a cluster."""

import errno
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.corpus.build import check_counts
from lspm_ray.corpus.config import SPLITS, DataConfig
from lspm_ray.corpus.consolidate import Keep, Match
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.pack import Pack
from lspm_ray.corpus.scan import Scan
from lspm_ray.corpus.shards import class_counts, labels, read_split, split_files
from lspm_ray.corpus.sources import Layout
from lspm_ray.errors import DataError, ResourceError
from tests.toys import WORDS

Make = Callable[..., Artifact]
FINE = Layout(unit_bytes=4000, unit_growth=1, most_parts=5, chunk_rows=19, chunk_characters=2000, partition_bytes=5000)


def text_of(number: int, length: int = 12) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=length)) + f" {number}"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Any]:
    """300 different texts of three classes in a file of their own, and the config for them."""
    rows = [{"text": text_of(i), "label": i % 3} for i in range(300)]
    return {"source": str(write_rows(tmp_path / "data" / "a.jsonl", rows)), "text": "text", "label": "label"}


def everything(artifact: Artifact) -> list[dict[str, Any]]:
    return [{**row, "split": split} for split in SPLITS for row in read_split(artifact, split).to_pylist()]


def stats(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = artifact.read_json("stats.json")
    return found


# Content


def test_every_row_is_there_once_with_id_label_and_tokens(corpus: dict[str, Any], make_corpus: Make) -> None:
    made = make_corpus(corpus)
    rows = everything(made)
    assert {row["text"] for row in rows} == {text_of(i) for i in range(300)}
    assert len(rows) == 300
    assert labels(made) == ["0", "1", "2"]
    for row in rows:
        assert row["id"] == hashlib.sha256(row["text"].encode()).hexdigest()
        assert row["label"] == int(row["text"].split()[-1]) % 3
        assert 4 <= len(row["input_ids"]) <= 32
    assert read_split(made, "train").schema.types == [pa.string(), pa.string(), pa.int64(), pa.list_(pa.int32())]
    made.verify()


def test_tokens_are_those_of_the_task(corpus: dict[str, Any], make_corpus: Make, tokenizer_artifact: Artifact) -> None:
    from lspm_ray.models.directory import load_tokenizer
    from lspm_ray.tasks import Task

    rows = read_split(make_corpus(corpus), "test").to_pylist()
    task = Task.make({"task": "text_classification", "max_length": 32})
    expected = task.encode([row["text"] for row in rows], load_tokenizer(tokenizer_artifact.local()))
    assert [row["input_ids"] for row in rows] == [ids.tolist() for ids in expected]


def test_splits_are_disjoint_and_near_their_shares(corpus: dict[str, Any], make_corpus: Make) -> None:
    made = make_corpus({**corpus, "splits": {"train": 0.4, "validation": 0.05, "selection": 0.05, "test": 0.4}})
    counts = {split: sum(class_counts(made, split)) for split in SPLITS}
    assert 5 <= counts["validation"] <= 30
    assert 85 < counts["train"] < 155
    assert 85 < counts["test"] < 155
    ids = [set(read_split(made, split)["id"].to_pylist()) for split in SPLITS]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 300


def test_shards_have_equal_sizes_and_a_random_order(corpus: dict[str, Any], make_corpus: Make) -> None:
    made = make_corpus({**corpus, "rows_per_shard": 50})
    tables = [pq.read_table(uri) for uri in split_files(made, "train")]
    sizes = [table.num_rows for table in tables]
    assert len(sizes) == -(-sum(sizes) // 50) > 1
    assert max(sizes) - min(sizes) <= 1
    numbers = [int(text.split()[-1]) for text in read_split(made, "train")["text"].to_pylist()]
    assert abs(np.corrcoef(numbers, range(len(numbers)))[0, 1]) < 0.25
    assert pa.concat_tables(tables).equals(read_split(made, "train"))


@pytest.mark.parametrize("near_duplicates", [True, False])
def test_the_result_depends_on_the_rows_alone(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path, near_duplicates: bool
) -> None:
    """Not on files, formats, order, the cutting of the work, or the order in which it is done."""
    rows = [{"text": text_of(i % 250, 40), "label": i % 3} for i in range(300)]
    rows += [{"text": text_of(i, 40).replace("a ", "the ", 1), "label": i % 2} for i in range(0, 90, 3)]
    whole = write_rows(tmp_path / "one" / "a.jsonl", rows)
    random.Random(0).shuffle(rows)
    for start in range(0, len(rows), 100):
        write_rows(tmp_path / "two" / f"{start}.jsonl", rows[start : start + 100])
    config = {**corpus, "near_duplicates": near_duplicates, "rows_per_shard": 64}

    def backwards(step: Any, items: Sequence[Any]) -> Iterator[Any]:
        for index in reversed(range(len(items))):
            yield index, step(items[index])

    made = [
        make_corpus({**config, "source": source}, layout=layout, execute=execute, into=ArtifactStore(str(tmp_path / n)))
        for n, source, layout, execute in (
            ("s0", str(whole), Layout(), run_serially),
            ("s1", str(whole), FINE, run_serially),
            ("s2", str(tmp_path / "two"), FINE, backwards),
        )
    ]
    assert len({artifact.digest for artifact in made}) == 1
    dropped = stats(made[0])["dropped"]
    assert dropped["exact duplicate"] >= 50
    assert ("near duplicate" in dropped) == near_duplicates


def test_another_seed_gives_other_splits_and_another_order(corpus: dict[str, Any], make_corpus: Make) -> None:
    first, second = make_corpus(corpus), make_corpus({**corpus, "seed": 1})
    ids = [read_split(made, "test")["id"].to_pylist() for made in (first, second)]
    assert set(ids[0]) != set(ids[1])


def test_near_equal_texts_are_in_one_split_because_one_of_them_stays(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path
) -> None:
    pairs = [text_of(i, 60) for i in range(80)]
    rows = [{"text": text, "label": i % 2} for i, text in enumerate([*pairs, *(text + " indeed" for text in pairs)])]
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    made = make_corpus({**corpus, "source": source})
    kept = [row["text"].removesuffix(" indeed") for row in everything(made)]
    assert sorted(kept) == sorted(pairs)
    assert stats(made)["dropped"] == {"near duplicate": 80}
    both = make_corpus({**corpus, "source": source, "near_duplicates": False})
    assert stats(both)["rows_kept"] == 160


def test_max_rows_takes_the_head_of_the_order_and_keeps_the_splits(corpus: dict[str, Any], make_corpus: Make) -> None:
    full = {row["id"]: row["split"] for row in everything(make_corpus(corpus))}
    for layout in (Layout(), FINE):
        made = make_corpus({**corpus, "max_rows": 120, "rows_per_shard": 1000}, layout=layout)
        some = {row["id"]: row["split"] for row in everything(made)}
        assert len(some) == 120
        assert some.items() <= full.items()
        assert stats(made)["dropped"] == {"beyond max_rows": 180}
    fewer = everything(make_corpus({**corpus, "max_rows": 90}))
    assert {row["id"] for row in fewer} < some.keys()
    assert make_corpus({**corpus, "max_rows": 10_000}).manifest.summary["rows_kept"] == 300


# Labels and splits from the data


def test_labels_can_be_named_ordered_and_merged(corpus: dict[str, Any], make_corpus: Make) -> None:
    made = make_corpus({**corpus, "labels": {2: "good", 0: "bad", 1: "bad"}})
    assert labels(made) == ["good", "bad"]
    assert sum(class_counts(made, split)[0] for split in SPLITS) == 100


def test_sixty_classes(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    rows = [{"text": text_of(i), "label": f"class {i % 60:02}"} for i in range(600)]
    made = make_corpus({**corpus, "source": str(write_rows(tmp_path / "b.jsonl", rows))})
    assert labels(made) == [f"class {i:02}" for i in range(60)]
    assert sum(class_counts(made, split)[59] for split in SPLITS) == 10


def test_a_label_that_is_missing_from_a_split_is_a_warning(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path
) -> None:
    rows = [{"text": text_of(i), "label": "rare" if i == 5 else i % 2} for i in range(100)]
    lines: list[str] = []
    made = make_corpus({**corpus, "source": str(write_rows(tmp_path / "b.jsonl", rows))}, lines=lines)
    warnings = made.manifest.summary["warnings"]
    assert len(warnings) == 4
    assert all("has label rare" in warning for warning in warnings)
    assert [line for line in lines if line.startswith("!")] == [f"! {warning}" for warning in warnings]


def test_a_column_can_name_the_splits(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    rows = [{"text": text_of(i), "label": i % 2, "part": SPLITS[i % 5] if i % 7 else None} for i in range(200)]
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    for row in everything(make_corpus({**corpus, "source": source, "split_column": "part"})):
        number = int(row["text"].split()[-1])
        assert row["split"] == (SPLITS[number % 5] if number % 7 else "train")


def test_splits_that_the_column_lacks_are_taken_from_train(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path
) -> None:
    rows = [{"text": text_of(i), "label": i % 2, "part": "train" if i % 3 else "test"} for i in range(300)]
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    made = make_corpus({**corpus, "source": source, "split_column": "part"})
    for row in everything(made):
        assert (row["split"] == "test") == (int(row["text"].split()[-1]) % 3 == 0)
    assert all(sum(class_counts(made, split)) >= 8 for split in SPLITS)


def test_a_test_source_is_the_test_split_and_its_copies_leave_the_rest(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path
) -> None:
    held_out = [{"text": text_of(i), "label": i % 3} for i in range(290, 330)]
    source = str(write_rows(tmp_path / "t.jsonl", held_out))
    made = make_corpus({**corpus, "test_source": source})
    assert {int(t.split()[-1]) for t in read_split(made, "test")["text"].to_pylist()} == set(range(290, 330))
    assert stats(made)["dropped"] == {"exact duplicate": 10}
    assert stats(made)["rows_kept"] == 330


def test_an_unknown_split_name(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    rows = [{"text": text_of(i), "label": i % 2, "part": "dev"} for i in range(20)]
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    with pytest.raises(
        DataError, match=r"data.split_column: not the name of a split, in byte 0 of b.jsonl.*'dev'.*train"
    ):
        make_corpus({**corpus, "source": source, "split_column": "part"})


# Accounting


def test_every_row_that_is_read_is_kept_or_counted(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    good: list[dict[str, Any]] = [{"text": text_of(i), "label": i % 2} for i in range(100)]
    poor: list[dict[str, Any]] = [
        {"text": " \u200b\n", "label": 1},
        {"text": None, "label": 1},
        {"text": "no label", "label": None},
        {"text": "x", "label": 1},
        good[3],
        {"text": f" {good[4]['text']}\r\n", "label": 1},
        {"text": good[5]["text"].upper() + "!", "label": 1},
        {"text": "y" * 500, "label": 0},
    ]
    path = write_rows(tmp_path / "b.jsonl", good + poor)
    path.write_bytes(path.read_bytes() + b'{"text": "\xff", "label": 1}\n{"text": \n[]\n')
    config = {**corpus, "source": str(path), "min_characters": 2, "max_characters": 200}
    for layout in (Layout(), FINE):
        found = stats(make_corpus(config, layout=layout, into=ArtifactStore(str(tmp_path / f"s{layout.unit_bytes}"))))
        assert found["dropped"] == {
            "exact duplicate": 2, "near duplicate": 1, "no label": 1, "no text": 2, "shorter than min_characters": 1,
        }  # fmt: skip
        assert found["quarantined"] == {"invalid JSON": 1, "invalid UTF-8": 1, "line is not a JSON object": 1}
        assert found["notes"] == {"cut to max_characters": 1, "texts with different labels": 1}
        assert found["rows_read"] == 111
        assert found["rows_kept"] == 101
        assert found["rows_read"] == found["rows_kept"] + sum(found["dropped"].values()) + 3


def test_the_quarantine_says_what_where_and_why_in_file_order(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path
) -> None:
    lines = [json.dumps({"text": text_of(i), "label": i % 2}) for i in range(200)]
    for bad in range(0, 200, 9):
        lines[bad] = f"broken {bad}"
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.csv").write_text(
        "text,label\n" + "\n".join("a" if i % 9 == 0 else f"{text_of(i)},{i % 2}" for i in range(2200))
    )
    for source, place in (("b.jsonl", "byte 0"), ("c.csv", "line 2")):
        contents = []
        for layout in (Layout(), FINE):
            into = ArtifactStore(str(tmp_path / f"s{layout.unit_bytes}"))
            made = make_corpus({**corpus, "source": str(tmp_path / source)}, layout=layout, into=into)
            contents.append(made.read_bytes("quarantine.jsonl"))
        assert contents[0] == contents[1]
        rejects = [json.loads(line) for line in contents[0].splitlines()]
        assert len(rejects) == sum(stats(made)["quarantined"].values())
        assert [reject["position"] for reject in rejects] == sorted(reject["position"] for reject in rejects)
        assert rejects[0]["file"] == source
        assert rejects[0]["place"] == place
        assert rejects[0]["raw"] in ("broken 0", "['a']")
    assert "quarantine.jsonl" not in make_corpus(corpus).manifest.files


def test_statistics_describe_the_corpus(corpus: dict[str, Any], make_corpus: Make) -> None:
    made = make_corpus(corpus)
    found = stats(made)
    for split in SPLITS:
        rows = read_split(made, split)
        counts = np.bincount(rows["label"].to_numpy(), minlength=3).tolist()
        assert class_counts(made, split) == counts == list(found["class_counts"][split].values())
        assert found["majority_share"][split] == pytest.approx(max(counts) / sum(counts), abs=1e-6)
        lengths = [len(ids) for ids in rows["input_ids"].to_pylist()]
        assert found["token_length"][split]["counts"] == np.bincount(lengths).tolist()
        assert found["token_length"][split]["max"] == max(lengths)
        assert sum(found["character_length"][split]["counts"]) == rows.num_rows
        assert made.manifest.summary["rows"][split] == rows.num_rows


# Bad data


def test_label_outside_the_set(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    """Far behind what the first look sees."""
    rows = [{"text": text_of(i), "label": i % 2 if i < 2500 else 7} for i in range(2501)]
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    with pytest.raises(DataError) as caught:
        make_corpus({**corpus, "source": source, "labels": {0: "no", 1: "yes"}})
    assert "data.labels: a label that is not in data.labels, in byte " in str(caught.value)
    assert caught.value.value == "7"
    assert caught.value.valid == ["0", "1"]


def test_more_labels_than_a_classifier_has(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    rows = [{"text": text_of(i), "label": f"id {i}"} for i in range(1500)]
    with pytest.raises(DataError, match="is this a column of labels"):
        make_corpus({**corpus, "source": str(write_rows(tmp_path / "b.jsonl", rows))})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data.source: the data set is empty"),
        (
            [{"text": "a", "label": None}, {"text": None, "label": 1}],
            "no row is usable: of 2 rows 1 no label, 1 no text",
        ),
        ([{"text": text_of(i), "label": 1} for i in range(50)], "only one class has rows.*'1'"),
        ([{"text": text_of(i), "label": i % 2} for i in range(4)], "split has no row; there are 4 rows in all"),
        ([{"text": "the same", "label": i % 2} for i in range(50)], "split has no row; there are 1 rows in all"),
    ],
)
def test_data_that_cannot_be_used(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    with pytest.raises(DataError, match=message):
        make_corpus({**corpus, "source": source})


def test_an_empty_csv_with_a_header(corpus: dict[str, Any], make_corpus: Make, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"data.source: the data set is empty"):
        make_corpus({**corpus, "source": str(tmp_path / "b.csv")})


def test_check_counts() -> None:
    config = data_config()
    counts = np.full((5, 2), 9)
    assert check_counts(counts, ["a", "b"], config) == []
    counts[0, 1] = 0
    with pytest.raises(DataError, match=r"only one class has rows in the train split.*'a'"):
        check_counts(counts, ["a", "b"], config)


@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        (
            "calibration",
            {},
            r"data\.splits\.calibration: the calibration split has no row; .* 72 .*got 0\.1.*larger share",
        ),
        ("test", {"test_source": "t.csv"}, r"data\.test_source: the test split has no row.*'t\.csv'"),
        (
            "selection",
            {"split_column": "part", "splits": {"train": 0.7, "selection": 0}},
            r"data\.split_column: the selection split has no row.*'part'.*or give data\.splits\.selection a share",
        ),
    ],
)
def test_an_empty_split_says_where_its_rows_should_come_from(split: str, changes: dict[str, Any], message: str) -> None:
    counts = np.full((5, 2), 9)
    counts[SPLITS.index(split)] = 0
    with pytest.raises(DataError, match=message):
        check_counts(counts, ["a", "b"], data_config(**changes))


def data_config(**changes: Any) -> DataConfig:
    return DataConfig.parse({"source": "x.csv", "text": "text", "label": "label", **changes})


# Running


def test_unchanged_input_is_not_prepared_again(corpus: dict[str, Any], make_corpus: Make) -> None:
    def never(step: Any, items: Any) -> Iterator[Any]:
        raise AssertionError("nothing is to be done")

    first = make_corpus(corpus)
    assert make_corpus(corpus, execute=never).digest == first.digest
    source = Path(corpus["source"])
    source.rename(source.with_name("b.jsonl"))
    moved = {**corpus, "source": str(source.with_name("b.jsonl"))}
    with pytest.raises(AssertionError):
        make_corpus(moved, execute=never)


def test_a_changed_file_is_noticed(corpus: dict[str, Any], make_corpus: Make) -> None:
    first = make_corpus(corpus)
    with Path(corpus["source"]).open("a") as file:
        file.write(json.dumps({"text": "one more lovely dress", "label": 1}) + "\n")
    assert make_corpus(corpus).manifest.summary["rows_kept"] == 301
    assert first.manifest.summary["rows_kept"] == 300


def test_the_order_of_named_labels_counts(corpus: dict[str, Any], make_corpus: Make) -> None:
    there = {0: "a", 1: "b", 2: "c"}
    back = dict(reversed(there.items()))
    assert labels(make_corpus({**corpus, "labels": there})) == ["a", "b", "c"]
    assert labels(make_corpus({**corpus, "labels": back})) == ["c", "b", "a"]


@pytest.mark.parametrize("dies_in", [Scan, Match, Keep, Pack])
def test_a_run_that_died_goes_on_where_it_was(
    corpus: dict[str, Any], make_corpus: Make, tmp_path: Path, dies_in: type
) -> None:
    expected = make_corpus(corpus, layout=FINE, into=ArtifactStore(str(tmp_path / "undisturbed")))

    def dying(step: Any, items: Sequence[Any]) -> Iterator[Any]:
        for index, result in run_serially(step, items):
            if isinstance(step, dies_in) and index == 1:
                raise KeyboardInterrupt
            yield index, result

    with pytest.raises(KeyboardInterrupt):
        make_corpus(corpus, layout=FINE, execute=dying)
    staged = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / ".work").rglob("*/rows/*")}
    assert staged

    def watching(step: Any, items: Sequence[Any]) -> Iterator[Any]:
        yield from run_serially(step, items)
        assert {path: path.stat().st_mtime_ns for path in staged} == staged

    made = make_corpus(corpus, layout=FINE, execute=watching)
    assert made.digest == expected.digest
    assert not list((tmp_path / "store" / ".work").rglob("*.*"))


def test_a_full_disk_is_an_error_for_the_user(corpus: dict[str, Any], make_corpus: Make) -> None:
    def full(step: Any, items: Any) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/part")

    with pytest.raises(ResourceError, match=r"store: cannot write: .*No space left.*/data/part.*Free space"):
        make_corpus(corpus, execute=full)


def test_any_other_os_error_is_not_hidden(corpus: dict[str, Any], make_corpus: Make) -> None:
    def odd(step: Any, items: Any) -> Iterator[Any]:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        make_corpus(corpus, execute=odd)


def test_progress_is_told_in_few_lines(corpus: dict[str, Any], make_corpus: Make) -> None:
    lines: list[str] = []
    make_corpus(corpus, layout=Layout(unit_bytes=400, unit_growth=1), lines=lines)
    assert lines[0].startswith("1 files, 0.0 MiB")
    assert lines[-1].startswith("tokenise and write")
    assert len(lines) < 50
