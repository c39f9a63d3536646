"""Sparse storage: exact, smaller, and refused where it is not what it should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lspm_ray.errors import ModelError
from lspm_ray.models.directory import load_model
from lspm_ray.models.layers import layer_linears
from lspm_ray.models.sparse import SPARSE_FILE, is_semi_structured, pack, store_sparse, unpack, use_sparse_kernels
from tests.toys import toy_model, toy_model_dir

IDS = torch.tensor([[2, 40, 41, 42, 3]])


def sparse_model(share=0.8):
    model = toy_model()
    with torch.no_grad():
        for linear in layer_linears(model).values():
            linear.weight[torch.rand(linear.weight.shape, generator=torch.Generator().manual_seed(0)) < share] = 0
    return model


def stored(path, share=0.8):
    directory = toy_model_dir(path)
    sparse_model(share).save_pretrained(directory)
    dense = (directory / "model.safetensors").stat().st_size
    store_sparse(directory)
    return directory, dense


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_what_is_unpacked_is_what_was_packed(rows, columns, share, seed, tmp_path_factory):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn((rows, columns), generator=random)
    weight[torch.rand(weight.shape, generator=random) < share] = 0
    state = {"a.weight": weight, "a.bias": weight[0].clone(), "empty": torch.zeros(2, 0)}
    packed = pack(state)
    found = unpack(packed, tmp_path_factory.getbasetemp())
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_directory_is_loaded_as_any_other_and_smaller(tmp_path):
    directory, dense = stored(tmp_path / "m")
    loaded, model = load_model(directory).eval(), sparse_model()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    weights = sum(linear.weight.nbytes for linear in layer_linears(model).values())
    saved = dense - (directory / SPARSE_FILE).stat().st_size
    assert saved == pytest.approx(weights * (0.8 - 1 / 32), rel=0.1)


def test_options_and_labels_reach_a_sparse_model(tmp_path):
    directory, _ = stored(tmp_path / "m")
    loaded = load_model(directory, ["a", "b", "c"], attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager" and loaded.classifier.out_features == 3
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_storing_twice_changes_no_byte(tmp_path):
    first, second = (stored(tmp_path / name)[0] / SPARSE_FILE for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_transformers_alone_refuses_it(tmp_path):
    from transformers import AutoModelForSequenceClassification

    directory, _ = stored(tmp_path / "m")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True)


NAME = "bert.encoder.layer.0.output.dense.weight"


def cut(tensors, part):
    tensors[f"{part}/{NAME}"] = tensors[f"{part}/{NAME}"][:-1].clone()


def late_bits(tensors):
    tensors[f"shape/{NAME}"] = torch.tensor([32, 63])
    cut(tensors, "values")
    bits = tensors[f"bitmask/{NAME}"]
    tensors[f"bitmask/{NAME}"] = bits[: -(-32 * 63 // 8)].clone()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t: [t.pop(f"{part}/{NAME}") for part in ("bitmask", "values", "shape")],
            rf"weights are missing: {NAME}",
        ),
        (lambda t: t.pop(f"shape/{NAME}"), r"is stored as bitmask, values"),
        (lambda t: t.update({f"dense/{NAME}": torch.zeros(2)}), r"is stored as bitmask, dense, shape, values"),
        (lambda t: t.update({"pickle/x": torch.zeros(2)}), r"x is stored as pickle"),
        (lambda t: t.update({f"shape/{NAME}": torch.tensor([-32, -64])}), r"has no shape"),
        (lambda t: t.update({f"shape/{NAME}": torch.tensor([32.0, 64.0])}), r"has no shape"),
        (lambda t: t.update({f"shape/{NAME}": torch.tensor([2**40, 2**40])}), r"not one of \d+ bits"),
        (lambda t: cut(t, "bitmask"), r"not one of 2048 bits"),
        (lambda t: t.update({f"bitmask/{NAME}": torch.zeros(256)}), r"not one of 2048 bits"),
        (lambda t: cut(t, "values"), r"do not match its bitmask"),
        (lambda t: t.update({f"values/{NAME}": t[f"values/{NAME}"].long()}), r"do not match its bitmask"),
        (
            lambda t: t.update(
                {f"shape/{NAME}": torch.tensor([32, 32])} | {f"bitmask/{NAME}": t[f"bitmask/{NAME}"][:128].clone()}
            ),
            r"do not match its bitmask",
        ),
        (lambda t: t.update({f"shape/{NAME}": torch.tensor([64, 32])}), r"does not load"),
    ],
)
def test_malformed_files_are_refused(tmp_path, damage, message):
    directory, _ = stored(tmp_path / "m")
    tensors = load_file(directory / SPARSE_FILE)
    damage(tensors)
    save_file(tensors, directory / SPARSE_FILE)
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def test_bits_after_the_end_are_refused(tmp_path):
    packed = pack({"w": torch.eye(9)})
    packed["bitmask/w"][-1] |= 128
    with pytest.raises(ModelError, match=r"bits after its end"):
        unpack(packed, tmp_path)


def test_a_torn_file_is_refused(tmp_path):
    directory, _ = stored(tmp_path / "m")
    file = directory / SPARSE_FILE
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ModelError, match=r"model-sparse\.safetensors: malformed sparse weights"):
        load_model(directory)


def two_of_four(rows, columns):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    order = weight.unflatten(1, (-1, 4)).abs().argsort(-1)[..., :2]
    return weight.unflatten(1, (-1, 4)).scatter(-1, order, 0.0).flatten(1)


def test_semi_structured_weights_are_told_apart():
    assert is_semi_structured(two_of_four(64, 128))
    assert not is_semi_structured(two_of_four(64, 96))
    assert not is_semi_structured(two_of_four(40, 128))
    weight = two_of_four(64, 128)
    weight[3, :3] = 1.0
    assert not is_semi_structured(weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with sparse tensor cores")
def test_sparse_kernels_compute_the_same():
    linear = torch.nn.Linear(128, 64).cuda()
    linear.weight = torch.nn.Parameter(two_of_four(64, 128).cuda())
    inputs = torch.randn(2, 17, 128, device="cuda")
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        expected = linear(inputs)
        assert use_sparse_kernels(torch.nn.Sequential(linear)) == 1
        assert torch.allclose(linear(inputs), expected, atol=0.05)
