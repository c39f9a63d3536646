"""Learning from a teacher's inner states: hidden states, attention, and relations of queries, keys and values.

The teacher runs beside the student in every step: to keep its states would take tokens x width numbers for each layer
and row, some hundred kilobytes where its logits take eight bytes. Queries, keys and values are read where they are
computed, so any implementation of attention will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lspm_ray.errors import ModelError
from lspm_ray.models.pruned import FAMILIES, Layer, PrunedConfig, encoder_layers, head_count
from lspm_ray.models.shape import Shape
from lspm_ray.training.config import DistillConfig

_MASKED = -1e4
"""Score of what is padding: its exponential is 0, and unlike infinity it can be subtracted."""


def check_match(distill: DistillConfig, student: Shape, teacher: Shape, field: str) -> None:
    """Refuse to match states that a student does not have, or has in another form than its teacher.

    Args:
        distill: what is to be matched.
        student: shape of the student.
        teacher: shape of the model that it learns from.
        field: the setting, for the message.

    Raises:
        ModelError: names what cannot be matched, and where it could.
    """
    for name in distill.matches:
        for shape in (student, teacher):
            if shape.family not in FAMILIES:
                raise _unmatched(
                    f"of a {shape.family} model", distill, name, field, f"It can in: {', '.join(FAMILIES)}"
                )
    if distill.attention:
        hint = "Use `relations`: it does not need the same heads"
        if PrunedConfig.model_type in (student.model_type, teacher.model_type):
            raise _unmatched("of a pruned or trimmed model", distill, "attention", field, hint)
        if student.heads != teacher.heads:
            raise _unmatched(f"of {student.heads} and {teacher.heads} heads", distill, "attention", field, hint)
    if distill.relations and distill.relation_heads:
        for shape in (student, teacher):
            # What is left of a pruned layer is known when it is loaded.
            if shape.model_type != PrunedConfig.model_type and shape.hidden % distill.relation_heads:
                raise _indivisible(shape.hidden, distill.relation_heads, f"{field}.relation_heads")


def _unmatched(what: str, distill: DistillConfig, name: str, field: str, hint: str) -> ModelError:
    value = getattr(distill, name)
    return ModelError(
        f"inner states {what} cannot be matched", field=f"{field}.{name}", value=value, valid=[0], hint=hint
    )


def _indivisible(width: int, heads: int, field: str) -> ModelError:
    valid = [number for number in range(1, width + 1) if width % number == 0]
    return ModelError(f"a width of {width} cannot be cut into so many heads", field=field, value=heads, valid=valid)


def layer_map(student: int, teacher: int) -> list[int]:
    """Number of the teacher's layer that each layer of the student learns from: evenly spaced, last from last.

    That is ceil(m * teacher / student) for the m-th layer, counted from 1 (Jiao et al. 2020, section 3.1).
    """
    return [-(-m * teacher // student) - 1 for m in range(1, student + 1)]


@dataclass
class States:
    """What some layers computed for one batch.

    Attributes:
        hidden: input of the first layer, then output of each chosen one, [rows, tokens, width].
        queries: of each chosen layer, [rows, tokens, heads x head size].
        keys: the same.
        values: the same.
        heads: attention heads of each chosen layer.
    """

    hidden: list[torch.Tensor]
    queries: list[torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    heads: list[int]


class Watch:
    """Keeps the states of a model's last forward pass until they are taken.

    Args:
        model: of a family that looks like BERT.
        chosen: numbers of the layers; None for all.

    Raises:
        ModelError: another family.
    """

    def __init__(self, model: PreTrainedModel, chosen: Sequence[int] | None = None) -> None:
        layers = encoder_layers(model)
        self._layers = layers if chosen is None else [layers[number] for number in chosen]
        self._kept: dict[str, torch.Tensor] = {}
        _attention(layers[0]).query.register_forward_hook(self._keep("input", of_input=True))
        for number, layer in enumerate(self._layers):
            layer.output.register_forward_hook(self._keep(f"hidden.{number}"))
            for name in ("query", "key", "value"):
                getattr(_attention(layer), name).register_forward_hook(self._keep(f"{name}.{number}"))

    def _keep(self, name: str, *, of_input: bool = False) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._kept[name] = inputs[0] if of_input else output

        return hook

    def take(self) -> States:
        """The states, in float32; they are not kept any longer."""
        kept, self._kept = self._kept, {}
        numbers = range(len(self._layers))
        return States(
            hidden=[kept["input"], *(kept[f"hidden.{number}"] for number in numbers)],
            queries=[kept[f"query.{number}"].float() for number in numbers],
            keys=[kept[f"key.{number}"].float() for number in numbers],
            values=[kept[f"value.{number}"].float() for number in numbers],
            heads=[head_count(layer) for layer in self._layers],
        )


def _attention(layer: Layer) -> Any:
    return getattr(layer.attention, "self")


@dataclass
class Outcome:
    """What a forward pass of `Student` gives: logits [rows, labels] and the states, hidden ones projected."""

    logits: torch.Tensor
    states: States = field(repr=False)


class Student(nn.Module):
    """A model together with the projections that its hidden states are compared through.

    The projections are trained but are no part of the model that is saved (Jiao et al. 2020, equation 8: one for all
    layers and another one for the embeddings). Equal widths need none.

    Args:
        model: the student.
        width: of the teacher's hidden states; None where they are not matched.
    """

    def __init__(self, model: PreTrainedModel, width: int | None) -> None:
        super().__init__()
        self.model = model
        self._watch = Watch(model)
        mine = width_of(model)
        needed = width is not None and width != mine
        self.projections = nn.ModuleList(nn.Linear(mine, width or 0, bias=False) for _ in range(2 if needed else 0))

    @property
    def layers(self) -> int:
        """How many the model has."""
        return len(encoder_layers(self.model))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Outcome:
        """Token ids and mask [rows, tokens]."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        states = self._watch.take()
        if self.projections:
            embeddings, layers = self.projections
            states.hidden = [embeddings(states.hidden[0]), *(layers(hidden) for hidden in states.hidden[1:])]
        return Outcome(logits, states)


