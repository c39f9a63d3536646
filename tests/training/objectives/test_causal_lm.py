import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.training.objective import IGNORED, Objective
from tests.training.toy_language import toy_blocks, toy_vocabulary

VOCABULARY = toy_vocabulary()


@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
def test_labels_are_the_next_tokens(seed, length):
    blocks, tokens, keys = toy_blocks(4, length, seed, full=False)
    batch = Objective.make("causal_lm").corrupt(blocks, tokens, keys, VOCABULARY)
    assert np.array_equal(batch["input_ids"], blocks)
    for block, labels, count in zip(blocks, batch["labels"], tokens, strict=True):
        predicted = max(count - 1, 0)
        assert np.array_equal(labels[:predicted], block[1 : predicted + 1])
        assert (labels[predicted:] == IGNORED).all()


def test_padding_is_told_by_the_count_not_by_the_id():
    block, pad = np.full((1, 6), VOCABULARY.id("pad")), VOCABULARY.id("pad")
    batch = Objective.make("causal_lm").corrupt(block, np.array([4]), np.zeros(1, np.uint64), VOCABULARY)
    assert batch["labels"].tolist() == [[pad, pad, pad, IGNORED, IGNORED, IGNORED]]


def test_a_document_is_not_continued_by_the_next():
    block = np.arange(10, 18)[None]
    batch = Objective.make("causal_lm").corrupt(
        block, np.array([7]), np.zeros(1, np.uint64), VOCABULARY, [np.array([3, 1, 3])]
    )
    assert batch["labels"].tolist() == [[11, 12, IGNORED, IGNORED, 15, 16, IGNORED, IGNORED]]
    assert batch["documents"].tolist() == [[0, 0, 0, 1, 2, 2, 2, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 0]]
