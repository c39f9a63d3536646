"""What the settings of pretraining say is what happens in a step."""

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.pretrain_loop import _Run, pretrain_model
from lspm_ray.training.schedule import rate_factor
from tests.training.toy_runs import Job, alone, weights, without_timings


def before_each_update(run: _Run, look: Any) -> None:
    """Call `look` with the optimiser when gradients are ready and clipped, before they are used."""
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: look(optimizer))


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_the_matrix_products_not_of_the_weights(
    job: Job, precision: str, expected: torch.dtype
) -> None:
    run = _Run(job(precision=precision, steps=2), alone())
    layer: Any = next(module for module in run.model.modules() if isinstance(module, torch.nn.Linear))
    seen = set()
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    run.run()
    assert seen == {expected}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_gradients_are_clipped(job: Job) -> None:
    run = _Run(job(max_grad_norm=0.01), alone())
    norms: list[float] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))))

    before_each_update(run, look)
    history = run.run()
    assert norms == pytest.approx([0.01] * 12, rel=1e-3)
    assert all(entry["gradient_norm"] > 0.01 for entry in history), "what is reported is the norm before clipping"


def test_only_matrices_decay(job: Job) -> None:
    run = _Run(job(weight_decay=0.3), alone())
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    decays = {names[p]: group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert set(decays) == set(names.values())
    for name, decay in decays.items():
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.3), name
    assert run.optimizer.defaults["fused"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_every_step_has_the_rate_of_the_schedule(job: Job, schedule: str) -> None:
    settings = {"schedule": schedule, "warmup_fraction": 0.25, "learning_rate": 0.003, "decay_fraction": 0.5}
    run = _Run(job(**settings), alone())
    rates: list[float] = []
    before_each_update(run, lambda optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    run.run()
    assert rates == [0.003 * rate_factor(step, 12, 0.25, schedule, 0.5) for step in range(12)]
    assert rates[0] == pytest.approx(0.001) and max(rates) == 0.003


def test_activation_checkpointing_computes_twice_and_changes_nothing(job: Job) -> None:
    histories, forwards = [], []
    for wanted in (False, True):
        run = _Run(job(f"work{wanted}", activation_checkpointing=wanted, steps=2), alone())
        layer: Any = run.model.get_submodule("bert.encoder.layer.0.attention.self.query")
        training: list[bool] = []
        layer.register_forward_hook(lambda module, *_, training=training: training.append(module.training))
        histories.append(without_timings(run.run()))
        forwards.append(sum(training))
    assert forwards == [4, 8], "two micro-batches in each of two steps"
    assert histories[0] == histories[1], "also what dropout hides"


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # both are of the compiler's own doing
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("objective", "across_documents", "dropout"),
    [
        # Compiled code hides other activations than eager code does.
        ("masked_lm", True, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
        ("causal_lm", False, {}),
    ],
)
def test_compiled_gives_the_same_losses(
    job: Job, objective: str, across_documents: bool, dropout: dict[str, float]
) -> None:
    from torch._dynamo.utils import counters

    settings = {
        "objective": objective,
        "across_documents": across_documents,
        "model": {"size": "toy", "config": dropout},
        "learning_rate": 5e-3,
    }
    histories, graphs = [], []
    for wanted in (False, True):
        torch.compiler.reset()
        counters.clear()
        histories.append(pretrain_model(job(f"work{wanted}", compile=wanted, **settings), alone()))
        graphs.append(counters["stats"]["unique_graphs"])
    eager, compiled = histories
    assert graphs[0] == 0 < graphs[1]
    for one, other in zip(eager, compiled, strict=True):
        for name in ("train_loss", "validation_loss", "gradient_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    assert eager[0]["validation_loss"] != pytest.approx(eager[-1]["validation_loss"], rel=1e-3), "the weights matter"


@pytest.fixture
def nothing_deterministic_stays() -> Iterator[None]:
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if before is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = before


@pytest.mark.usefixtures("nothing_deterministic_stays")
def test_deterministic_refuses_what_is_not(job: Job) -> None:
    pretrain_model(job(deterministic=True), alone())
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


def test_a_torn_newest_checkpoint_is_passed_over_and_said(job: Job, tmp_path: Any) -> None:
    made = job()
    expected = pretrain_model(made, alone())
    digest = weights(made)
    torn = tmp_path / "work" / "step-000000012" / "tensors.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    said: list[dict[str, Any]] = []
    history = pretrain_model(made, alone(said.append))
    assert "step-000000012 is damaged" in next(values["warning"] for values in said if "warning" in values)
    assert [values["note"] for values in said if "note" in values] == ["resumed at step 8 of 12"]
    assert weights(made) == digest
    assert without_timings(history) == without_timings(expected)


def test_time_that_saving_takes_counts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: CheckpointStore, *_: Any) -> None:
        time.sleep(0.2)

    monkeypatch.setattr(CheckpointStore, "save_async", slow)
    first, second = pretrain_model(job(checkpoint_every_steps=6), alone())
    seconds = second["seconds"] - first["seconds"]
    assert seconds * second["checkpoint_share"] >= 0.2
    assert 0 < second["checkpoint_share"] < 1
