import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.training.attention import FAMILIES, document_mask, document_numbers, position_ids
from lspm_ray.training.objective import Objective, looks_ahead
from tests.training.toy_language import (
    LENGTH,
    TRAINED_BY,
    as_tensors,
    toy_blocks,
    toy_pretrainable,
    toy_tokenizer,
    toy_vocabulary,
)

VOCABULARY = toy_vocabulary()
SEGMENTS = [np.array([20, 1, 12, 10])]  # and five of padding
SECOND_LAST = slice(21, 33)
one_block = st.lists(st.integers(1, 9), max_size=6)


@given(segments=st.lists(one_block, min_size=1, max_size=4), padding=st.integers(0, 5), causal=st.booleans())
def test_mask_and_positions_by_definition(segments, padding, causal):
    length = max(sum(lengths) for lengths in segments) + padding
    numbers = document_numbers([np.array(lengths, dtype=np.int64) for lengths in segments], length)
    positions = position_ids(numbers)
    mask = document_mask(torch.from_numpy(numbers), torch.from_numpy(positions), causal)
    assert mask.shape == (len(segments), 1, length, length)
    for block, lengths in enumerate(segments):
        owner = [n for n, size in enumerate([*lengths, length - sum(lengths)]) for _ in range(size)]
        assert numbers[block].tolist() == owner
        assert positions[block].tolist() == [owner[:i].count(n) for i, n in enumerate(owner)]
        expected = [[a == b and (j <= i or not causal) for j, b in enumerate(owner)] for i, a in enumerate(owner)]
        assert mask[block, 0].tolist() == expected


def logits(objective, model, blocks, segments):
    tokens = np.array([43])
    batch = as_tensors(objective.corrupt(blocks, tokens, np.zeros(1, np.uint64), VOCABULARY, segments))
    batch["input_ids"] = torch.from_numpy(blocks)
    with torch.inference_mode():
        return model(**objective.inputs(model, batch)).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
class TestIsolation:
    def test_other_documents_change_nothing(self, architecture, attention):
        objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
        model.set_attn_implementation(attention)
        blocks = toy_blocks(1)[0]
        others = blocks.copy()
        outside = np.ones(LENGTH, dtype=bool)
        outside[SECOND_LAST] = False
        others[:, outside] = toy_blocks(1, seed=1)[0][:, outside]
        apart = [logits(objective, model, b, SEGMENTS)[:, SECOND_LAST] for b in (blocks, others)]
        mixed = [logits(objective, model, b, None)[:, SECOND_LAST] for b in (blocks, others)]
        assert torch.allclose(*apart, rtol=0, atol=1e-6)
        assert (mixed[0] - mixed[1]).abs().max() > 1e-2

    def test_a_document_is_read_as_if_it_were_alone(self, architecture, attention):
        objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
        model.set_attn_implementation(attention)
        blocks = toy_blocks(1)[0]
        found = logits(objective, model, blocks, SEGMENTS)
        with torch.inference_mode():
            alone = model(input_ids=torch.from_numpy(blocks[:, SECOND_LAST])).logits
        assert torch.allclose(found[:, SECOND_LAST], alone, rtol=0, atol=1e-5)
        assert found.isfinite().all()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_loss_and_gradients_are_those_of_the_documents_one_by_one(architecture):
    objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
    blocks, _, keys = toy_blocks(1)
    batch = as_tensors(objective.corrupt(blocks, np.array([43]), keys, VOCABULARY, SEGMENTS))
    together = objective.loss(model, batch)
    ends = np.cumsum(SEGMENTS[0])
    one_by_one = sum(
        Objective.loss(objective, model, {k: batch[k][:, end - size : end] for k in ("input_ids", "labels")})
        for size, end in zip(SEGMENTS[0], ends, strict=True)
        if (batch["labels"][:, end - size : end] >= 0).any()
    )
    assert together.item() == pytest.approx(one_by_one.item(), rel=1e-5)
    wanted = torch.autograd.grad(one_by_one, list(model.parameters()))
    for found, expected in zip(torch.autograd.grad(together, list(model.parameters())), wanted, strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def tiny_config(family, **fields):
    """Two layers; the sizes of parts that only some families have are set where they are."""
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    ids = {"vocab_size": VOCABULARY.size, "pad_token_id": VOCABULARY.id("pad"), "eos_token_id": VOCABULARY.id("eos")}
    config = AutoConfig.for_model(family)
    parts = {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "hidden_dim": 64,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    }
    parts = {name: value for name, value in parts.items() if getattr(config, name, None) is not None}
    return AutoConfig.for_model(family, **(sizes | ids | parts | fields))


def tiny_model(config):
    """With weights of which every one matters."""
    import transformers

    auto_class = Objective.find("masked_lm" if looks_ahead(config) else "causal_lm").auto_class
    widen = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2, generator=widen)
    return model


class TestFamilies:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_document_is_read_as_if_it_were_alone(self, family):
        config = tiny_config(family)
        if getattr(config, "sliding_window", None) is not None:
            config.sliding_window = LENGTH
        objective, model = Objective.make("masked_lm" if looks_ahead(config) else "causal_lm"), tiny_model(config)
        objective.check(toy_tokenizer(), config, LENGTH, across_documents=False)
        blocks = toy_blocks(1)[0]
        for attention in dict.fromkeys([model.config._attn_implementation, "eager"]):
            model.set_attn_implementation(attention)
            for segments in ([20, 1, 12, 10], [LENGTH]):
                found = logits(objective, model, blocks, [np.array(segments)])
                for end, size in zip(np.cumsum(segments), segments, strict=True):
                    place = slice(end - size, end)
                    with torch.inference_mode():
                        alone = model(input_ids=torch.from_numpy(blocks[:, place])).logits
                    assert torch.allclose(found[:, place], alone, rtol=0, atol=1e-4), (attention, segments, place)

    @pytest.mark.parametrize("family", ["deberta-v2", "mobilebert", "bloom", "mamba", "roformer"])
    def test_other_families_are_refused(self, family):
        config = tiny_config(family)
        objective = Objective.make("masked_lm" if looks_ahead(config) else "causal_lm")
        objective.check(toy_tokenizer(), config, LENGTH)
        message = rf"pretrain\.across_documents: .* {family} \(got False\); valid: true\. .*\bbert\b.*\broberta\b"
        with pytest.raises(ConfigError, match=message):
            objective.check(toy_tokenizer(), config, LENGTH, across_documents=False)

    @pytest.mark.parametrize("family", ["gemma2", "mistral", "modernbert"])
    def test_a_window_shorter_than_the_block_is_refused(self, family):
        config = tiny_config(family)
        config.sliding_window = LENGTH - 1
        objective = Objective.make("masked_lm" if looks_ahead(config) else "causal_lm")
        objective.check(toy_tokenizer(), config, LENGTH)
        message = r"pretrain\.across_documents: .* 48 tokens .* window of 47 \(got False\); valid: true\. .*47 tokens"
        with pytest.raises(ConfigError, match=message):
            objective.check(toy_tokenizer(), config, LENGTH, across_documents=False)
        objective.check(toy_tokenizer(), config, LENGTH - 1, across_documents=False)


def test_attention_that_takes_no_mask_is_refused():
    objective, model = Objective.make("causal_lm"), toy_pretrainable("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"attn_implementation: .* valid: sdpa, eager"):
        logits(objective, model, toy_blocks(1)[0], SEGMENTS)
