import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.presets import build_config
from lspm_ray.training.objective import IGNORED, Objective, Vocabulary, random_bits
from tests.training.toy_language import (
    LENGTH,
    SENTINELS,
    TRAINED_BY,
    as_tensors,
    toy_blocks,
    toy_pretrainable,
    toy_tokenizer,
    toy_vocabulary,
)

VOCABULARY = toy_vocabulary()
OBJECTIVES = ["causal_lm", "masked_lm", "span_corruption"]
ARCHITECTURE = {"causal_lm": "llama", "masked_lm": "bert", "span_corruption": "t5"}
seeds = st.integers(0, 2**32)


def config_for(objective, length=LENGTH, vocab_size=VOCABULARY.size):
    return build_config(ARCHITECTURE[objective], "toy", vocab_size=vocab_size, length=length, ids=VOCABULARY.ids)


def test_every_objective_loads_and_survives_its_yaml_form():
    assert Objective.names() == OBJECTIVES
    for name in OBJECTIVES:
        objective = Objective.make(name)
        assert Objective.make(objective.spec()) == objective
    assert {a: o for o in OBJECTIVES for a in Objective.find(o).architectures} == TRAINED_BY


@pytest.mark.parametrize("name", OBJECTIVES)
class TestCheck:
    def test_accepts_what_fits(self, name):
        Objective.make(name).check(toy_tokenizer(), config_for(name), LENGTH)

    def test_no_padding_token(self, name):
        with pytest.raises(ModelError, match=r"pad_token: .* no padding token"):
            Objective.make(name).check(toy_tokenizer(without="pad"), config_for(name), LENGTH)

    def test_vocabulary_larger_than_the_model(self, name):
        config = config_for(name, vocab_size=64)
        with pytest.raises(ModelError, match=rf"vocabulary does not fit the model: {VOCABULARY.size} .* knows 64"):
            Objective.make(name).check(toy_tokenizer(), config, LENGTH)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_blocks_longer_than_the_positions(architecture):
    name = TRAINED_BY[architecture]
    config = build_config(architecture, "toy", vocab_size=VOCABULARY.size, length=32, ids=VOCABULARY.ids)
    with pytest.raises(ConfigError, match=r"blocks of 33 tokens are longer than the 32 positions"):
        Objective.make(name).check(toy_tokenizer(), config, 33)
    Objective.make(name).check(toy_tokenizer(), config, 32)


def test_what_is_known_of_a_vocabulary():
    tokenizer = toy_tokenizer()
    assert VOCABULARY.size == len(tokenizer)
    assert VOCABULARY.ids == {
        r: getattr(tokenizer, f"{r}_token_id") for r in ("pad", "mask", "bos", "eos", "cls", "sep")
    }
    assert tokenizer.convert_ids_to_tokens(VOCABULARY.sentinels) == [f"<extra_id_{n}>" for n in range(SENTINELS)]
    ordinary = tokenizer.convert_ids_to_tokens(np.flatnonzero(~VOCABULARY.special).tolist())
    assert ordinary == [f"w{n}" for n in range(40)]


def test_ids_without_a_token_are_not_ordinary():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    rust = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 5}, unk_token="<unk>"))
    found = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="<unk>"))
    assert found.size == 6
    assert np.flatnonzero(~found.special).tolist() == [1, 5]
    assert found.sentinels == []
    with pytest.raises(ModelError, match="no mask token"):
        found.id("mask")


@given(seed=seeds, stream=st.integers(0, 5), count=st.integers(0, 20), more=st.integers(0, 20))
def test_random_bits_do_not_depend_on_how_many_are_drawn(seed, stream, count, more):
    keys = np.random.default_rng(seed).integers(0, 2**64, 3, dtype=np.uint64)
    assert np.array_equal(random_bits(keys, stream, count), random_bits(keys, stream, count + more)[:, :count])


def test_random_bits_are_uniform_and_unrelated_between_blocks_streams_and_positions():
    keys = np.arange(200, dtype=np.uint64)  # the worst keys there are
    drawn = np.stack([random_bits(keys, stream, 200) for stream in range(3)]) / 2.0**64
    assert np.allclose(drawn.mean(axis=(1, 2)), 0.5, atol=0.01)
    assert np.allclose(drawn.var(axis=(1, 2)), 1 / 12, atol=0.005)
    flat = drawn.reshape(3, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(flat[0, :-1], flat[0, 1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[0, :-1].ravel(), drawn[0, 1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=seeds, company=st.integers(0, 5), place=st.integers(0, 5))
def test_a_block_gives_the_same_in_any_company(name, seed, company, place):
    objective = Objective.make(name)
    blocks, tokens, keys = toy_blocks(6, seed=seed, full=False)
    together = objective.corrupt(blocks, tokens, keys, VOCABULARY)
    rows = np.unique([place, company])
    apart = objective.corrupt(blocks[rows], tokens[rows], keys[rows], VOCABULARY)
    for part, values in apart.items():
        assert np.array_equal(values, together[part][rows]), part


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_given_is_not_changed_and_keys_decide(name):
    objective = Objective.make(name)
    blocks, tokens, keys = toy_blocks(4)
    before = blocks.copy()
    first = objective.corrupt(blocks, tokens, keys, VOCABULARY)
    second = objective.corrupt(blocks, tokens, keys + np.uint64(1), VOCABULARY)
    assert np.array_equal(blocks, before)
    assert np.array_equal(first["labels"], second["labels"]) == (name == "causal_lm")


@pytest.mark.parametrize("architecture", list(TRAINED_BY))
def test_loss_is_the_sum_of_what_transformers_computes(architecture):
    objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
    blocks, tokens, keys = toy_blocks(5, full=False)
    batch = as_tensors(objective.corrupt(blocks, tokens, keys, VOCABULARY))
    theirs = dict(batch)
    if architecture in ("gpt2", "llama"):
        # Their labels are shifted inside the model.
        theirs["labels"] = torch.from_numpy(np.where(np.arange(LENGTH) < tokens[:, None], blocks, IGNORED))
        theirs["attention_mask"] = (theirs["labels"] != IGNORED).long()
    expected = model(**theirs).loss * (batch["labels"] != IGNORED).sum()
    found = objective.loss(model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", list(TRAINED_BY))
def test_a_batch_is_what_positions_says(architecture):
    objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
    blocks, tokens, keys = toy_blocks(3)
    blocks[blocks == VOCABULARY.id("eos")] = VOCABULARY.id("eos") if architecture != "bert" else 20
    batch, expected = objective.corrupt(blocks, tokens, keys, VOCABULARY), objective.positions(LENGTH)
    assert batch["input_ids"].shape == (3, expected.inputs)
    assert batch.get("decoder_input_ids", np.empty((3, 0))).shape == (3, expected.targets)
    assert ((batch["labels"] != IGNORED).sum(axis=1) == expected.predicted).all()
    assert objective.loss(model, as_tensors(batch)).isfinite()


@pytest.mark.parametrize("architecture", list(TRAINED_BY))
def test_a_toy_learns(architecture):
    """Every block counts up: what is hidden can be told from the rest."""
    objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
    ordinary = np.flatnonzero(~VOCABULARY.special)
    blocks = ordinary[(np.arange(LENGTH) + np.arange(16)[:, None]) % 8]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for step in range(25):
        keys = random_bits(np.arange(16, dtype=np.uint64), step, 1)[:, 0]
        batch = as_tensors(objective.corrupt(blocks, np.full(16, LENGTH), keys, VOCABULARY))
        loss = objective.loss(model, batch) / (batch["labels"] != IGNORED).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
