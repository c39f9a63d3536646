import pytest
import torch

from lspm_ray.tasks import Task
from lspm_ray.training.batches import TEACHER_COLUMN
from lspm_ray.training.config import DistillConfig
from lspm_ray.training.losses import batch_loss

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
