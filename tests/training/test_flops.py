import pytest
import torch
import transformers

from lspm_ray.models.presets import build_config
from lspm_ray.training.flops import flops_per_token, known_peak, measured_peak, mfu, peak_flops
from lspm_ray.training.objective import Objective, Positions
from tests.training.toy_language import LENGTH, TRAINED_BY, toy_pretrainable, toy_vocabulary

IDS = {"pad": 0, "bos": 1, "eos": 2}
VOCABULARY = 128  # 79 token ids, rounded up


def on_meta(config):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_toys_counted_by_hand():
    width, feed_forward, layers, length = 32, 64, 2, LENGTH
    attention = 12 * layers * width * length
    head = width * VOCABULARY
    two = layers * (4 * width**2 + 2 * width * feed_forward)
    three = layers * (4 * width**2 + 3 * width * feed_forward)
    assert flops_per_token(toy_pretrainable("gpt2"), length) == 6 * (two + head) + attention
    assert flops_per_token(toy_pretrainable("llama"), length) == 6 * (three + head) + attention
    share = Positions(inputs=length, targets=0, predicted=length // 4)
    some = 6 * (two + (width**2 + head) / 4) + attention
    assert flops_per_token(toy_pretrainable("bert"), length, share) == some


def test_encoder_decoder_counted_by_hand():
    width, feed_forward, source, target, length = 32, 64, 40, 12, LENGTH
    encoder = (4 * width**2 + 3 * width * feed_forward) * source
    decoder = (6 * width**2 + 3 * width * feed_forward) * target + 2 * width**2 * source
    products = 6 * (encoder + decoder + width * VOCABULARY * target)
    attention = 12 * width * (source * source + target * target + target * source)
    found = flops_per_token(toy_pretrainable("t5"), length, Positions(source, target, target))
    assert found == pytest.approx((products + attention) / length)


def test_untied_output_embeddings_count_and_input_embeddings_do_not():
    tied, untied = (toy_pretrainable("llama", tie_word_embeddings=tied) for tied in (True, False))
    assert flops_per_token(tied, LENGTH) == flops_per_token(untied, LENGTH)


@pytest.mark.parametrize("architecture", list(TRAINED_BY))
def test_as_torch_counts_the_matrix_products(architecture):
    from torch.utils.flop_counter import FlopCounterMode

    from tests.training.toy_language import as_tensors, toy_blocks

    objective, model = Objective.make(TRAINED_BY[architecture]), toy_pretrainable(architecture)
    model.set_attn_implementation("eager")
    blocks, tokens, keys = toy_blocks(1)
    blocks[:] = 20  # no special tokens: as many are hidden as `positions` says
    batch = as_tensors(objective.corrupt(blocks, tokens, keys, toy_vocabulary()))
    with FlopCounterMode(display=False) as counter:
        objective.loss(model, batch).backward()
    positions = objective.positions(LENGTH)
    if architecture in ("gpt2", "llama"):
        positions = Positions(LENGTH, 0, LENGTH)  # theirs has logits nothing is learnt from, at the last position
    found = flops_per_token(model, LENGTH, positions) * LENGTH
    assert counter.get_total_flops() == pytest.approx(found, rel=0.01)


def test_gpt2_is_six_times_its_parameters_in_short_blocks():
    model = on_meta(transformers.GPT2Config())
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == pytest.approx(124e6, rel=0.01)
    assert flops_per_token(model, 32) == pytest.approx(6 * parameters, rel=0.05)
    assert flops_per_token(model, 1024) - flops_per_token(model, 512) == 12 * 12 * 768 * 512


def test_building_on_meta_or_not_makes_no_difference():
    real = toy_pretrainable("gpt2")
    words = toy_vocabulary()
    meta = on_meta(build_config("gpt2", "toy", vocab_size=words.size, length=LENGTH, ids=words.ids))
    assert flops_per_token(real, LENGTH) == flops_per_token(meta, LENGTH)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA A10", None),
        ("NVIDIA L40", None),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_known_devices(name, peak):
    assert known_peak(name) == peak


def test_a_known_gpu_is_looked_up_only_for_16_bits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("lspm_ray.training.flops.measured_peak", lambda device, precision: 1.0)
    assert peak_flops(torch.device("cuda"), "bf16") == 989e12
    assert peak_flops(torch.device("cuda"), "fp32") == 1.0
    assert peak_flops(torch.device("cpu"), "bf16") == 1.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA of tomorrow")
    assert peak_flops(torch.device("cuda"), "bf16") == 1.0


def test_a_cpu_is_measured():
    found = measured_peak(torch.device("cpu"), "fp32")
    assert 1e8 < found < 1e15


def test_measured_is_the_best_and_the_first_does_not_count(monkeypatch):
    seconds = iter([0.01, 0.5, 0.1, 0.3])
    monkeypatch.setattr("lspm_ray.training.flops._timed_product", lambda left, right: next(seconds))
    monkeypatch.setattr("lspm_ray.training.flops._MEASURE_S", 0.0)
    assert measured_peak.__wrapped__(torch.device("cpu"), "fp32") == pytest.approx(2 * 1024**3 / 0.1)


def test_utilisation():
    assert mfu(tokens_per_s=1e6, flops_per_token=6e8, peak=2 * 312e12) == pytest.approx(0.9615, abs=1e-4)
