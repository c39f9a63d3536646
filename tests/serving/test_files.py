import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.errors import DataError
from lspm_ray.serving.client import Client, EndpointError
from lspm_ray.serving.files import SCHEMA, Summary, predict_file
from lspm_ray.serving.schema import ServedAnswer


class Echo(Client):
    """Labels each text with itself; refuses what the endpoint would."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, texts: Sequence[str], *, max_risk: float | None = None, full: bool = False) -> list[ServedAnswer]:
        self.asked += 1
        for text in texts:
            if text == "down":
                raise EndpointError("cannot reach the endpoint")
            if text in ("\u200b", "long"):
                error = EndpointError("refused: " + text)
                error.status = 413 if text == "long" else 422
                raise error
        return [
            ServedAnswer(
                label=text,
                probability=0.5,
                variant="small",
                escalated="!" in text,
                validator_score=None,
                certificate_id="c",
                request_id="r",
            )
            for text in texts
        ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_row_of_a_csv_file_has_its_answer_or_error_in_order(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "id,text\n1,good\n2,\n3,long\n4,bad!\n5\n")
    target = tmp_path / "out.jsonl"
    seen: list[int] = []
    summary = predict_file(Echo(), source, str(target), "text", seen.append)
    rows = lines(target)
    assert [row.get("label") for row in rows] == ["good", None, None, "bad!", None]
    assert [row.get("error") for row in rows] == [
        None,
        "no text",
        "refused: long",
        None,
        "wrong number of CSV fields",
    ]
    assert rows[0] == {
        "file": "in.csv",
        "place": "line 2",
        "text": "good",
        "label": "good",
        "probability": 0.5,
        "variant": "small",
        "escalated": False,
        "degraded": False,
        "certificate_id": "c",
    }
    assert summary == Summary(rows=5, answered=2, escalated=1, errors=3)
    assert seen == [5]


def test_several_columns_are_joined_as_for_training(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", '{"title": "a", "body": "b"}\n{"title": null, "body": "c"}\nbroken\n')
    predict_file(Echo(), source, str(tmp_path / "out.jsonl"), ["title", "body"])
    rows = lines(tmp_path / "out.jsonl")
    assert [row.get("text") for row in rows] == ["a\nb", "c", None]
    assert rows[2]["error"] == "invalid JSON"


def test_parquet_in_and_out_over_many_batches(tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(1000)]
    pq.write_table(pa.table({"review": texts}), tmp_path / "in.parquet")
    seen: list[int] = []
    predict_file(Echo(), str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "review", seen.append)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema == SCHEMA
    assert table.column("label").to_pylist() == texts
    assert seen[-1] == 1000
    assert seen == sorted(seen)


def test_compressed_files_and_directories_are_read_through(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": name}).encode()))
    predict_file(Echo(), str(folder), str(tmp_path / "out.jsonl"), "text")
    assert [(row["file"], row["label"]) for row in lines(tmp_path / "out.jsonl")] == [
        ("a.jsonl.gz", "a"),
        ("b.jsonl.gz", "b"),
    ]


def test_a_refused_text_costs_only_itself(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in ("a", "long", "b", "\u200b")))
    predict_file(Echo(), source, str(tmp_path / "out.jsonl"), "text")
    assert [row.get("label") for row in lines(tmp_path / "out.jsonl")] == ["a", None, "b", None]


def test_a_failing_endpoint_leaves_no_output(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "text\n" + "fine\n" * 200 + "down\n")
    with pytest.raises(EndpointError, match="cannot reach"):
        predict_file(Echo(), source, str(tmp_path / "out.jsonl"), "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_an_old_output_survives_a_failure(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "text\ndown\n")
    old = write(tmp_path / "out.jsonl", "old\n")
    with pytest.raises(EndpointError):
        predict_file(Echo(), source, old, "text")
    assert Path(old).read_text(encoding="utf-8") == "old\n"


@pytest.mark.parametrize(
    ("source", "target", "column", "message"),
    [
        ("in.csv", "out.txt", "text", r"output: .*valid: \.jsonl, \.parquet"),
        ("in.csv", "no/out.jsonl", "text", r"output: no such directory"),
        ("none.csv", "out.jsonl", "text", r"data\.source: no such file"),
        ("in.csv", "out.jsonl", "review", r"data\.text: no such column in in\.csv .*review.*valid: id, text"),
    ],
)
def test_mistakes_are_found_before_the_endpoint_is_asked(
    tmp_path: Path, source: str, target: str, column: str, message: str
) -> None:
    write(tmp_path / "in.csv", "id,text\n1,a\n")
    client = Echo()
    with pytest.raises(DataError, match=message):
        predict_file(client, str(tmp_path / source), str(tmp_path / target), column)
    assert client.asked == 0
