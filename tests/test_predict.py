import pytest

from lspm_ray.commands.predict import split_overrides


@pytest.mark.parametrize(
    ("arguments", "overrides", "texts"),
    [
        ([], [], []),
        (["a text"], [], ["a text"]),
        (["serve.port=8001", "output=x", "a text"], ["serve.port=8001", "output=x"], ["a text"]),
        (["a = b", "serve.port=8001"], [], ["a = b", "serve.port=8001"]),
        (["model=x is no setting", "data.labels.0=good"], [], ["model=x is no setting", "data.labels.0=good"]),
    ],
)
def test_settings_come_first_and_everything_behind_is_text(arguments, overrides, texts):
    assert split_overrides(arguments) == (overrides, texts)
