"""From raw text to a fine-tuned model by the real commands: once, killed in every stage, and used for fine-tuning."""

import gzip
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from lspm_ray.artifact import ArtifactStore
from tests.e2e.conftest import run_alone
from tests.e2e.warm import Lspm
from tests.toy_corpus import toy_rows

pytestmark = pytest.mark.e2e

EXACT = ("documents", "tokenizer", "blocks", "pretrain", "fresh", "finetune")


def digests(output: Path) -> list[tuple[str, str]]:
    artifacts = ArtifactStore(str(output)).artifacts()
    return sorted((a.manifest.stage, a.digest) for a in artifacts if a.manifest.stage in EXACT)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, toy_config: Path) -> Path:
    """Raw text beside the labelled toy reviews, and a model pretrained on it."""
    root = tmp_path_factory.mktemp("raw")
    (root / "text").mkdir()
    texts, _ = toy_rows(6000, seed=21)
    for number in range(3):
        content = "\n\n".join(texts[number::3]).encode()
        (root / f"text/{number}.txt.gz").write_bytes(gzip.compress(content, mtime=0))
    labelled = yaml.safe_load(toy_config.read_text())
    labelled.pop("model")
    made = labelled | {
        "output": str(root / "run"),
        "documents": {
            "source": str(root / "text"),
            "near_duplicates": False,
            "rules": [{"rule": "length", "min_words": 2}],
            "validation": 0.1,
        },
        "tokenizer": {"algorithm": "wordpiece", "vocab_size": 400, "lowercase": True},
        "blocks": {"length": 64},
        "pretrain": {
            "objective": "masked_lm",
            "model": {"size": "toy"},
            "steps": 60,
            "batch_size": 32,
            "micro_batch_size": 16,
            "learning_rate": 3e-3,
            "checkpoint_every_steps": 7,
            "validate_every_steps": 20,
            "precision": "fp32",
        },
        "finetune": labelled["finetune"] | {"frozen_layers": 1},
        "compress": {"variants": {"int8": {"recipe": ["quantize_int8"]}}},
    }
    file = root / "raw.yaml"
    file.write_text(yaml.safe_dump(made, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    result = run_alone("run", config, timeout=600)
    assert result.returncode == 0, result.stderr
    (config.parent / "out.txt").write_text(result.stdout)
    return config


def output_of(config: Path) -> Path:
    return Path(yaml.safe_load(config.read_text())["output"])


@pytest.mark.timeout(900)
def test_raw_text_becomes_a_served_plan(finished: Path) -> None:
    store = ArtifactStore(str(output_of(finished)))
    made = {a.manifest.stage: a for a in store.artifacts()}
    for artifact in store.artifacts():
        artifact.verify()
    assert {*EXACT, "gain", "prepare", "profile", "select", "gears", "report"} <= set(made)
    summary = made["pretrain"].manifest.summary
    assert summary["perplexity"] < summary["unigram_perplexity"]
    gain = made["gain"].read_json("gain.json")
    assert 0.3 < gain["pretrained"]["accuracy"]["value"] <= 1
    tuned = [a.manifest.config["train"] for a in store.artifacts() if a.manifest.stage == "finetune"]
    assert sorted(settings["frozen_layers"] for settings in tuned) == [0, 1], "the twin is trained whole"
    report = made["report"].read_bytes("report.html").decode()
    assert "What pretraining gave" in report
    out = (finished.parent / "out.txt").read_text()
    assert "documents: 6,000 read" in out
    assert "held-out perplexity" in out
    assert list((output_of(finished) / "tensorboard").glob("pretrain-*/events*"))


def test_more_frozen_layers_than_were_pretrained_are_refused(finished: Path, lspm: Lspm) -> None:
    result = lspm("finetune", finished, "finetune.frozen_layers=3")
    assert result.returncode == 2
    assert "finetune.frozen_layers: the model has 2 layers (got 3); valid: 0 to 2" in " ".join(result.stderr.split())


def test_plain_transformers_loads_the_pretrained_model(finished: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    artifacts = ArtifactStore(str(output_of(finished))).artifacts()
    directory = next(a for a in artifacts if a.manifest.stage == "pretrain").local()
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForMaskedLM.from_pretrained(directory)
    found = model(**tokenizer("the dress is lovely", return_tensors="pt")).logits
    assert found.shape[-1] >= len(tokenizer)


KILLS = {
    "documents": ".work/documents-*/*/scan/*.json",
    "tokenizer": ".partial/tokenizer-*",
    "blocks": ".work/blocks-*/done/train/*.json",
    "pretrain": ".work/pretrain-*/step-*/manifest.json",
}
"""Stage -> the file that shows that it has begun."""


@pytest.mark.timeout(900)
def test_killed_in_every_stage_it_resumes_to_the_same_digests(finished: Path, lspm: Lspm, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for stage, pattern in KILLS.items():
        process = lspm.start("pretrain", finished, f"output={output}")
        deadline = time.monotonic() + 240
        while not list(output.glob(pattern)):
            assert process.poll() is None, f"ended before {stage} could be killed: {process.read('err')}"
            assert time.monotonic() < deadline, f"never saw {pattern}"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL
    last = lspm("pretrain", finished, f"output={output}")
    assert last.returncode == 0, last.stderr
    found = digests(output)
    assert {stage for stage, _ in found} == {"documents", "tokenizer", "blocks", "pretrain"}
    assert set(found) <= set(digests(output_of(finished)))
    assert not list(output.glob(".partial/*")) and not list(output.glob(".work/*"))


def test_a_second_run_makes_nothing(finished: Path, lspm: Lspm) -> None:
    before = digests(output_of(finished))
    result = lspm("run", finished)
    assert result.returncode == 0, result.stderr
    assert "log of the workers" not in result.stderr
    assert digests(output_of(finished)) == before


BAD = {
    "nothing to read": (["documents.source=/no/such/place"], "documents.source: no such file or directory"),
    "unknown rule": (["documents.rules=[gopher]"], "unknown rule"),
    "two lengths": (["pretrain.epochs=1"], "give one of epochs, steps and tokens"),
    "block longer than the model": (["pretrain.model.config={max_position_embeddings: 32}"], "longer than the 32"),
    "vocabulary beyond the model": (["pretrain.model.config={vocab_size: 100}"], "vocabulary does not fit"),
    "unknown field of the model": (["pretrain.model.config={layers: 3}"], "no such field"),
    "too many workers": (["pretrain.workers.num_workers=50"], "pretrain.workers.num_workers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_nothing_expensive_starts(config: Path, lspm: Lspm, tmp_path: Path, name: str) -> None:
    overrides, message = BAD[name]
    result = lspm("pretrain", config, f"output={tmp_path}/run", *overrides)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert ArtifactStore(f"{tmp_path}/run").artifacts() == []


def test_a_loss_that_explodes_says_what_to_do(finished: Path, lspm: Lspm) -> None:
    result = lspm("pretrain", finished, "pretrain.learning_rate=1.0e+30", "pretrain.warmup_fraction=0")
    assert result.returncode == 2
    assert "pretrain.learning_rate" in result.stderr and "Take a lower rate" in result.stderr
    assert "Traceback" not in result.stderr
