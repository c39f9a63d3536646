import sys
from pathlib import Path
from typing import Any

import pytest

from lspm_ray.corpus.check import check_columns
from lspm_ray.corpus.config import DataConfig
from lspm_ray.errors import DataError


def make(path: Path, **changes: Any) -> DataConfig:
    return DataConfig.parse({"source": str(path), "text": "text", "label": "label", **changes})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("text,label,part\nt,1,train\nu,0,\nv,,test\n,1,test\n")
    (tmp_path / "b.csv").write_text("text,label,part\n" + "w,1,test\n" * 20)
    return tmp_path


def test_a_preview_tells_what_was_found(directory: Path) -> None:
    found = check_columns(make(directory, split_column="part"))
    assert found.columns == ["text", "label", "part"]
    assert (found.files, found.rows) == (2, 4)
    assert found.bytes == sum(file.stat().st_size for file in directory.iterdir())
    assert found.labels == {"0": 1, "1": 1}
    assert check_columns(make(directory, labels={0: "no", 1: "yes"})).labels == {"no": 1, "yes": 1}


def test_missing_column(directory: Path) -> None:
    with pytest.raises(DataError, match=r"data.text: no such column in a.csv.*'body'.*valid: text, label, part"):
        check_columns(make(directory, text="body"))


def test_label_outside_the_set(directory: Path) -> None:
    with pytest.raises(DataError, match=r"in line 3 of a.csv.*got '0'.*valid: 1, 2"):
        check_columns(make(directory, labels=[1, 2]))


def test_split_name(directory: Path) -> None:
    with pytest.raises(DataError, match=r"not the name of a split, in line 2 of a.csv.*'t'.*valid: train"):
        check_columns(make(directory, split_column="text"))


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"data.source: the data set is empty"):
        check_columns(make(tmp_path))


def test_empty_files_among_others_are_passed_over(directory: Path) -> None:
    (directory / "0.csv").touch()
    assert check_columns(make(directory)).rows == 4


def test_the_test_source_is_looked_at_too(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "t.csv").write_text("text,target\nx,1\n")
    with pytest.raises(DataError, match=r"no such column in t.csv.*valid: text, target"):
        check_columns(make(directory / "a.csv", test_source=str(other)))


def test_ray_is_not_needed(directory: Path) -> None:
    check_columns(make(directory))
    assert "lspm_ray.corpus.check" in sys.modules
