import inspect
import re

import pytest
import torch
import transformers

from lspm_ray.errors import ConfigError
from lspm_ray.models import presets
from lspm_ray.models.directory import load_model, load_tokenizer, save_model
from lspm_ray.models.presets import ARCHITECTURES, SIZES, build_config, build_model, preset

AUTO = {
    "bert": "AutoModelForMaskedLM",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}
IDS = {"pad": 3, "bos": 1, "eos": 2, "cls": None, "sep": None, "mask": 4}


def config(architecture, size="toy", vocab_size=100, length=32, overrides=None):
    return build_config(architecture, size, vocab_size=vocab_size, length=length, ids=IDS, overrides=overrides)


def parameters(architecture, size):
    with torch.device("meta"):
        made = getattr(transformers, AUTO[architecture]).from_config(config(architecture, size, 32_000, 1024))
    return sum(p.numel() for p in made.parameters())


def table():
    lines = re.findall(r"^\| (\w+) +\|(.*)\|$", inspect.getdoc(presets), flags=re.M)
    return {name: [float(cell) for cell in cells.split("|")] for name, cells in lines if name != "size"}


def test_the_documented_table_is_true():
    documented = table()
    assert tuple(documented) == SIZES
    for size, (layers, hidden, heads, feed_forward, gated, *millions) in documented.items():
        found = config("bert", size)
        assert (found.num_hidden_layers, found.hidden_size, found.num_attention_heads) == (layers, hidden, heads)
        assert (found.intermediate_size, config("llama", size).intermediate_size) == (feed_forward, gated)
        assert config("gpt2", size).n_inner == feed_forward
        for architecture, expected in zip(ARCHITECTURES, millions, strict=True):
            assert round(parameters(architecture, size) / 1e6, 1) == expected, (architecture, size)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_has_350_million_parameters(architecture):
    assert parameters(architecture, "large") == pytest.approx(350e6, rel=0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestConfig:
    def test_fits_tokenizer_and_blocks(self, architecture):
        found = config(architecture, vocab_size=130, length=48)
        assert found.model_type == architecture
        assert found.vocab_size == 192
        assert (found.pad_token_id, found.eos_token_id) == (3, 2)
        assert getattr(found, "max_position_embeddings", 48) == 48
        assert found.tie_word_embeddings

    def test_any_field_can_be_overridden(self, architecture):
        found = config(architecture, overrides={"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 500})
        assert (found.hidden_size, found.num_hidden_layers, found.vocab_size) == (64, 3, 500)
        built = build_model(AUTO[architecture], found, 0)
        assert built.get_input_embeddings().weight.shape == (500, 64)

    def test_unknown_field(self, architecture):
        with pytest.raises(ConfigError, match=r"model\.config\.hiden_size: .* no such field .*valid: hidden_size"):
            config(architecture, overrides={"hiden_size": 64})

    def test_value_of_the_wrong_type(self, architecture):
        with pytest.raises(ConfigError, match=f"not a {architecture} model: .*hidden_size|d_model|n_embd"):
            config(architecture, overrides={"hidden_size": "many"})

    @pytest.mark.parametrize("heads", [0, 5])
    def test_heads_that_do_not_divide_the_width(self, architecture, heads):
        if architecture == "t5" and heads:
            return  # its heads have a width of their own
        with pytest.raises(ConfigError):
            config(architecture, overrides={"num_attention_heads": heads})


def test_dropout():
    assert config("bert").hidden_dropout_prob == config("bert").attention_probs_dropout_prob == 0.1
    assert config("t5").dropout_rate == config("llama").attention_dropout == 0
    assert [getattr(config("gpt2"), f"{where}_pdrop") for where in ("resid", "embd", "attn")] == [0, 0, 0]
    assert config("gpt2", overrides={"resid_pdrop": 0.2}).resid_pdrop == 0.2


def test_unknown_names_list_those_there_are():
    with pytest.raises(ConfigError, match=r"architecture: .*\(got 'elmo'\); valid: bert, gpt2, llama, t5"):
        preset("elmo", "toy")
    with pytest.raises(ConfigError, match=r"size: .*\(got 'huge'\); valid: toy, mini"):
        preset("bert", "huge")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_depend_on_the_seed_alone(architecture):
    made = []
    for state, seed in ((1, 0), (2, 0), (2, 5)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        made.append(build_model(AUTO[architecture], config(architecture), seed))
        assert torch.equal(torch.get_rng_state(), before)
    first, again = (model.state_dict() for model in made[:2])
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    embeddings = [model.get_input_embeddings().weight for model in made]
    assert not torch.equal(embeddings[0], embeddings[2])
    assert {p.dtype for p in made[0].parameters()} == {torch.float32}
    assert made[0].training


def test_an_architecture_without_the_head():
    with pytest.raises(ConfigError, match="gpt2 has no head for AutoModelForMaskedLM"):
        build_model("AutoModelForMaskedLM", config("gpt2"), 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_pretrained_loads_for_fine_tuning(architecture, tmp_path):
    from tests.training.toy_language import ROLES, toy_tokenizer, toy_vocabulary

    words = toy_vocabulary()
    made = build_config(architecture, "toy", vocab_size=words.size, length=16, ids=words.ids)
    pretrained = build_model(AUTO[architecture], made, 0)
    save_model(pretrained, toy_tokenizer(), tmp_path)
    tokenizer, classifier = load_tokenizer(tmp_path), load_model(tmp_path, ["no", "yes", "perhaps"]).eval()
    assert torch.equal(classifier.get_input_embeddings().weight, pretrained.get_input_embeddings().weight)
    body, found = pretrained.base_model.state_dict(), classifier.base_model.state_dict()
    kept = {name: tensor for name, tensor in body.items() if name in found or f"transformer.{name}" in found}
    assert len(kept) >= len(body) - 1, "all but the head of T5's base model, which is the whole model"
    for name, tensor in kept.items():
        assert torch.equal(found.get(name, found.get(f"transformer.{name}")), tensor), name
    end = ROLES["eos"]  # T5's head reads the one eos of a text
    batch = tokenizer([f"w1 w2 w3 {end}", f"w4 {end}"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        alone = classifier(**{k: v[1:, :2] for k, v in batch.items() if k in ("input_ids", "attention_mask")}).logits
    assert logits.shape == (2, 3)
    assert torch.allclose(logits[1], alone[0], atol=1e-5)
