import pytest
import torch

from lspm_ray.tasks import Task
from lspm_ray.training.batches import NO_LABEL, TEACHER_COLUMN
from lspm_ray.training.config import DistillConfig, GatekeeperConfig
from lspm_ray.training.losses import batch_loss, wrong_rows

TASK = Task.make("text_classification")
LOGITS = torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.1, 0.2]])
LABELS = torch.tensor([0, 2])


def test_without_a_teacher_it_is_cross_entropy():
    expected = torch.nn.CrossEntropyLoss()(LOGITS, LABELS)
    assert batch_loss(TASK, None, LOGITS, {"labels": LABELS}) == pytest.approx(expected)


def test_class_weights_are_used():
    weights = torch.tensor([1.0, 1.0, 5.0])
    expected = torch.nn.CrossEntropyLoss(weight=weights)(LOGITS, LABELS)
    assert batch_loss(TASK, None, LOGITS, {"labels": LABELS, "class_weights": weights}) == pytest.approx(expected)


def test_a_perfect_copy_of_the_teacher_costs_nothing():
    batch = {"labels": LABELS, TEACHER_COLUMN: LOGITS + 3.0}
    assert batch_loss(TASK, DistillConfig(weight=1), LOGITS, batch) == pytest.approx(0.0, abs=1e-6)


def test_mixture_and_temperature():
    teacher, t = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), 3.0
    batch = {"labels": LABELS, TEACHER_COLUMN: teacher}
    p = (teacher / t).softmax(-1)
    soft = (p * (p.log() - (LOGITS / t).log_softmax(-1))).sum(1).mean() * t * t
    hard = torch.nn.CrossEntropyLoss()(LOGITS, LABELS)
    found = batch_loss(TASK, DistillConfig(temperature=t, weight=0.25), LOGITS, batch)
    assert found == pytest.approx(0.25 * soft + 0.75 * hard)


def uniform_pull(logits):
    p = logits.softmax(-1)
    return (p * (p * logits.shape[-1]).log()).sum(-1)


def gatekeeper(wrong_when="label", **distill):
    return DistillConfig(gatekeeper={"alpha": 0.3, "wrong_when": wrong_when}, **distill)


def test_gatekeeper_learns_right_rows_and_flattens_wrong_ones():
    # Row 0 is answered rightly, row 1 wrongly: equations 2 to 4 of the paper, with cross-entropy.
    teacher = torch.zeros_like(LOGITS)
    expected = 0.3 * torch.nn.functional.cross_entropy(LOGITS[:1], LABELS[:1]) / 2 + 0.7 * uniform_pull(LOGITS[1]) / 2
    found = batch_loss(TASK, gatekeeper(weight=0), LOGITS, {"labels": LABELS, TEACHER_COLUMN: teacher})
    assert found == pytest.approx(float(expected))


def test_gatekeeper_takes_the_teacher_on_right_rows():
    batch = {"labels": LABELS, TEACHER_COLUMN: LOGITS + 3.0}
    found = batch_loss(TASK, gatekeeper(weight=1), LOGITS, batch)
    assert found == pytest.approx(float(0.7 * uniform_pull(LOGITS[1]) / 2), abs=1e-6)


def test_gatekeeper_keeps_class_weights():
    weights = torch.tensor([7.0, 1.0, 1.0])
    batch = {"labels": LABELS, TEACHER_COLUMN: LOGITS, "class_weights": weights}
    plain = {name: tensor for name, tensor in batch.items() if name != "class_weights"}
    # A single right row is its own weighted mean.
    expected = batch_loss(TASK, gatekeeper(weight=0), LOGITS, plain)
    assert batch_loss(TASK, gatekeeper(weight=0), LOGITS, batch) == pytest.approx(float(expected))


@pytest.mark.parametrize("label", [0, 1])
def test_a_batch_may_be_all_right_or_all_wrong(label):
    logits = LOGITS.clone().requires_grad_()
    batch = {"labels": torch.full((2,), label), TEACHER_COLUMN: LOGITS}
    loss = batch_loss(TASK, gatekeeper(), logits, batch)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong_when", "expected"),
    [
        ("label", [False, True, True, False]),
        ("disagreement", [False, True, False, True]),
        ("regret", [False, True, False, False]),
    ],
)
def test_what_counts_as_wrong(wrong_when, expected):
    # All right; only the student wrong; both wrong alike; only the teacher wrong.
    student, teacher, labels = (torch.tensor(rows) for rows in ([0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]))
    one_hot = torch.nn.functional.one_hot
    batch = {"labels": labels, TEACHER_COLUMN: one_hot(teacher, 2).float()}
    keeper = GatekeeperConfig(wrong_when=wrong_when)
    assert wrong_rows(keeper, one_hot(student, 2).float(), batch).tolist() == expected


def test_rows_without_a_label_learn_from_the_teacher_alone():
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    batch = {"labels": torch.tensor([0, NO_LABEL]), TEACHER_COLUMN: teacher}
    p = teacher.softmax(-1)
    soft = (p * (p.log() - LOGITS.log_softmax(-1))).sum(1).mean()
    hard = torch.nn.functional.cross_entropy(LOGITS[:1], LABELS[:1]) / 2  # a mean over both rows
    found = batch_loss(TASK, DistillConfig(temperature=1, weight=0.25), LOGITS, batch)
    assert found == pytest.approx(float(0.25 * soft + 0.75 * hard))


@pytest.mark.parametrize("distill", [DistillConfig(), DistillConfig(weight=0), gatekeeper()])
def test_a_batch_may_have_no_label_at_all(distill):
    logits = LOGITS.clone().requires_grad_()
    batch = {"labels": torch.full((2,), NO_LABEL), TEACHER_COLUMN: torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])}
    batch_loss(TASK, distill, logits, batch).backward()
    assert logits.grad.isfinite().all()
    assert bool(logits.grad.any()) == (distill.weight > 0)


@pytest.mark.parametrize("wrong_when", ["label", "disagreement", "regret"])
def test_without_a_label_the_teachers_answer_counts(wrong_when):
    batch = {"labels": torch.full((2,), NO_LABEL), TEACHER_COLUMN: torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
    student = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert wrong_rows(GatekeeperConfig(wrong_when=wrong_when), student, batch).tolist() == [True, False]
