"""`lspm verify` as a person and as CI see it."""

import json
from pathlib import Path

import pytest

from lspm_ray.cli import main
from lspm_ray.commands.verify import in_words
from lspm_ray.selection.resample import Rate, Resampled
from tests.selection.test_select import World


def lspm(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_exit_codes_words_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    artifact = world.select(alpha=0.02, grid_size=20)
    assert lspm("verify", artifact.uri) == 0
    shown = capsys.readouterr().out
    assert "point 0.02: p-value" in shown and shown.splitlines()[-1].startswith("ok: ")
    assert "corpus: made of" not in shown and "more: files and their digests" in shown
    assert lspm("verify", artifact.uri, "--all") == 0
    assert "corpus: made of" in capsys.readouterr().out
    assert lspm("verify", artifact.uri, "--json", "--resample", "2") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and document["resampled"]["drawn"]["runs"] == 2
    outputs = Path(world.outputs["cheap"].uri) / "calibration.parquet"
    outputs.write_bytes(outputs.read_bytes() + b"x")
    assert lspm("verify", artifact.uri) == 1
    assert "FAILED: 1 of" in capsys.readouterr().out
    (Path(artifact.uri) / "plan.json").unlink()
    assert lspm("verify", artifact.uri) == 2
    assert "plan.json" in capsys.readouterr().err
    assert lspm("verify", str(tmp_path / "nothing")) == 2


def test_resampling_says_what_it_cannot_show() -> None:
    rate = Rate(wrong=30, default_wrong=20, runs=1000, low=0.02, high=0.042)
    found = Resampled(delta=0.05, rows=5000, drawn=rate, split=rate, issued=0.98, escalation_rate=0.2)
    text = "\n".join(in_words(found))
    assert "false in 30 (3.0%, 95 % interval 2.0% to 4.2%; that of the default point in 20)" in text
    assert "at most 5% are allowed: ok" in text and "cannot show" in text
    broken = found.model_copy(update={"drawn": rate.model_copy(update={"low": 0.06})})
    assert "FAILED" in in_words(broken)[0]
