from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

from lspm_ray.config import Config, digest_of, load, placed
from lspm_ray.errors import ConfigError


class Inner(Config):
    rate: float = 0.1
    names: list[str] = []


class Outer(Config):
    inner: Inner = Inner()
    items: dict[str, Inner] = {}
    count: int


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return file


def test_overrides_win_and_are_yaml(tmp_path):
    file = write(tmp_path, "count: 1\ninner: {rate: 0.5}\n")
    config = load(Outer, file, ["inner.rate=0.25", "inner.names=[a, b]", "items.x.rate=1", "count=3"])
    assert config == Outer(inner=Inner(rate=0.25, names=["a", "b"]), items={"x": Inner(rate=1)}, count=3)


def test_list_elements_can_be_overridden(tmp_path):
    file = write(tmp_path, "count: 1\ninner: {names: [a, b]}\n")
    assert load(Outer, file, ["inner.names.1=c"]).inner.names == ["a", "c"]
    with pytest.raises(ConfigError, match=r"inner\.names\.2.*valid: 0, 1"):
        load(Outer, file, ["inner.names.2=c"])


@pytest.mark.parametrize(
    ("override", "place", "instead"),
    [
        ("steps.0.heads=0.5", "steps.0", "steps.0='{method: prune, heads: 0.5}'"),
        ("steps.0.train.epochs=2", "steps.0", "steps.0='{method: prune, train: {epochs: 2}}'"),
        ("task.max_length=64", "task", "task='{task: topic, max_length: 64}'"),
        ("count.x.y=1", "count", None),
    ],
)
def test_override_below_a_value_says_what_is_there_and_what_to_write(tmp_path, override, place, instead):
    file = write(tmp_path, "count: 1\ntask: topic\nsteps: [prune]\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, file, [override])
    assert f"`{place}` is a value, not a section (got " in str(caught.value)
    assert caught.value.field == override.partition("=")[0]
    assert caught.value.hint == (f"If that names a plugin, write it out: {instead}" if instead else None)


def test_all_problems_are_listed_at_once(tmp_path):
    file = write(tmp_path, "count: many\ninner: {rat: 1}\nnonsense: 2\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, file)
    text = str(caught.value)
    assert "3 problems" in text
    assert "inner.rat: unknown key; did you mean `rate`? Valid keys: names, rate" in text
    assert "nonsense: unknown key" in text and "count, inner, items" in text
    assert "count:" in text and "'many'" in text


class Steps(Config):
    steps: list[int]

    @field_validator("steps", mode="before")
    @classmethod
    def _parsed(cls, value):
        for number, step in enumerate(value):
            try:
                Inner.parse(step)
            except ConfigError as error:
                raise placed(error, str(number)) from None
        return [0]


def test_problems_of_a_plugin_are_listed_with_their_whole_path(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Steps.parse({"steps": [{"rate": 0.5}, {"rat": 1, "rate": "high"}]})
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 problems in the configuration:"
    assert {line.split(":")[0] for line in lines[1:]} == {"  - steps.1.rat", "  - steps.1.rate"}


def test_unknown_key_inside_a_mapping_of_sections(tmp_path):
    with pytest.raises(ConfigError, match=r"items\.x\.rte: unknown key; did you mean `rate`"):
        load(Outer, write(tmp_path, "count: 1\nitems: {x: {rte: 1}}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n", "mapping of sections"), ("a: [1\n", "not valid YAML"), ("{}", "count: required")],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(Outer, write(tmp_path, text))


def test_missing_file_names_those_nearby(tmp_path):
    near = write(tmp_path, "count: 1")
    with pytest.raises(ConfigError, match=str(near)):
        load(Outer, tmp_path / "d.yaml")


@pytest.mark.parametrize("override", ["count", "=1", "count.x=1"])
def test_malformed_overrides(tmp_path, override):
    with pytest.raises(ConfigError):
        load(Outer, write(tmp_path, "count: 1"), [override])


@pytest.mark.parametrize("value", ["nan", "inf", "-.inf", ".nan"])
def test_floats_must_be_finite(tmp_path, value):
    with pytest.raises(ConfigError, match="rate"):
        load(Outer, write(tmp_path, "count: 1"), [f"inner.rate={value}"])


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_digest_ignores_key_order(value):
    assert digest_of(value) == digest_of(dict(reversed(list(value.items()))))
    assert digest_of(value) != digest_of({**value, "extra-key": 0})
