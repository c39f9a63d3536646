import json

import numpy as np
import pytest

from lspm_ray.errors import ModelError, ResourceError
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import load_model, load_tokenizer, read_variant
from lspm_ray.models.quantized import (
    QUANTIZATION_FILE,
    WEIGHTS_FILE,
    Quantization,
    _packed,
    _unpacked,
    load_quantized,
    read_quantization,
    save_quantized,
)
from tests.toys import toy_model, toy_model_dir, toy_tokenizer

pytest.importorskip("torchao")

SCHEMES = {"int8_weight_only": "int8", "int8_dynamic": "int8", "int4_weight_only": "int4", "fp8_dynamic": "fp8"}


def save(directory, scheme, kind="bert"):
    directory.mkdir()
    quantization = Quantization(scheme=scheme, group_size=16, compile=False)
    save_quantized(toy_model(kind), toy_tokenizer(), directory, quantization)
    return directory


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_loaded_is_what_was_stored(tmp_path, scheme):
    import torch
    from safetensors.torch import load_file

    directory = save(tmp_path / "m", scheme)
    assert read_variant(directory).precision == SCHEMES[scheme]
    assert read_quantization(directory).scheme == scheme
    model, full = load_quantized(directory, torch.float32), toy_model()
    levels = {"int8": 127, "int4": 7, "fp8": 16}[SCHEMES[scheme]]
    for name, expected in full.named_parameters():
        found = model.get_parameter(name)
        if hasattr(found, "dequantize") and type(found) is not torch.nn.Parameter:
            error = (found.dequantize().float() - expected).abs() / expected.abs().amax(1, keepdim=True)
            assert 0 < error.max() <= 0.51 / levels * (2 if scheme == "int8_dynamic" else 1) + 1e-2, name
        else:
            assert torch.equal(found, expected), name
    stored = load_file(directory / WEIGHTS_FILE)
    linears = [name for name in stored if name.endswith(".qdata")]
    assert len(linears) == 13  # six in each of two layers, and the pooler
    assert all(stored[name].element_size() == 1 for name in linears)
    for name in linears:
        rows, columns = full.get_parameter(name.removesuffix(".qdata")).shape
        assert stored[name].shape == (rows, columns // 2 if scheme == "int4_weight_only" else columns)
        scales = columns // 16 if scheme == "int4_weight_only" else 1
        assert stored[name.removesuffix("qdata") + "scale"].numel() == rows * scales


def test_the_same_weights_make_the_same_file(tmp_path):
    first, second = (save(tmp_path / name, "int4_weight_only") for name in "ab")
    assert (first / WEIGHTS_FILE).read_bytes() == (second / WEIGHTS_FILE).read_bytes()


def test_two_values_of_four_bits_share_a_byte():
    import torch

    values = torch.arange(-8, 8, dtype=torch.int8).reshape(2, 8)
    packed = _packed(values)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 4)
    assert torch.equal(_unpacked(packed, values), values)


def test_fp8_needs_a_gpu(tmp_path):
    with pytest.raises(ResourceError, match=r"gpu: fp8 takes a GPU of compute capability 8\.9.*CPU"):
        load_predictor(save(tmp_path / "m", "fp8_dynamic"), threads=1)


def test_a_model_without_linear_layers_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no linear layer whose sizes are multiples of 16.*lspm_bag_of_ngrams"):
        save(tmp_path / "m", "int8_weight_only", kind="bag")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    import torch

    directory = save(tmp_path / "m", "int8_weight_only")
    with pytest.raises(ModelError, match="weights are missing"):
        load_model(directory)
    (directory / WEIGHTS_FILE).write_bytes((toy_model_dir(tmp_path / "full") / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ModelError, match="does not load"):
        load_quantized(directory, torch.float32)
    config = json.loads((directory / "config.json").read_text()) | {"num_hidden_layers": 1}
    other = save(tmp_path / "other", "int8_weight_only")
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no place for some weights"):
        load_quantized(other, torch.float32)
    (directory / QUANTIZATION_FILE).unlink()
    with pytest.raises(ModelError, match=r"no torchao\.json"):
        load_quantized(directory, torch.float32)


def test_a_row_is_answered_as_by_the_dequantised_weights(tmp_path):
    import torch

    directory = save(tmp_path / "m", "int8_weight_only")
    plain, quantized = toy_model(), load_quantized(directory, torch.float32)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            found = quantized.get_parameter(name)
            if type(found) is not torch.nn.Parameter:
                parameter.copy_(found.dequantize())
    row = np.arange(5, 25)
    with torch.inference_mode():
        expected = plain(torch.from_numpy(row)[None]).logits.numpy()
    assert np.abs(load_predictor(directory, threads=1).predict([row]) - expected).max() < 1e-4
    assert load_tokenizer(directory)("good dress")["input_ids"]
