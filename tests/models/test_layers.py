import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lspm_ray.errors import ModelError
from lspm_ray.models.fresh import build_classifier, classifier_config
from lspm_ray.models.layers import STACKS, check_frozen, freeze, layer_linears, set_dropout
from lspm_ray.models.pruned import PrunedConfig, PrunedForSequenceClassification
from tests.toys import toy_model

IDS = {"pad": 0, "bos": 2, "eos": 3, "cls": 2, "sep": 3, "mask": 4}
TOKENS = torch.tensor([[2, *range(10, 22), 3], [2, *range(22, 26), 3, *[0] * 8]])
MASK = (TOKENS != 0).long()
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}


def model(family, **overrides):
    """A small classifier with no dropout of its own."""
    if family == "bag":
        return toy_model("bag")
    if family in ("lstm", "bert", "gpt2", "llama", "t5"):
        size = None if family == "lstm" else "toy"
        config = classifier_config(family, size, overrides, vocab_size=64, length=32, ids=IDS)
        return build_classifier(config, 0)
    config = AutoConfig.for_model(family, vocab_size=64, max_position_embeddings=40, **SMALL)
    return AutoModelForSequenceClassification.from_config(config)


def passes(made, *, training):
    """Logits of two passes over the same batch."""
    made.train(training)
    with torch.inference_mode():
        return [made(input_ids=TOKENS, attention_mask=MASK).logits for _ in range(2)]


@pytest.mark.parametrize("family", ["bag", "lstm", *STACKS])
def test_two_passes_differ_exactly_where_there_is_dropout(family):
    made = model(family)
    weights, config = copy.deepcopy(made.state_dict()), made.config.to_dict()
    before = passes(made, training=False)[0]
    torch.manual_seed(0)
    set_dropout(made, 0.0)
    first, second = passes(made, training=True)
    assert torch.equal(first, second)
    set_dropout(made, 0.5)
    first, second = passes(made, training=True)
    assert not torch.allclose(first, second)
    assert torch.equal(passes(made, training=False)[0], before)
    assert made.config.to_dict() == config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("family", ["lstm", *STACKS])
def test_no_probability_is_forgotten(family):
    made = model(family, **({"layers": 2} if family == "lstm" else {}))
    set_dropout(made, 0.25)
    found = {module.p for module in made.modules() if isinstance(module, torch.nn.Dropout)}
    # Not in modules, but in numbers: of attention, and between the layers of an LSTM.
    found |= {v for m in made.modules() for k, v in vars(m).items() if "drop" in k and isinstance(v, float)}
    assert found == {0.25}


ATTENTION = {"bert": "attention.self", "gpt2": "attn", "llama": "self_attn", "t5": "layer.0.SelfAttention"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ATTENTION)
def test_attention_has_dropout_even_where_all_other_places_have_none(family, attention):
    made = model(family)
    made.set_attn_implementation(attention)
    set_dropout(made, 0.0)
    stack = made.base_model.get_submodule(STACKS[family].layers)
    set_dropout(stack[0].get_submodule(ATTENTION[family]), 0.5)
    first, second = passes(made, training=True)
    assert not torch.allclose(first, second)


def trained(made, steps=2):
    optimizer = torch.optim.AdamW((p for p in made.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    made.train()
    for _ in range(steps):
        logits = made(input_ids=TOKENS, attention_mask=MASK).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return made.state_dict()


@pytest.mark.parametrize("family", STACKS)
def test_embeddings_and_first_layers_stay_as_they_are(family):
    made = model(family, num_hidden_layers=2)
    before = copy.deepcopy(made.state_dict())
    freeze(made, 1)
    after = trained(made)
    stack = f"{made.base_model_prefix}.{STACKS[family].layers}."
    embeddings = [f"{made.base_model_prefix}.{name}." for name in STACKS[family].embeddings]
    frozen = (*embeddings, f"{stack}0.")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(frozen)]
    assert [name for name in moved if name.startswith(f"{stack}1.")]
    assert {name for name, p in made.named_parameters() if not p.requires_grad} == {
        name for name, _ in made.named_parameters() if name.startswith(frozen)
    }


@pytest.mark.parametrize("family", ["lstm", "bag", "bert"])
def test_none_trains_everything(family):
    made = model(family)
    freeze(made, 0)
    assert all(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(
    ("family", "count", "message"),
    [
        ("bert", 3, r"finetune\.frozen_layers: the model has 2 layers \(got 3\); valid: 0 to 2"),
        ("lstm", 1, r"finetune\.frozen_layers: .*lspm_lstm.* \(got 1\); valid: 0\. They can be frozen in: bert"),
    ],
)
def test_more_than_there_are_is_refused(family, count, message):
    with pytest.raises(ModelError, match=message):
        freeze(model(family), count)


def test_all_layers_can_be_frozen():
    made = model("bert")
    freeze(made, 2)
    assert {name.split(".")[0] for name, p in made.named_parameters() if p.requires_grad} <= {"bert", "classifier"}
    assert not any(p.requires_grad for p in made.bert.encoder.parameters())
    check_frozen("bert", 2, 2)


@pytest.mark.parametrize("family", sorted(set(STACKS) - {"gpt2"}))
def test_linear_layers_of_the_transformer_layers(family):
    made = model(family, num_hidden_layers=2)
    stack, found = f"{made.base_model_prefix}.{STACKS[family].layers}.", layer_linears(made)
    assert len(found) >= 12 and all(name.startswith(stack) for name in found)
    assert all(made.get_submodule(name) is linear for name, linear in found.items())


def test_linear_layers_of_a_pruned_model():
    pruned = PrunedForSequenceClassification(
        PrunedConfig(base=toy_model().config.to_dict(), heads=[1, 2], neurons=[8, 64], id2label={0: "no", 1: "yes"})
    )
    found = layer_linears(pruned)
    assert len(found) == 12 and all(name.startswith("inner.bert.encoder.layer.") for name in found)


@pytest.mark.parametrize("family", ["lstm", "bag", "gpt2"])
def test_a_model_without_linear_layers_is_refused(family):
    with pytest.raises(ModelError, match=r"model_type: the linear layers .* valid: bert, camembert"):
        layer_linears(model(family))
