"""A whole run small enough for a test: toy model, toy reviews, the real commands in processes of their own."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.warm import Lspm
from tests.toy_corpus import toy_rows
from tests.toys import toy_model_dir

REPO = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


def run_alone(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh interpreter; returns when it has ended."""
    command = [sys.executable, "-m", "lspm_ray.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(), check=False)


@pytest.fixture(scope="session")
def lspm() -> Iterator[Lspm]:
    """Runs a command, in a process of its own that need not import the libraries."""
    made = Lspm(environment())
    yield made
    made.close()


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory) -> Path:
    """A configuration file with its data and model beside it."""
    root = tmp_path_factory.mktemp("toy")
    toy_model_dir(root / "model")
    texts, labels = toy_rows(2400, seed=7)
    with (root / "reviews.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "verdict"])
        writer.writerows([text, ["bad", "good"][label]] for text, label in zip(texts, labels, strict=True))
    train = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
    config = {
        "output": str(root / "run"),
        "model": {"name": str(root / "model")},
        "task": {"task": "text_classification", "max_length": 32},
        "data": {
            "source": str(root / "reviews.csv"),
            "text": "review",
            "label": "verdict",
            "near_duplicates": False,
            "splits": {"train": 0.4, "validation": 0.1, "selection": 0.15, "calibration": 0.2, "test": 0.15},
        },
        "finetune": train | {"checkpoint_every_steps": 5},
        "compress": {
            "variants": {
                "int8": {"recipe": ["quantize_int8"]},
                "bag": {
                    "recipe": [{"method": "distill_bag", "buckets": 512, "train": {"epochs": 4, "learning_rate": 0.02}}]
                },
            }
        },
        "profile": {"rounds": 1, "cell_s": 0.05, "batch_sizes": [1, 8], "resamples": 100},
        "select": {"alpha": 0.1, "min_saving": 0.0},
        "serve": {"port": 8123},
        "cluster": {"num_cpus": 2, "object_store_mb": 200},
    }
    file = root / "toy.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


@pytest.fixture(scope="session")
def finished_run(toy_config) -> Path:
    """The toy configuration after one uninterrupted `lspm run`."""
    result = run_alone("run", toy_config)
    assert result.returncode == 0, result.stderr
    return toy_config
