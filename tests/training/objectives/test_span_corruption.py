import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.presets import build_config
from lspm_ray.training.objective import IGNORED, Objective
from tests.training.toy_language import LENGTH, toy_blocks, toy_tokenizer, toy_vocabulary

VOCABULARY = toy_vocabulary()
PAD, EOS = VOCABULARY.id("pad"), VOCABULARY.id("eos")


def restored(source, target):
    """The block that a source and a target, both without padding, came from; checks their form on the way."""
    assert source[-1] == target[-1] == EOS
    source, target = source[:-1], target[:-1]
    spans, number = {}, -1
    for token in target:
        if token in VOCABULARY.sentinels:
            number += 1
            assert token == VOCABULARY.sentinels[number]
            spans[token] = []
        else:
            spans[VOCABULARY.sentinels[number]].append(token)
    assert spans.pop(VOCABULARY.sentinels[number]) == []
    assert [token for token in source if token in VOCABULARY.sentinels] == list(spans)
    assert all(spans.values())
    return [token for part in source for token in spans.get(part, [part])], list(spans.values())


@given(seed=st.integers(0, 2**32), share=st.floats(0.02, 0.5), mean_span=st.floats(1, 6), length=st.integers(2, LENGTH))
def test_source_and_target_give_the_block_back(seed, share, mean_span, length):
    objective = Objective.make({"objective": "span_corruption", "share": share, "mean_span": mean_span})
    blocks, tokens, keys = toy_blocks(5, length, seed, full=False)
    tokens[0] = length
    blocks[0] = blocks[0].max()
    shape, batch = objective.positions(length), objective.corrupt(blocks, tokens, keys, VOCABULARY)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (5, shape.inputs)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == (5, shape.targets)
    for row, count in enumerate(tokens):
        used, labels = batch["attention_mask"][row] == 1, batch["labels"][row]
        source, target = batch["input_ids"][row][used], labels[labels != IGNORED]
        assert (np.diff(batch["attention_mask"][row]) <= 0).all()
        assert (batch["input_ids"][row][~used] == PAD).all()
        assert np.array_equal(labels[: len(target)], target)
        if count < 2:
            assert source.tolist() == [*blocks[row, :count], EOS]
            assert len(target) == 0
        else:
            assert restored(source, target)[0] == blocks[row, :count].tolist()
        before = batch["decoder_input_ids"][row]
        assert before[0] == PAD
        assert np.array_equal(before[1 : len(target)], target[: max(0, len(target) - 1)])


def test_shares_and_lengths_are_met():
    blocks, tokens, keys = toy_blocks(1500)
    objective = Objective.make("span_corruption")
    batch = objective.corrupt(blocks, tokens, keys, VOCABULARY)
    assert (batch["labels"] != IGNORED).all()
    lengths, firsts = [], []
    for source, target in zip(batch["input_ids"], batch["labels"], strict=True):
        spans = restored(source, target)[1]
        lengths.append([len(span) for span in spans])
        firsts.append(np.isin(source, VOCABULARY.sentinels).argmax())
    cut = np.array(lengths)
    assert (cut.sum(axis=1) == round(0.15 * LENGTH)).all()
    assert cut.shape[1] == round(0.15 * LENGTH / 3)
    # Seven tokens in two parts: each of the six ways is as likely.
    assert np.bincount(cut[:, 0], minlength=7)[1:] / len(cut) == pytest.approx(np.full(6, 1 / 6), abs=0.04)
    assert np.unique(firsts).tolist() == list(range(1, LENGTH - 7))


def test_as_in_the_paper():
    """What T5 makes of a sentence by hand: spans alternate, sentinels count up, one more ends the target."""
    block = np.array([[10, 11, 12, 13, 14, 15, 16, 17, 18, 19]])
    objective = Objective.make({"objective": "span_corruption", "share": 0.3, "mean_span": 3})
    batch = objective.corrupt(block, np.array([10]), np.zeros(1, np.uint64), VOCABULARY)
    first, last = VOCABULARY.sentinels[:2]
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15, 16, first, EOS]]
    assert batch["labels"].tolist() == [[first, 17, 18, 19, last, EOS]]
    assert batch["decoder_input_ids"].tolist() == [[PAD, first, 17, 18, 19, last]]


def config():
    return build_config("t5", "toy", vocab_size=VOCABULARY.size, length=LENGTH, ids=VOCABULARY.ids)


def test_no_eos_token():
    with pytest.raises(ModelError, match=r"eos_token: .* no eos token"):
        Objective.make("span_corruption").check(toy_tokenizer(without="eos"), config(), LENGTH)


def test_too_few_sentinels():
    objective = Objective.make("span_corruption")
    objective.check(toy_tokenizer(sentinels=27), config(), 512)
    with pytest.raises(ModelError, match=r"512 tokens need 27 sentinels, the tokenizer has 26.*<extra_id_26>"):
        objective.check(toy_tokenizer(sentinels=26), config(), 512)


def test_documents_cannot_be_kept_apart():
    objective, (blocks, tokens, keys) = Objective.make("span_corruption"), toy_blocks(1)
    assert not objective.separates_documents
    with pytest.raises(ConfigError, match="cannot keep the documents"):
        objective.corrupt(blocks, tokens, keys, VOCABULARY, [tokens])
