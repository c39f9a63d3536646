import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.tasks import Task
from tests.toys import toy_tokenizer


def task(**fields):
    return Task.make({"task": "text_classification", **fields})


@given(st.lists(st.text(max_size=200), max_size=5), st.integers(4, 40))
def test_encoding_keeps_the_length_and_the_order(texts, max_length):
    encoded = task(max_length=max_length).encode(texts, toy_tokenizer())
    assert len(encoded) == len(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.dtype == np.int64 and 2 <= len(ids) <= max_length
        assert np.array_equal(ids, task(max_length=max_length).encode([text], toy_tokenizer())[0])


def test_decoding():
    answers = task().decode(np.array([[0.2, 0.8], [0.6, 0.4]]), ["no", "yes"])
    assert [(a.label, a.probability) for a in answers] == [("yes", 0.8), ("no", 0.6)]


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10), st.sampled_from(["sqrt", "balanced"]))
def test_class_weights_average_to_one_and_favour_the_rare(counts, kind):
    weights = task(class_weight=kind).class_weights(counts)
    share = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
    assert np.dot(weights, share) == pytest.approx(1.0)
    order = np.argsort(share, kind="stable")
    assert (np.diff(np.array(weights)[order]) <= 1e-9).all()


def test_balanced_gives_every_class_the_same_say():
    weights = np.array(task(class_weight="balanced").class_weights([900, 100]))
    assert weights[0] * 0.9 == pytest.approx(weights[1] * 0.1)
    assert task().class_weights([900, 100]) is None


@pytest.mark.parametrize("fields", [{"max_length": 2}, {"label_smoothing": 1.0}, {"class_weight": "heavy"}])
def test_bad_settings(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        task(**fields)
