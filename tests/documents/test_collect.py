import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore, filesystem
from lspm_ray.corpus.clean import text_id
from lspm_ray.corpus.dedup import words
from lspm_ray.corpus.execute import run_on_ray
from lspm_ray.errors import ConfigError, DataError
from tests.documents.conftest import KilledError, Make, backwards, killed_after, sentences


def texts(artifact: Artifact, split: str = "train") -> list[str]:
    names = sorted(name for name in artifact.manifest.files if name.startswith(f"{split}/"))
    return [text for name in names for text in pq.read_table(artifact.path(name))["text"].to_pylist()]


def everything(artifact: Artifact) -> list[str]:
    return texts(artifact) + texts(artifact, "validation")


def put_aside(artifact: Artifact) -> list[dict[str, Any]]:
    names = sorted(name for name in artifact.manifest.files if name.startswith("quarantine/"))
    return [json.loads(line) for name in names for line in artifact.read_bytes(name).splitlines()]


def config(source: Path, **more: Any) -> dict[str, Any]:
    return {"source": str(source), "validation": 0.1, **more}


def test_every_document_is_there_once_in_another_order(prose: Path, make_documents: Make) -> None:
    made = make_documents(config(prose))
    found = everything(made)
    assert sorted(found) == sorted(sentences(200))
    assert found != sentences(200)
    assert 5 <= len(texts(made, "validation")) <= 45
    assert made.manifest.summary["documents_read"] == 200
    assert made.manifest.summary["dropped"] == {}


@pytest.mark.parametrize("steps", [1, 5, 14, 22, 30])
def test_a_killed_run_goes_on_and_gives_the_same(prose: Path, make_documents: Make, tmp_path: Path, steps: int) -> None:
    whole = make_documents(config(prose))
    into = ArtifactStore(str(tmp_path / "other"))
    with pytest.raises(KilledError):
        make_documents(config(prose), into=into, execute=killed_after(steps))
    assert into.artifacts() == []
    assert make_documents(config(prose), into=into).digest == whole.digest
    assert not list((tmp_path / "other/.work").glob("*"))


def test_a_remote_source_and_store_give_what_local_ones_give(prose: Path, make_documents: Make, memory: str) -> None:
    whole = make_documents(config(prose))
    for file in prose.iterdir():
        fs, path = filesystem(f"{memory}/prose/{file.name}")
        fs.create_dir(path.rpartition("/")[0])
        with fs.open_output_stream(path) as sink:
            sink.write(file.read_bytes())
    source, into = config(prose) | {"source": f"{memory}/prose/*.txt"}, ArtifactStore(f"{memory}/store")
    with pytest.raises(KilledError):
        make_documents(source, into=into, execute=killed_after(14))
    assert into.artifacts() == []
    made = make_documents(source, into=into)
    assert made.uri.startswith(memory)
    assert made.digest == whole.digest
    made.verify()
    assert [artifact.uri for artifact in into.artifacts()] == [made.uri]
    assert not into.has_work("documents")


def test_order_and_repetition_of_the_work_do_not_matter(prose: Path, make_documents: Make, tmp_path: Path) -> None:
    other = make_documents(config(prose), into=ArtifactStore(str(tmp_path / "other")), execute=backwards)
    assert other.digest == make_documents(config(prose)).digest


@pytest.mark.ray
def test_a_cluster_gives_what_one_process_gives(
    ray_cluster: None, prose: Path, make_documents: Make, tmp_path: Path
) -> None:
    other = make_documents(config(prose), into=ArtifactStore(str(tmp_path / "other")), execute=run_on_ray)
    assert other.digest == make_documents(config(prose)).digest


def test_rules_drop_with_a_counted_reason_and_are_written_down(tmp_path: Path, make_documents: Make) -> None:
    (tmp_path / "a.txt").write_text("Too short.\n\n" + "\n\n".join(sentences(50)) + "\n\n...\n\nShort too.")
    rules = [{"rule": "length", "min_words": 5}, "remove_punctuation", "lowercase"]
    made = make_documents(config(tmp_path / "a.txt", rules=rules))
    assert made.manifest.summary["dropped"] == {"too short": 3}
    assert sorted(everything(made)) == sorted(text.lower().rstrip(".") for text in sentences(50))
    aside = put_aside(made)
    assert {entry["raw"] for entry in aside} == {"Too short.", "...", "Short too."}
    assert {entry["reason"] for entry in aside} == {"too short"}
    assert aside[0]["file"] == "a.txt"
    silent = make_documents(config(tmp_path / "a.txt", rules=rules, quarantine=False))
    assert put_aside(silent) == []


