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


def test_familiarity():
    random = np.random.default_rng(0)

    def rows(low, high, count=200):
        inputs = [random.integers(low, high, 15) for _ in range(count)]
        return Outputs(inputs, np.zeros((count, 2)), np.full((count, 2), 0.5), ["no", "yes"])

    check = Check.make({"check": "familiarity", "share": 0.05})
    known = rows(0, 100)
    training = Training(rows(0, 100).inputs, np.arange(200) % 2)
    state = check.fit(Examples(known, np.zeros(200, dtype=bool), training))
    refused = check.verdict(known, state)
    assert refused.count("unfamiliar") == 10 == 200 - refused.count(None)
    assert check.verdict(rows(0, 100), state).count("unfamiliar") < 40
    strange = Outputs(
        [np.full(15, 1000 + n) for n in range(50)], np.zeros((50, 2)), np.full((50, 2), 0.5), ["no", "yes"]
    )
    assert check.verdict(strange, state) == ["unfamiliar"] * 50
    assert check.verdict(known[3:4], state) == refused[3:4]


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
