"""What is minimised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lspm_ray.tasks import Task
from lspm_ray.training.batches import TEACHER_COLUMN
from lspm_ray.training.config import DistillConfig

if TYPE_CHECKING:
    import torch


def batch_loss(
    task: Task, distill: DistillConfig | None, logits: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The task's loss, or its mixture with the teacher's soft targets (Hinton et al. 2015, section 2).

    The teacher term is multiplied by temperature squared, which keeps its gradients' size independent of it.
    """
    import torch.nn.functional as F

    if distill is None:
        return task.loss(logits, batch)
    t = distill.temperature
    student = F.log_softmax(logits.float() / t, dim=-1)
    teacher = F.log_softmax(batch[TEACHER_COLUMN] / t, dim=-1)
    soft = F.kl_div(student, teacher, log_target=True, reduction="batchmean") * t * t
    if distill.weight == 1:
        return soft
    return distill.weight * soft + (1 - distill.weight) * task.loss(logits, batch)
