import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.presets import build_config
from lspm_ray.training.objective import IGNORED, Objective
from tests.training.toy_language import LENGTH, as_tensors, toy_blocks, toy_pretrainable, toy_tokenizer, toy_vocabulary

VOCABULARY = toy_vocabulary()
MASK = VOCABULARY.id("mask")


def corrupted(blocks, tokens, keys, **fields):
    return Objective.make({"objective": "masked_lm", **fields}).corrupt(blocks, tokens, keys, VOCABULARY)


@given(seed=st.integers(0, 2**32), share=st.floats(0.01, 0.99), length=st.integers(1, 60))
def test_labels_give_the_block_back_and_only_ordinary_tokens_are_chosen(seed, share, length):
    blocks, tokens, keys = toy_blocks(5, length, seed, full=False)
    batch = corrupted(blocks, tokens, keys, share=share)
    chosen = batch["labels"] != IGNORED
    assert np.array_equal(np.where(chosen, batch["labels"], batch["input_ids"]), blocks)
    assert not VOCABULARY.special[blocks[chosen]].any()
    put_in = batch["input_ids"][chosen]
    assert not VOCABULARY.special[put_in[put_in != MASK]].any()
    ordinary = ~VOCABULARY.special[blocks]
    assert (chosen.any(axis=1) == ordinary.any(axis=1)).all()
    assert np.array_equal(batch["attention_mask"].sum(axis=1), tokens)


def test_shares_are_met():
    blocks, tokens, keys = toy_blocks(2000)
    batch = corrupted(blocks, tokens, keys)
    chosen, ordinary = batch["labels"] != IGNORED, ~VOCABULARY.special[blocks]
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.005)
    assert (batch["input_ids"][chosen] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    # One in forty random words is the word that was there.
    assert (batch["input_ids"][chosen] == blocks[chosen]).mean() == pytest.approx(0.1 + 0.1 / 40, abs=0.015)
    replaced = chosen & (batch["input_ids"] != MASK) & (batch["input_ids"] != blocks)
    assert len(np.unique(batch["input_ids"][replaced])) == 40
    by_position = chosen.sum(axis=0) / ordinary.sum(axis=0)
    assert by_position.min() > 0.11
    assert by_position.max() < 0.19


@pytest.mark.parametrize(("mask", "random", "seen"), [(1, 0, "mask"), (0, 1, "random"), (0, 0, "kept")])
def test_all_of_one_sort(mask, random, seen):
    blocks, tokens, keys = toy_blocks(50)
    batch = corrupted(blocks, tokens, keys, mask_share=mask, random_share=random)
    chosen = batch["labels"] != IGNORED
    found = batch["input_ids"][chosen]
    assert (found == MASK).all() == (seen == "mask")
    assert (found == blocks[chosen]).all() == (seen == "kept")


def test_shares_over_one_are_refused():
    with pytest.raises(ConfigError, match="add up to more than 1"):
        Objective.make({"objective": "masked_lm", "mask_share": 0.8, "random_share": 0.3})


def test_no_mask_token():
    config = build_config("bert", "toy", vocab_size=VOCABULARY.size, length=LENGTH, ids=VOCABULARY.ids)
    with pytest.raises(ModelError, match=r"mask_token: .* no mask token"):
        Objective.make("masked_lm").check(toy_tokenizer(without="mask"), config, LENGTH)


def test_logits_of_predicted_positions_alone_give_equal_loss_and_gradients():
    objective, model = Objective.make("masked_lm"), toy_pretrainable("bert")
    calls = []
    model.cls.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    batch = as_tensors(objective.corrupt(*toy_blocks(6, full=False), VOCABULARY))
    losses, gradients = [], []
    for loss in (objective.loss, lambda *given: Objective.loss(objective, *given)):
        model.zero_grad()
        value = loss(model, batch)
        value.backward()
        losses.append(value.item())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert calls == [((batch["labels"] != IGNORED).sum(), 32), (6, LENGTH, 32)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-5), name


def test_other_architectures_get_all_logits():
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(
        vocab_size=VOCABULARY.size, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=LENGTH
    )
    model = DistilBertForMaskedLM(config).eval()
    objective = Objective.make("masked_lm")
    batch = as_tensors(objective.corrupt(*toy_blocks(3), VOCABULARY))
    expected = model(**batch).loss * (batch["labels"] != IGNORED).sum()
    assert objective.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
