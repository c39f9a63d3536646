import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.errors import ModelError
from lspm_ray.models.bag_of_ngrams import BagOfNgramsConfig, BagOfNgramsForSequenceClassification
from lspm_ray.models.directory import load_model, save_model
from lspm_ray.models.lstm import POOLINGS, LstmConfig, LstmForSequenceClassification
from lspm_ray.models.pruned import (
    LOOKUP_FAMILIES,
    PrunedConfig,
    PrunedForSequenceClassification,
    bare,
    compact,
    encoder_layers,
    head_count,
    shrink,
    trim,
)
from tests.toys import toy_model, toy_tokenizer

IDS = torch.tensor([[2, 40, 41, 42, 3], [2, 50, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def bag(**options):
    torch.manual_seed(0)
    config = BagOfNgramsConfig(vocab_size=100, buckets=512, embedding_size=4, id2label={0: "a", 1: "b"}, **options)
    return BagOfNgramsForSequenceClassification(config).eval()


@pytest.mark.parametrize("options", [{}, {"ngrams": 1}, {"ngrams": 3}, {"hidden_size": 6}])
def test_bag_survives_saving(tmp_path, options):
    model = bag(**options)
    save_model(model, toy_tokenizer(), tmp_path)
    assert torch.equal(load_model(tmp_path)(IDS, MASK).logits, model(IDS, MASK).logits)


def test_bag_ignores_padding():
    model = bag(ngrams=3)
    alone = model(IDS[1:, :3], MASK[1:, :3]).logits
    assert torch.allclose(model(IDS, MASK).logits[1:], alone, atol=1e-6)


def test_bag_sees_order_only_through_ngrams():
    swapped = IDS[:1, [0, 2, 1, 3, 4]]
    one, two = bag(ngrams=1), bag(ngrams=2)
    ones = torch.ones_like(swapped)
    assert torch.allclose(one(IDS[:1], ones).logits, one(swapped, ones).logits, atol=1e-6)
    assert not torch.allclose(two(IDS[:1], ones).logits, two(swapped, ones).logits, atol=1e-6)


@settings(max_examples=40)
@given(ids=st.lists(st.integers(0, 2**31), min_size=1, max_size=12), ngrams=st.integers(1, 5))
def test_bag_features_stay_in_the_table(ids, ngrams):
    model = bag(ngrams=ngrams)
    tensor = torch.tensor([[i % 100 for i in ids]])
    rows = model.features(tensor, torch.ones_like(tensor))
    assert rows.min() >= 1
    assert rows.max() < model.embedding.num_embeddings
    assert rows.shape[1] == sum(len(ids) - n + 1 for n in range(1, min(ngrams, len(ids)) + 1))


def test_bag_short_text_with_long_ngrams():
    assert bag(ngrams=5)(IDS[:, :1], MASK[:, :1]).logits.shape == (2, 2)


def lstm(**options):
    torch.manual_seed(0)
    config = LstmConfig(vocab_size=100, embedding_size=8, hidden_size=6, id2label={0: "a", 1: "b", 2: "c"}, **options)
    return LstmForSequenceClassification(config).eval()


KINDS_OF_LSTM = [{"pooling": pooling, "layers": layers} for pooling in POOLINGS for layers in (1, 2)]


@pytest.mark.parametrize("options", KINDS_OF_LSTM, ids=str)
def test_lstm_survives_saving(tmp_path, options):
    model = lstm(**options)
    save_model(model, toy_tokenizer(), tmp_path)
    loaded = load_model(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert (loaded.config.pooling, loaded.config.layers) == (options["pooling"], options["layers"])
    assert torch.equal(loaded(IDS, MASK).logits, model(IDS, MASK).logits)


@pytest.mark.parametrize("options", KINDS_OF_LSTM, ids=str)
def test_lstm_ignores_padding_and_sees_the_rest(options):
    model = lstm(**options)
    both = model(IDS, MASK).logits
    assert both.shape == (2, 3)
    assert torch.allclose(both[1:], model(IDS[1:, :3], MASK[1:, :3]).logits, atol=1e-6)
    assert torch.allclose(both[1:], model(torch.where(MASK == 1, IDS, 77), MASK).logits[1:], atol=1e-6)
    assert torch.allclose(both[:1], model(IDS[:1]).logits, atol=1e-6)
    swapped = IDS[:, [0, 2, 1, 3, 4]]
    assert not torch.allclose(both, model(swapped, MASK).logits, atol=1e-4), "order counts"


def test_lstm_takes_any_number_of_labels(tmp_path):
    save_model(lstm(), toy_tokenizer(), tmp_path)
    loaded = load_model(tmp_path, ["1", "2", "3", "4"])
    assert loaded(IDS, MASK).logits.shape == (2, 4)
    assert torch.equal(loaded.embedding.weight, lstm().embedding.weight)


def test_lstm_starts_with_open_forget_gates():
    fresh = lstm().lstm
    bias = fresh.bias_ih_l0 + fresh.bias_hh_l0
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers must be 1 or more"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"pooling": "mean"}, "pooling must be one of last, max"),
        ({"hidden_size": "wide"}, "expected int"),
    ],
)
def test_lstm_refuses_what_makes_no_model(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        LstmConfig(**options)


def test_shrinking_nothing_changes_nothing():
    model = toy_model()
    before = model(IDS, attention_mask=MASK).logits
    for layer in encoder_layers(model):
        shrink(layer, [0, 1], list(range(64)))
    assert torch.allclose(model(IDS, attention_mask=MASK).logits, before, atol=1e-5)


def test_removed_heads_and_neurons_no_longer_count():
    model, masked = toy_model(), toy_model()
    for layer in encoder_layers(masked):
        with torch.no_grad():
            layer.attention.output.dense.weight[:, :16] = 0
            layer.output.dense.weight[:, 10:] = 0
    for layer in encoder_layers(model):
        shrink(layer, [1], list(range(10)))
        assert head_count(layer) == 1
    assert torch.allclose(model(IDS, attention_mask=MASK).logits, masked(IDS, attention_mask=MASK).logits, atol=1e-5)


def test_family_that_cannot_be_pruned_is_named():
    with pytest.raises(ModelError, match=r"lspm_bag_of_ngrams.*valid: bert"):
        encoder_layers(bag())


def small(family):
    """A fresh classifier of a family, with 60 token ids of which the last ends a text."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from lspm_ray.models.directory import register

    register()
    sizes = {
        "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
        "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 8},
        "lspm_lstm": {"embedding_size": 8, "hidden_size": 8},
    }
    usual = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model(family, vocab_size=60, pad_token_id=0, eos_token_id=59, **sizes.get(family, usual))
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def answers(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


KEPT = [0, 1, *range(20, 40), 59]
TEXTS = torch.tensor([[20, 25, 39, 22, 59], [30, 21, 20, 38, 59]])


@pytest.mark.parametrize("family", LOOKUP_FAMILIES)
def test_kept_tokens_are_read_as_before_and_others_as_their_stand_ins(tmp_path, family):
    model = small(family)
    trimmed = trim(model, KEPT, [1] * (60 - len(KEPT))).eval()
    assert torch.equal(answers(trimmed, TEXTS), answers(model, TEXTS))
    unseen, unknown = TEXTS.clone(), TEXTS.clone()
    unseen[:, 2], unknown[:, 2] = 50, 1
    assert torch.equal(answers(trimmed, unseen), answers(model, unknown))
    save_model(trimmed, toy_tokenizer(), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.get_input_embeddings().embedding.num_embeddings == len(KEPT)
    assert torch.equal(answers(loaded, unseen), answers(model, unknown))


def test_without_an_unknown_token_the_mean_of_the_removed_stands_for_them():
    model = small("bert")
    trimmed = trim(model, KEPT, None)
    weight = model.get_input_embeddings().weight
    removed = [token for token in range(60) if token not in KEPT]
    found = trimmed.get_input_embeddings()(torch.tensor([5, 58, 20]))
    assert torch.allclose(found[:2], weight[removed].mean(0).expand(2, -1))
    assert torch.equal(found[2], weight[20])
    everything = trim(model, list(range(60)), None)
    assert torch.equal(everything.get_input_embeddings().embedding.weight, weight)


def test_whatever_is_removed_there_is_one_wrapper():
    model = small("bert")
    shrink(encoder_layers(model)[0], [1], [0, 1, 2])
    before = answers(model, TEXTS)
    twice = trim(trim(compact(model), KEPT, None), KEPT[:-2], None)
    assert twice.config.base["model_type"] == bare(twice).config.model_type == "bert"
    assert (twice.config.heads, twice.config.neurons, twice.config.vocabulary) == ([1], [3], len(KEPT) - 1)
    assert torch.allclose(answers(compact(twice).eval(), TEXTS[:, :2]), answers(model, TEXTS[:, :2]), atol=1e-6)
    assert torch.equal(answers(model, TEXTS), before)


def test_models_that_were_pruned_twice_before_there_was_one_wrapper_still_load(tmp_path):
    inner = compact(small("bert"))
    base = inner.config.to_dict() | {"model_type": "lspm_pruned"}
    nested = PrunedForSequenceClassification(
        PrunedConfig(base=base, heads=[1], neurons=[4], id2label={0: "a", 1: "b"}, pad_token_id=0)
    )
    save_model(nested, toy_tokenizer(), tmp_path)
    assert torch.equal(answers(load_model(tmp_path), TEXTS), answers(nested.eval(), TEXTS))
