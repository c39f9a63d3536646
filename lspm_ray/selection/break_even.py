"""When a variant before the full model pays, batch size by batch size, whatever the promise turns out to need. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.profiling.table import ProfileTable
from lspm_ray.selection.options import Option


class BreakEven(Config):
    """A variant that answers first, and full what is escalated, at one batch size.

    Attributes:
        first: the variant.
        batch_size: of both models.
        cost: of variant and validator on every row, tokenising included, relative to full at this batch size.
        most: largest share that may be escalated before nothing is saved; None where the variant alone saves nothing.
        most_for_saving: the same before less than `select.min_saving` is saved.
        needed: share that keeps the promise on the selection rows; None where none below all of them does, or where the
            variant was not tried.
        rejected: why it may not answer first, whatever it costs; empty if it may.
    """

    first: str
    batch_size: int
    cost: float
    most: float | None
    most_for_saving: float | None
    needed: float | None
    rejected: str = ""

    @property
    def pays(self) -> bool:
        """Whether it saves what was asked for."""
        if self.rejected or self.needed is None or self.most_for_saving is None:
            return False
        return self.needed <= self.most_for_saving

    def finding(self) -> str:
        """The same in words."""
        if self.cost >= 1:
            return "slower than full"
        if self.needed is None:
            return "no share of its answers is known to keep the promise"
        if self.rejected:
            return f"not allowed: {self.rejected}"
        if self.most is None or self.needed >= self.most:
            return "saves nothing: too much has to be escalated"
        return "pays" if self.pays else "saves less than asked for"


def largest_share(cost: float, saving: float = 0.0) -> float | None:
    """The largest share e that may be escalated: cost + e <= 1 - saving. None if there is none.

    Args:
        cost: of variant and validator per row, relative to the model that answers what is escalated.
        saving: share of that model's cost to be saved.
    """
    share = 1 - saving - cost
    return share if share > 0 else None


def break_even(
    table: ProfileTable, options: Sequence[Option], validator_s: float, min_saving: float
) -> list[BreakEven]:
    """Every compressed variant at every batch size that it and full were measured at.

    Args:
        table: as measured.
        options: as estimated on the selection rows.
        validator_s: seconds of the validator per row.
        min_saving: share of the full model's cost to be saved.
    """
    full = table.seconds(FULL)
    tried = {o.first: o for o in options if o.last in (FULL, None) and o.escalation_rate < 1}
    found = []
    for variant in table.variants:
        if not variant.servable or variant.name == FULL:
            continue
        option = tried.get(variant.name)
        for size, seconds in table.seconds(variant.name).items():
            if size in full:
                cost = (seconds + validator_s) / full[size]
                found.append(
                    BreakEven(
                        first=variant.name,
                        batch_size=size,
                        cost=cost,
                        most=largest_share(cost),
                        most_for_saving=largest_share(cost, min_saving),
                        needed=None if option is None else option.escalation_rate,
                        rejected="" if option is None else option.rejected,
                    )
                )
    return found


def slower(found: Sequence[BreakEven]) -> dict[str, list[int]]:
    """The variants that are slower than full, and at which batch sizes."""
    named: dict[str, list[int]] = {}
    for entry in found:
        if entry.cost >= 1:
            named.setdefault(entry.first, []).append(entry.batch_size)
    return named
