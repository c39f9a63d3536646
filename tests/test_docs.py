"""What README and CONTRIBUTING say is true: commands exist, the YAML validates, the example works."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

from lspm_ray.cli import app
from lspm_ray.compression.compress import CompressConfig
from lspm_ray.compression.method import Method
from lspm_ray.compression.presets import PRESETS
from lspm_ray.selection.select import SelectConfig
from lspm_ray.settings import Settings
from lspm_ray.validators import Check, Outputs, Validator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
    return [content for name, content in found if name == language]


COMMANDS = [line.partition("  #")[0].strip() for block in blocks(README, "") for line in block.splitlines()]
VERBS = typer.main.get_command(app).commands


def test_there_are_commands():
    assert len([c for c in COMMANDS if c.startswith("lspm ")]) >= 6
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("lspm ")])
def test_lspm_commands_parse(command):
    _, verb, *arguments = shlex.split(command)
    assert VERBS[verb].make_context(verb, arguments).args == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.M)


def test_the_yaml_is_a_valid_configuration():
    labelled, raw = (Settings.parse(yaml.safe_load(text)) for text in blocks(README, "yaml"))
    assert list(labelled.compress.variants) == ["bag", "small"]
    assert raw.stages[:4] == ("documents", "tokenizer", "blocks", "pretrain")


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(file):
    text = file.read_text(encoding="utf-8")
    settings = Settings.parse(yaml.safe_load(text))
    if settings.data is not None:
        source = str(settings.data.source)
        # What may not be part of the project is fetched: the first line says how.
        script = re.search(r"python (benchmarks/\w+\.py)", text.splitlines()[0])
        assert (ROOT / source).is_file() if script is None else (ROOT / script[1]).is_file()


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(r"`((?:docs|benchmarks|jobs|examples|lspm_ray|tests)/[\w./-]*)`", README + CONTRIBUTING))),
)
def test_files_that_are_named_exist(name):
    assert (ROOT / name.replace("NAME.py", "margin.py")).exists()


def test_the_page_on_compression_lists_every_method_and_preset_and_its_examples_work():
    page = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, flags=re.M)) == sorted(Method.names())
    presets = page.partition("Presets: ")[2].partition("\n")[0]
    assert re.findall(r"`(\w+)`", presets)[: len(PRESETS)] == list(PRESETS)
    rows = re.findall(r"^\| (\w+) \| (`.*?) \|", page, flags=re.M)
    methods = {name: re.findall(r"`(\w+)`", recipe) for name, recipe in rows}
    assert methods == {name: [step["method"] for step in recipe] for name, recipe in PRESETS.items()}
    examples = blocks(page, "yaml")
    assert examples
    for example in examples:
        CompressConfig.parse(yaml.safe_load(example)["compress"])


def test_the_page_on_validators_lists_every_validator_and_check_and_its_examples_work():
    page = (ROOT / "docs" / "validators.md").read_text(encoding="utf-8")
    validators, _, checks = page.partition("## Checks")
    named = re.compile(r"^\| `(\w+)` \|", flags=re.M)
    assert sorted(named.findall(validators)) == sorted(Validator.names())
    assert sorted(named.findall(checks)) == sorted(Check.names())
    examples = blocks(page, "yaml")
    assert examples
    for example in examples:
        SelectConfig.parse(yaml.safe_load(example)["select"])


def test_the_validator_in_contributing_works():
    (code,) = blocks(CONTRIBUTING, "python")
    module: dict[str, object] = {"__name__": "example"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), module)
    validator = module["Length"].parse({"tokens": 4})
    p = np.array([[0.9, 0.1], [0.9, 0.1]])
    scores = validator.score(Outputs([np.array([1, 2]), np.array([1, 2, 3, 4, 5])], np.log(p), p, ["a", "b"]), {})
    assert scores == pytest.approx([0.45, 0.9])


def test_cluster_yaml_is_valid_for_the_launcher_and_asks_for_a_token():
    import json

    import jsonschema
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    cluster = yaml.safe_load(text)
    jsonschema.validate(cluster, schema)
    starts = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert {"train_gpu", "serve_cpu"} <= set(cluster["available_node_types"])


def test_cluster_yaml_sets_what_a_local_cluster_sets():
    from lspm_ray.cluster import _ENVIRONMENT

    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    for name, value in _ENVIRONMENT.items():
        if name.startswith("RAY_SERVE") and "DRAINING" not in name and "NBTHREAD" not in name:
            assert f"{name}={value}" in text
