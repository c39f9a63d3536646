import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.training.attention import document_mask, document_numbers, position_ids
from lspm_ray.training.objective import Objective
from tests.training.toy_language import (
    LENGTH,
    TRAINED_BY,
    as_tensors,
    toy_blocks,
    toy_pretrainable,
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


def test_attention_that_takes_no_mask_is_refused():
    objective, model = Objective.make("causal_lm"), toy_pretrainable("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"attn_implementation: .* valid: sdpa, eager"):
        logits(objective, model, toy_blocks(1)[0], SEGMENTS)
