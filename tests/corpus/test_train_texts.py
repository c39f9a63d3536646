"""The texts that a tokenizer may learn from are those that `prepare` trains on."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.artifact import Artifact
from lspm_ray.corpus import train_texts
from lspm_ray.corpus.config import SPLITS, DataConfig
from lspm_ray.corpus.shards import read_split
from lspm_ray.corpus.train_texts import TrainTexts
from lspm_ray.errors import DataError
from tests.toys import WORDS

Make = Callable[..., Artifact]


def text_of(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=12)) + f" {number}"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(source: str, **settings: Any) -> dict[str, Any]:
    return {"source": source, "text": "text", "label": "label", "near_duplicates": False} | settings


def rows(count: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [{"text": text_of(start + n), "label": n % 2, **more} for n in range(count)]


def texts_of(artifact: Artifact, split: str) -> set[str]:
    return set(read_split(artifact, split)["text"].to_pylist())


def check(raw: dict[str, Any], make_corpus: Make) -> set[str]:
    found = list(TrainTexts(DataConfig.parse(raw)))
    assert len(set(found)) == len(found)
    assert set(found) == texts_of(make_corpus(raw), "train")
    return set(found)


def test_they_are_those_that_the_hash_puts_into_train(tmp_path: Path, make_corpus: Make) -> None:
    unclean = [{"text": f"  {text_of(0)}\u200b ", "label": 0}, {"text": " ", "label": 1}, {"text": "x", "label": None}]
    source = write_rows(tmp_path / "a.jsonl", [*rows(400), *unclean])
    found = check(config(source, min_characters=3, max_characters=60, splits=shares(0.5)), make_corpus)
    assert 150 < len(found) < 250


def shares(train: float) -> dict[str, float]:
    return dict.fromkeys(SPLITS, (1 - train) / 4) | {"train": train}


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_beyond_the_limit_are_left_out(tmp_path: Path, make_corpus: Make, seed: int) -> None:
    source = write_rows(tmp_path / "a.jsonl", rows(400) + rows(50))
    check(config(source, max_rows=150, seed=seed), make_corpus)
    check(config(source, max_rows=4000, seed=seed), make_corpus)


@pytest.mark.parametrize("named", [("test",), ("test", "calibration"), SPLITS], ids=len)
def test_rows_of_named_splits_are_left_out(tmp_path: Path, make_corpus: Make, named: tuple[str, ...]) -> None:
    """Also of texts that stand elsewhere without a split, as text 0 does."""
    splits = itertools.cycle([None, "train", *named])
    mixed = [row | {"split": next(splits)} for row in rows(400)]
    twice = [{"text": text_of(n), "label": 0, "split": "test"} for n in (0, 7)]
    source = write_rows(tmp_path / "a.jsonl", [*mixed, *twice])
    raw = config(source, split_column="split", max_rows=300)
    found = check(raw, make_corpus)
    assert text_of(0) not in found
    check(raw | {"max_rows": None}, make_corpus)


def test_texts_of_a_test_source_are_left_out(tmp_path: Path, make_corpus: Make) -> None:
    source = write_rows(tmp_path / "a.jsonl", rows(300))
    held_out = write_rows(tmp_path / "b.jsonl", rows(100, start=250))
    raw = config(source, test_source=held_out, splits=shares(0.6))
    found = check(raw, make_corpus)
    assert not found & {text_of(n) for n in range(250, 350)}
    # The share of test is divided among the other splits.
    assert len(found) > 0.6 * 250


def test_near_duplicates_stay_and_other_splits_do_not(tmp_path: Path, make_corpus: Make) -> None:
    near = [{"text": text_of(n) + " again", "label": n % 2} for n in range(100)]
    raw = config(write_rows(tmp_path / "a.jsonl", [*rows(300), *near]), near_duplicates=True, max_rows=200)
    artifact, found = make_corpus(raw), set(TrainTexts(DataConfig.parse(raw)))
    near_ones = {text_of(n) + tail for n in range(100) for tail in ("", " again")}
    assert found - near_ones <= texts_of(artifact, "train")
    for split in SPLITS[1:]:
        assert not found & texts_of(artifact, split)


def test_whoever_stops_early_has_read_a_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write_rows(tmp_path / f"{number:02d}.jsonl", rows(30, start=100 * number))
    texts = TrainTexts(DataConfig.parse(config(str(tmp_path))))
    read = []
    real = train_texts.read_unit

    def counting(unit: Any, config: Any) -> Any:
        read.append(unit.file.name)
        return real(unit, config)

    monkeypatch.setattr(train_texts, "read_unit", counting)
    first = list(itertools.islice(texts, 40))
    assert len(set(read)) == len(read) < 6 and read != sorted(read)
    assert first == list(itertools.islice(texts, 40))


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": "a", "label": 0, "split": "dev"}])
    with pytest.raises(DataError, match=r"data\.split_column.*'dev'"):
        list(TrainTexts(DataConfig.parse(config(source, split_column="split"))))


def test_the_key_is_that_of_the_texts(tmp_path: Path) -> None:
    raw = config(write_rows(tmp_path / "a.jsonl", rows(30)))
    key = TrainTexts(DataConfig.parse(raw)).key()
    assert TrainTexts(DataConfig.parse(raw | {"rows_per_shard": 7, "similarity": 0.9})).key() == key
    for change in ({"seed": 1}, {"splits": shares(0.5)}, {"max_rows": 20}, {"min_characters": 9}):
        assert TrainTexts(DataConfig.parse(raw | change)).key() != key
    write_rows(tmp_path / "a.jsonl", rows(31))
    assert TrainTexts(DataConfig.parse(raw)).key() != key
