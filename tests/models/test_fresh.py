import pytest
import torch

from lspm_ray.errors import ConfigError
from lspm_ray.models.fresh import ARCHITECTURES, build_classifier, classifier_config

IDS = {"pad": 7, "bos": 2, "eos": 3, "cls": 2, "sep": 3, "mask": 4}


def config(architecture, size=None, overrides=None, vocab_size=70):
    return classifier_config(architecture, size, overrides or {}, vocab_size=vocab_size, length=32, ids=IDS)


def test_an_lstm_fits_its_tokenizer():
    made = config("lstm")
    assert (made.vocab_size, made.pad_token_id) == (70, 7)
    assert (made.embedding_size, made.hidden_size, made.layers, made.pooling) == (256, 128, 1, "last")
    assert config("lstm", overrides={"hidden_size": 5, "pooling": "max"}).hidden_size == 5


def test_a_transformer_has_a_size_and_positions_for_the_longest_text():
    made = config("bert")
    assert (made.hidden_size, made.max_position_embeddings, made.vocab_size) == (256, 32, 128)
    assert config("bert", "toy").hidden_size == 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_depend_on_the_seed_alone(architecture):
    made = config(architecture, None if architecture == "lstm" else "toy")
    first, again, other = (build_classifier(made, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("elmo",), r"model\.architecture: unknown architecture \(got 'elmo'\); valid: lstm, bert"),
        (
            ("lstm", "mini"),
            r"model\.size: an LSTM has no sizes by name \(got 'mini'\)\. Set model\.config\.hidden_size",
        ),
        (("bert", "huge"), r"model\.size: unknown size \(got 'huge'\); valid: toy"),
        (
            ("lstm", None, {"hiden_size": 3}),
            r"model\.config\.hiden_size: .*no such field \(got 3\); valid: hidden_size",
        ),
        (("lstm", None, {"pooling": "mean"}), r"model\.config: not a lspm_lstm model: .*last, max"),
        (("bert", None, {"hiden_size": 3}), r"model\.config\.hiden_size.*hidden_size"),
        (("bert", None, {"num_attention_heads": 5}), r"model\.config: a hidden size of 256 cannot be divided among 5"),
        (("lstm", None, {"vocab_size": 69}), r"model\.config\.vocab_size: the tokenizer has 70 token ids \(got 69\)"),
    ],
)
def test_what_makes_no_model_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        config(*arguments)