def test_copies_are_counted_and_shown(tmp_path: Path, make_documents: Make) -> None:
    some = sentences(60)
    near = [f"{some[0][:-1]} indeed now {n}." for n in range(3)]
    long = " ".join(sentences(12, seed=5))
    twins = [f"{long} One.", f"{long} Two.", f"{long} Three."]
    (tmp_path / "a.txt").write_text("\n\n".join([*some, *[some[1]] * 4, *near, *twins]))
    made = make_documents(config(tmp_path / "a.txt", similarity=0.9))
    dropped = made.manifest.summary["dropped"]
    assert dropped["exact duplicate"] == 4
    assert dropped["near duplicate"] >= 2
    assert sum(text.startswith(long) for text in everything(made)) == 1
    aside = put_aside(made)
    (exact,) = (entry for entry in aside if entry["reason"] == "exact duplicate")
    assert (exact["id"], exact["rows"]) == (text_id(some[1]).hex(), 4)
    gone = [entry for entry in aside if entry["reason"] == "near duplicate"]
    assert sorted([*everything(made), *(entry["raw"] for entry in gone)]) == sorted({*some, *near, *twins})
    assert all(entry["id"] == text_id(entry["raw"]).hex() for entry in gone)
    assert {entry["of"] for entry in gone} <= {text_id(text).hex()[:32] for text in everything(made)}
    report = made.read_json("duplicates.json")
    assert report["exact"][0]["copies"] == 5
    assert report["exact"][0]["excerpt"] == some[1][:200]
    assert report["near"][0]["documents"] == 3
    assert report["near"][0]["excerpt"] == long[:200]


def test_words_are_counted_exactly_after_cleaning(prose: Path, make_documents: Make) -> None:
    made = make_documents(config(prose, top_words=100))
    oracle = Counter(word for text in everything(made) for word in words(text))
    table = pq.read_table(made.path("words.parquet"))
    found = list(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))
    assert found == sorted(oracle.items(), key=lambda entry: (-entry[1], entry[0]))[:100]
    summary = made.manifest.summary["words"]
    assert (summary["different"], summary["occurrences"]) == (len(oracle), oracle.total())


def test_evaluation_texts_are_kept_out(tmp_path: Path, make_documents: Make) -> None:
    some, known = sentences(60), sentences(5, seed=9)
    inside = [f"Before it {known[0].lower()} And after it.", known[1].upper()]
    (tmp_path / "a.txt").write_text("\n\n".join([*some, *inside]))
    lines = "\n".join(json.dumps({"question": text, "answer": 1}) for text in known)
    (tmp_path / "test.jsonl").write_text(lines)
    sets = {"quiz": {"source": str(tmp_path / "test.jsonl"), "text": "question"}}
    made = make_documents(config(tmp_path / "a.txt", decontaminate=sets, overlap_words=8))
    assert made.manifest.summary["dropped"] == {"in evaluation set quiz": 2}
    assert sorted(everything(made)) == sorted(some)


def test_an_evaluation_set_without_text_is_an_error(prose: Path, tmp_path: Path, make_documents: Make) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"documents\.decontaminate\.quiz"):
        make_documents(config(prose, decontaminate={"quiz": {"source": str(tmp_path / "test.jsonl")}}))


def test_damage_is_put_aside_and_the_rest_is_used(tmp_path: Path, make_documents: Make) -> None:
    good = "\n\n".join(sentences(40)).encode()
    (tmp_path / "a.txt").write_bytes(good + b"\n\nbad \xff\xfe bytes\n\n" + b"The end of it all.")
    made = make_documents(config(tmp_path / "a.txt"))
    assert made.manifest.summary["quarantined"] == {"invalid UTF-8": 1}
    assert len(everything(made)) == 41
    assert put_aside(made)[0]["reason"] == "invalid UTF-8"


def test_many_small_files_share_pieces_of_work(tmp_path: Path, make_documents: Make) -> None:
    for number, text in enumerate(sentences(100)):
        (tmp_path / f"{number:03d}.txt").write_text(text)
    lines: list[str] = []
    made = make_documents(config(tmp_path, document="file"), lines=lines)
    assert len(everything(made)) == 100
    first = next(line for line in lines if line.startswith("read and clean"))
    assert int(first.split(" of ")[1].split()[0]) < 10


def test_nothing_left_names_the_reasons(tmp_path: Path, make_documents: Make) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    with pytest.raises(DataError, match="no document is left of 2: 2 too short"):
        make_documents(config(tmp_path / "a.txt", rules=[{"rule": "length", "min_words": 5}]))


def test_a_split_without_documents_is_an_error(tmp_path: Path, make_documents: Make) -> None:
    (tmp_path / "a.txt").write_text("one document alone")
    with pytest.raises(DataError, match=r"documents\.validation"):
        make_documents(config(tmp_path / "a.txt", validation=0.001))


def test_unknown_rules_are_refused_with_the_valid_ones() -> None:
    from lspm_ray.documents.config import DocumentsConfig

    with pytest.raises(ConfigError, match=r"unknown rule.*lenght.*gopher_quality"):
        DocumentsConfig.parse({"source": "a", "rules": ["lenght"]})


def test_other_text_or_rules_make_other_documents(prose: Path, make_documents: Make) -> None:
    first = make_documents(config(prose))
    assert make_documents(config(prose)).uri == first.uri
    assert make_documents(config(prose, rules=["lowercase"])).uri != first.uri
    (prose / "4.txt").write_text("One more paragraph about nothing.")
    assert make_documents(config(prose)).uri != first.uri


def test_an_edited_word_list_makes_other_documents(prose: Path, tmp_path: Path, make_documents: Make) -> None:
    words = tmp_path / "words.txt"
    rules = [{"rule": "blocklist", "file": str(words)}]
    words.write_text("nothing of that\n")
    first = make_documents(config(prose, rules=rules))
    words.write_text(sentences(1)[0].split()[0] + "\n")
    second = make_documents(config(prose, rules=rules))
    assert second.uri != first.uri
    assert second.manifest.summary["dropped"]["blocked word"] >= 1
