"""What the report says of load: the gear table, where there is no gear and why."""

from __future__ import annotations

from itertools import groupby

from lspm_ray.page.frame import figure
from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import words
from lspm_ray.report.figures.gears import gear_plot
from lspm_ray.report.grid import TALL_FROM, cell, head, missing, row, table, text_cell
from lspm_ray.selection.gears import GearTable, Shift


def gears(found: GearTable) -> list[Child]:
    """Table, figure and reasons."""
    return [
        element("p", _what(found)),
        _table(found) if any(shift.gear for shift in found.shifts) else None,
        *_none(found),
        figure(
            gear_plot(found, anchor="gears"),
            "Labels: alpha of the point, or full. Orange: more lenient than the default. Dotted: no gear.",
        ),
        element("p", _prerouting(found), class_="note"),
    ]


def _what(found: GearTable) -> str:
    cpus = found.machine_cpus
    beyond = [s for s in found.shifts if s.gear and cpus is not None and s.gear.cpus > cpus]
    text = (
        f"The cheapest way to answer 99{words.PERCENT} of the requests within {found.slo_ms:g} ms, by request rate: "
        "predicted by simulating the queues with the measured times of each model, every replica on CPUs of its own."
    )
    return text if not beyond else f"{text} From {beyond[0].rate:g} requests/s on that is more than this machine has."


def _table(found: GearTable) -> Html:
    heads = [head("requests", "per second"), head("served by", text=True), head("alpha", "%"), head("escalated", "%")]
    heads += [head("ingress", "replicas"), head("replicas", text=True), head("batch", "texts"), head("CPUs")]
    heads += [head("p50", "ms"), head("p99", "ms"), head("load", "% of capacity"), head("CPU time", "ms per request")]
    rows = [_row(shift) for shift in found.shifts if shift.gear]
    caption = "Gears. Texts that are computed together are at most `batch`; capacity is where a replica never rests."
    return table("gears", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _row(shift: Shift) -> Html:
    gear, expected = shift.gear, shift.expected
    assert gear is not None and expected is not None  # noqa: S101
    replicas = ", ".join(f"{model} {count}" for model, count in gear.replicas.items())
    return row(
        f"{shift.rate:g}",
        [
            text_cell(_models(gear.stages)),
            missing("the full model answers") if gear.alpha is None else cell(_alpha(gear.alpha, gear.degraded)),
            cell(words.percent(gear.escalation_rate)),
            cell(words.count(gear.ingress_replicas)),
            text_cell(name(replicas) if replicas else "in the ingress"),
            cell(words.count(gear.max_batch_size)),
            cell(f"{gear.cpus:g}"),
            *(cell(words.significant(value)) for value in (expected.p50_ms, expected.p99_ms)),
            cell(words.percent(shift.rate / gear.capacity, 0)),
            cell(words.significant(expected.cpu_ms)),
        ],
    )


def _models(names: list[str]) -> list[Child]:
    parts: list[Child] = []
    for model in names:
        parts += [" → ", name(model)] if parts else [name(model)]
    return parts


def _alpha(alpha: float, degraded: bool) -> list[Child]:
    return [f"{100 * alpha:g}", element("span", "degraded") if degraded else None]


def _none(found: GearTable) -> list[Child]:
    without = [shift for shift in found.shifts if shift.gear is None]
    return [
        element("p", f"No gear for {', '.join(f'{shift.rate:g}' for shift in same)} requests/s: {reason}.")
        for reason, same in groupby(without, key=lambda shift: shift.reason)
    ]


def _prerouting(found: GearTable) -> str:
    most = words.percents(found.prerouting_saves_at_most)
    return (
        f"Sending hard texts past the first model could save at most {most} of the cost, if it were known for free "
        "which they are; nothing is sent past it."
    )
