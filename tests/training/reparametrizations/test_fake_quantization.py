"""Fake quantisation against the real one: toy models exported, quantised and run by ONNX Runtime."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lspm_ray.compression.method import Context, Method
from lspm_ray.inference.batching import pad
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_model, save_model
from lspm_ray.models.fresh import build_classifier, classifier_config
from lspm_ray.tasks import Task
from lspm_ray.training.reparametrizations.fake_quantization import FakeQuantization
from tests.toys import LABELS, toy_tokenizer

SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}


def build(family):
    """A classifier whose weights, biases and norms are all far from those of a fresh one."""
    tokenizer = toy_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family in SMALL:
            config = AutoConfig.for_model(
                family, **SMALL[family], vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=0
            )
            config.id2label = dict(enumerate(LABELS))
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            ids = dict.fromkeys(("bos", "eos", "cls", "sep"), tokenizer.sep_token_id) | {"pad": 0}
            config = classifier_config(family, "toy", {}, vocab_size=len(tokenizer), length=64, ids=ids)
            config.id2label = dict(enumerate(LABELS))
            model = build_classifier(config, seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(torch.randn_like(parameter) * (0.2 if "weight" in name else 0.1))
    return model.eval()


def texts(count=64):
    random = np.random.default_rng(0)
    return [
        np.append(random.integers(5, 90, random.integers(1, 40)), toy_tokenizer().sep_token_id) for _ in range(count)
    ]


def logits(model, batch):
    ids, mask = pad(batch, 0)
    with torch.inference_mode():
        found = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    return found.numpy()


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "t5"])
def test_it_computes_what_onnx_runtime_will(tmp_path, family):
    plain, int8 = tmp_path / "plain", tmp_path / "int8"
    save_model(build(family), toy_tokenizer(), plain)
    int8.mkdir()
    context = Context(Task.make("text_classification"), None, lambda *_: None, 1, lambda _: None)
    Method.make("quantize_int8").apply(plain, int8, context)
    full, real = (load_predictor(directory, threads=1).predict(texts()) for directory in (plain, int8))
    model = load_model(plain).eval()
    FakeQuantization().attach(model)
    fake = logits(model, texts())
    # What is left are roundings that fall to the other side, in a few texts.
    assert (np.abs(fake - real).max(axis=1) > 1e-4).mean() < 0.1
    assert np.abs(fake - real).mean() < 0.1 * np.abs(full - real).mean()


def test_the_company_does_not_change_an_answer():
    model = build("bert")
    FakeQuantization().attach(model)
    batch = texts(8)
    alone = np.concatenate([logits(model, [text]) for text in batch])
    # Rounding may differ where a product was summed up in another order.
    assert np.median(np.abs(logits(model, batch) - alone)) < 1e-6


def test_gradients_pass_as_if_nothing_were_rounded():
    ids = torch.tensor([[2, 40, 41, 3]])
    plain, fake = build("bert"), build("bert")
    FakeQuantization().attach(fake)
    for model in (plain, fake):
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].backward()
    expected = dict(plain.named_parameters())
    compared = 0
    for name, parameter in fake.named_parameters():
        gradient = expected[name.replace("parametrizations.", "").replace(".original", "")].grad
        if gradient.norm() > 1e-3:
            cosine = torch.nn.functional.cosine_similarity(parameter.grad.flatten(), gradient.flatten(), dim=0)
            assert cosine > 0.9, name
            compared += 1
    assert compared > 20


def test_the_saved_weights_are_those_that_were_trained():
    model, plain = build("bert"), build("bert").state_dict()
    FakeQuantization().attach(model)
    assert not torch.equal(model.classifier.weight, plain["classifier.weight"])
    state = FakeQuantization().plain_state(model)
    assert set(state) == set(plain) and all(torch.equal(state[name], plain[name]) for name in plain)
