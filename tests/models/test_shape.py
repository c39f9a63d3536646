import pytest

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.models.shape import Shape, shape_of
from lspm_ray.models.source import read_config
from tests.toys import toy_model, toy_model_dir


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        ({"model_type": "bert", "max_position_embeddings": 64}, Shape("bert", 12, 64)),
        ({"model_type": "distilbert", "n_layers": 4}, Shape("distilbert", 4, 512)),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, Shape("roberta", 12, 512)),
        ({"model_type": "gpt2", "n_layer": 3, "n_positions": 1024}, Shape("gpt2", 3, 1024)),
        ({"model_type": "deberta-v2", "position_biased_input": False}, Shape("deberta-v2", 24, None)),
        ({"model_type": "xlnet", "n_layer": 6}, Shape("xlnet", 6, None)),
        ({"model_type": "t5", "num_layers": 3, "num_decoder_layers": 5}, Shape("t5", 3, None)),
        ({"model_type": "lspm_bag_of_ngrams"}, Shape("lspm_bag_of_ngrams", 0, None)),
        ({"model_type": "lspm_lstm", "layers": 2}, Shape("lspm_lstm", 0, None)),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_shape_is_what_the_family_calls_it(raw, shape):
    assert shape_of(raw, "org/model") == shape


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "mpnet", "luke", "distilbert"])
def test_the_longest_input_works_and_one_more_does_not(family):
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(family, vocab_size=20, max_position_embeddings=12, **sizes)
    for name, value in {"entity_vocab_size": 4, "entity_emb_size": 4}.items():
        setattr(config, name, value)
    longest = shape_of(config.to_dict(), family).max_tokens
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model(input_ids=torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 7))


def test_toy_model(tmp_path):
    assert shape_of(read_config(toy_model_dir(tmp_path)), "toy") == Shape("bert", 2, 64)


@pytest.mark.parametrize(
    "raw", [{}, {"model_type": "no-such-family"}, {"model_type": "bert", "num_hidden_layers": "x"}]
)
def test_what_transformers_cannot_use_is_refused(raw):
    with pytest.raises(ModelError, match=r"model\.name: config\.json cannot be used: .*got 'org/model'"):
        shape_of(raw, "org/model")


def test_texts_longer_than_the_model_are_refused():
    shape = Shape("bert", 2, 64)
    shape.check_length(64)
    with pytest.raises(ConfigError, match=r"task\.max_length: the model takes 64 tokens at most \(got 65\)\. Set task"):
        shape.check_length(65)
    Shape("xlnet", 2, None).check_length(100_000)


def test_tokenizer_without_a_padding_token_is_refused(tmp_path):
    directory = toy_model_dir(tmp_path)
    tokenizer = load_tokenizer(directory)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(directory)
    with pytest.raises(ModelError, match=r"model\.name: the tokenizer has no padding token.*pad_token in"):
        load_tokenizer(directory)


def test_a_wrapped_model_has_the_shape_of_what_is_inside(tmp_path):
    from lspm_ray.models.pruned import compact

    compact(toy_model()).save_pretrained(tmp_path)
    shape = shape_of(read_config(tmp_path), "pruned")
    assert shape == Shape("lspm_pruned", 2, 64)
    assert (shape.family, shape.hidden, shape.heads, shape.neurons) == ("bert", 32, 2, 64)
