"""What is minimised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lspm_ray.tasks import Task
from lspm_ray.training.batches import NO_LABEL, TEACHER_COLUMN
from lspm_ray.training.config import DistillConfig, GatekeeperConfig

if TYPE_CHECKING:
    import torch

NOT_OF_ROWS = ("class_weights",)
"""What a batch holds beside columns of rows."""


def batch_loss(
    task: Task, distill: DistillConfig | None, logits: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The task's loss; with a teacher its mixture with the soft targets, on all rows or on those that are right.

    Args:
        task: whose loss it is.
        distill: how the teacher counts; None for no teacher.
        logits: the student's [rows, labels].
        batch: `labels` [rows] and, with a teacher, `teacher_logits` [rows, labels]. Rows with `NO_LABEL`, which need a
            teacher, have no part in the task's loss, but count as rows.
    """
    if distill is None:
        return task.loss(logits, batch)
    if distill.gatekeeper is None:
        return _taught(task, distill, logits, batch)
    return _gatekeeper(task, distill, distill.gatekeeper, logits, batch)


def _taught(task: Task, distill: DistillConfig, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mixture of Hinton et al. 2015, section 2.

    The teacher term is multiplied by temperature squared, which keeps its gradients' size independent of it.
    """
    import torch.nn.functional as F

    if distill.weight == 0:
        return _task_loss(task, logits, batch)
    t = distill.temperature
    student = F.log_softmax(logits.float() / t, dim=-1)
    teacher = F.log_softmax(batch[TEACHER_COLUMN] / t, dim=-1)
    soft = F.kl_div(student, teacher, log_target=True, reduction="batchmean") * t * t
    if distill.weight == 1:
        return soft
    return distill.weight * soft + (1 - distill.weight) * _task_loss(task, logits, batch)


def _task_loss(task: Task, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The task's loss, a mean over all rows, to which those without a label add nothing."""
    known = batch["labels"] != NO_LABEL
    share = float(known.float().mean())
    if share == 1:
        return task.loss(logits, batch)
    if share == 0:
        return 0 * logits.float().sum()  # keeps the gradient of every parameter, which DDP waits for
    return share * task.loss(logits[known], _rows(batch, known))


def _gatekeeper(
    task: Task,
    distill: DistillConfig,
    keeper: GatekeeperConfig,
    logits: torch.Tensor,
    batch: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Rabanser et al. 2025, equations 2 to 4: both terms are means over the whole batch."""
    wrong = wrong_rows(keeper, logits, batch)
    share = float(wrong.float().mean())
    loss = logits.new_zeros((), dtype=logits.float().dtype)
    if share < 1:
        loss = loss + keeper.alpha * (1 - share) * _taught(task, distill, logits[~wrong], _rows(batch, ~wrong))
    if share > 0:
        loss = loss + (1 - keeper.alpha) * share * _from_uniform(logits[wrong])
    return loss


def wrong_rows(keeper: GatekeeperConfig, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """bool [rows], whether the answer counts as wrong; nothing is differentiated through it.

    Where there is no label, the teacher's answer stands for it.
    """
    answer, taught = logits.detach().argmax(dim=-1), batch[TEACHER_COLUMN].argmax(dim=-1)
    labels = taught.where(batch["labels"] == NO_LABEL, batch["labels"])
    if keeper.wrong_when == "label":
        return answer != labels
    if keeper.wrong_when == "disagreement":
        return answer != taught
    return (answer != labels) & (taught == labels)


def _from_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Mean KL(p || uniform) of the rows' distributions."""
    import torch.nn.functional as F

    log_p = F.log_softmax(logits.float(), dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1).mean() + math.log(logits.shape[-1])


def _rows(batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some rows of a batch; what is not of rows stays."""
    return {name: tensor if name in NOT_OF_ROWS else tensor[chosen] for name, tensor in batch.items()}