class Teacher:
    """The model that is learnt from, in evaluation mode, watched at the layers that the student's learn from.

    Args:
        model: the teacher, on its device.
        distill: what is learnt from it.
        layers: of the student.
    """

    def __init__(self, model: PreTrainedModel, distill: DistillConfig, layers: int) -> None:
        self._distill = distill
        self._model = model.eval().requires_grad_(requires_grad=False)
        self._watch = Watch(model, layer_map(layers, len(encoder_layers(model))))

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        """For token ids and mask [rows, tokens]."""
        with torch.no_grad():
            self._model(input_ids=input_ids, attention_mask=attention_mask)
        return self._watch.take()

    def loss(self, student: States, teacher: States, mask: torch.Tensor) -> torch.Tensor:
        """See `match_loss`."""
        return match_loss(self._distill, student, teacher, mask)


def width_of(model: PreTrainedModel) -> int:
    """Width of the hidden states."""
    return int(encoder_layers(model)[0].output.dense.out_features)


def match_loss(distill: DistillConfig, student: States, teacher: States, mask: torch.Tensor) -> torch.Tensor:
    """The weighted sum of what is matched; each term is a mean over layers, heads and real tokens.

    Args:
        distill: the weights.
        student: hidden states as wide as the teacher's.
        teacher: as many layers as the student.
        mask: 1 for real tokens, 0 for padding [rows, tokens].
    """
    real = mask.bool()
    loss = torch.zeros((), device=mask.device)
    if distill.hidden:
        loss = loss + distill.hidden * _hidden_loss(student, teacher, real)
    if distill.attention:
        loss = loss + distill.attention * _attention_loss(student, teacher, real)
    if distill.relations:
        loss = loss + distill.relations * _relation_loss(distill, student, teacher, real)
    return loss


def _hidden_loss(student: States, teacher: States, real: torch.Tensor) -> torch.Tensor:
    """Jiao et al. 2020, equations 8 and 9."""
    pairs = zip(student.hidden, teacher.hidden, strict=True)
    return torch.stack([F.mse_loss(mine[real].float(), theirs[real].float()) for mine, theirs in pairs]).mean()


def _attention_loss(student: States, teacher: States, real: torch.Tensor) -> torch.Tensor:
    """Jiao et al. 2020, equation 7: of the scores before softmax, which converge faster than the distributions."""
    pairs = (real[:, None, :, None] & real[:, None, None, :]).float()
    losses = []
    if student.heads != teacher.heads:
        raise ModelError(
            f"layers of {student.heads} and {teacher.heads} heads cannot be matched",
            field="distill.attention",
            hint="Use `relations`: it does not need the same heads",
        )
    for layer, heads in enumerate(student.heads):
        mine = _scores(student.queries[layer], student.keys[layer], heads)
        theirs = _scores(teacher.queries[layer], teacher.keys[layer], heads)
        losses.append(((mine - theirs).square() * pairs).sum() / (pairs.sum() * heads))
    return torch.stack(losses).mean()


def _relation_loss(distill: DistillConfig, student: States, teacher: States, real: torch.Tensor) -> torch.Tensor:
    """Wang et al. 2021, "MiniLMv2", equations 4 and 5: of the last layers, whose heads are joined and cut anew."""
    mine, theirs = _last(student), _last(teacher)
    heads = distill.relation_heads or _relation_heads(mine, theirs, teacher.heads[-1])
    for width in (mine["q"].shape[-1], theirs["q"].shape[-1]):
        if width % heads:
            raise _indivisible(width, heads, "distill.relation_heads")
    losses = []
    for one, other in distill.relation_pairs:
        mine_log, theirs_log = (_relation(states[one], states[other], heads, real) for states in (mine, theirs))
        divergence = F.kl_div(mine_log, theirs_log, log_target=True, reduction="none").sum(dim=-1)
        losses.append(divergence.transpose(1, 2)[real].mean())
    return torch.stack(losses).mean()


def _last(states: States) -> dict[str, torch.Tensor]:
    return {"q": states.queries[-1], "k": states.keys[-1], "v": states.values[-1]}


def _relation_heads(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], most: int) -> int:
    """The most heads, up to the teacher's own, that both widths can be cut into."""
    common = math.gcd(mine["q"].shape[-1], theirs["q"].shape[-1])
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


def _relation(one: torch.Tensor, other: torch.Tensor, heads: int, real: torch.Tensor) -> torch.Tensor:
    """Log distributions over the real tokens [rows, heads, tokens, tokens]."""
    return F.log_softmax(_scores(one, other, heads).masked_fill(~real[:, None, None, :], _MASKED), dim=-1)


def _scores(one: torch.Tensor, other: torch.Tensor, heads: int) -> torch.Tensor:
    """Scaled dot products of the tokens [rows, heads, tokens, tokens]."""
    size = one.shape[-1] // heads
    left, right = (part.unflatten(-1, (heads, size)).transpose(1, 2) for part in (one, other))
    scores: torch.Tensor = left @ right.transpose(-1, -2) / math.sqrt(size)
    return scores
