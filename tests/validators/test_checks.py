import importlib.util

import numpy as np
import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.validators import Check, Examples, Outputs, Training

LOGITS = np.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
LENGTHS = (2, 5, 9)


def outputs(texts=None):
    inputs = [np.arange(1, n + 1) for n in LENGTHS]
    return Outputs(inputs, LOGITS, np.full((3, 3), 1 / 3), ["no", "yes", "maybe"], texts)


def verdict(spec, texts=None, training=None):
    check, found = Check.make(spec), outputs(texts)
    state = check.fit(Examples(found, np.zeros(3, dtype=bool), training))
    whole = check.verdict(found, state)
    assert [check.verdict(found[row : row + 1], state)[0] for row in range(3)] == whole
    assert Check.make(check.spec()) == check
    return whole


def test_length():
    assert verdict({"check": "length", "min_tokens": 3}) == ["too_short", None, None]
    assert verdict({"check": "length", "min_tokens": 3, "max_tokens": 8}) == ["too_short", None, "too_long"]
    with pytest.raises(ConfigError, match="must not be less than min_tokens"):
        Check.make({"check": "length", "min_tokens": 3, "max_tokens": 2})


def test_labels():
    assert verdict({"check": "labels", "escalate": ["yes", "maybe"]}) == [None, "label", "label"]
    with pytest.raises(ConfigError, match="no such label"):
        verdict({"check": "labels", "escalate": ["never"]})


def test_known_tokens():
    training = Training([np.array([1, 2, 3])], np.array([0]))
    spec = {"check": "known_tokens", "max_unseen": 0.4}
    assert verdict(spec, training=training) == [None, None, "unseen_tokens"]
    assert Check.make(spec).learns and Check.make(spec).reads_training


@pytest.mark.skipif(importlib.util.find_spec("lingua") is None, reason="lingua is not installed")
def test_language():
    texts = [
        "The dress fits well and the fabric is soft and lovely.",
        "Das Kleid passt gut und der Stoff ist weich und angenehm.",
        "Cette robe me va bien et le tissu est doux et agréable.",
    ]
    assert verdict({"check": "language", "languages": ["en", "fr"]}, texts) == [None, "language", None]
    assert Check.make("language").reads_texts
    with pytest.raises(ConfigError, match="unknown language"):
        verdict({"check": "language", "languages": ["xx"]}, texts)
