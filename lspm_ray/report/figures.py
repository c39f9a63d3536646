"""The figures of the report: data in, one inline `<svg>` out. Every axis names its unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lspm_ray.evaluation.metrics import Bin, Estimate, proportion
from lspm_ray.profiling.table import VariantProfile
from lspm_ray.report import words
from lspm_ray.report.canvas import Caption, draw, fitted, log_axis
from lspm_ray.report.findings import Alternative, Confusion, DataSummary, Reliability, Training
from lspm_ray.report.markup import Html
from lspm_ray.report.placement import Box, place, spread
from lspm_ray.report.theme import LIGHT, SERIES
from lspm_ray.selection.risk import ACCEPT_ALL, Certified, RiskPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL_NUMBERS_UP_TO = 12
"""Classes up to which a confusion matrix shows its numbers."""
MOST_CLASSES = 60
"""Classes a confusion matrix shows, at most; the least frequent ones are joined into one."""
_LABEL_CHARACTERS = 22
_MARKERS = "osD^vPXp"
_SHADES = 10
_Axis = Literal["x", "y"]

QualityName = Literal["accuracy", "balanced_accuracy"]


def colours(names: Sequence[str], full: str) -> dict[str, str]:
    """A colour for each variant, the same in every figure; the full model in ink."""
    others = [name for name in names if name != full]
    return {full: LIGHT["ink"]} | {name: LIGHT[SERIES[i % len(SERIES)]] for i, name in enumerate(others)}


def markers(names: Sequence[str], full: str) -> dict[str, str]:
    """A marker for each variant, so that colour is never the only difference."""
    others = [name for name in names if name != full]
    return {full: "o"} | {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(others)}


def pareto(
    variants: Sequence[VariantProfile], plan: Alternative | None, full: str, quality: QualityName, *, id: str
) -> Html:
    """Quality on test against cost, with intervals; the front (decided on selection) is drawn as a line.

    Args:
        variants: the table; baselines without cost are left out.
        plan: the cascade, as an extra point; None if one variant serves alone.
        full: name of the full model.
        quality: which metric.
        id: of the figure in the page.
    """
    shown = [v for v in variants if v.cost > 0]
    left_out = [v.name for v in variants if v.cost <= 0]
    what = quality.replace("_", " ")
    text = "; ".join(f"{v.name}: {what} {words.percent(_of(v, quality).value)} % at cost {v.cost:.3g}" for v in shown)
    if left_out:
        text += f". Without cost and not shown: {', '.join(left_out)}"
    caption = Caption(id, f"{what.capitalize()} on test against cost", text)
    return draw(lambda figure: _paint_pareto(figure, shown, plan, full, quality), 5.6, 4.2, caption)


def risk_curve(certified: Certified, validator: str, risk: str, *, id: str) -> Html:
    """Risk and escalation rate against the threshold, on the calibration rows; the certified point is marked."""
    point = certified.point
    found = (
        f"Certified at {_threshold(point)}: {point.losses} losses in {certified.n} rows, bound "
        f"{words.percent(point.bound, 2)} %, {words.percent(point.escalation_rate)} % escalated"
        if point
        else "No threshold is certified"
    )
    caption = Caption(id, f"Risk ({risk}) and escalation rate against the threshold on {validator}", found)
    return draw(lambda figure: _paint_risk(figure, certified, validator, risk), 7.4, 5.6, caption)


def reliability(model: Reliability, classes: int, *, id: str) -> Html:
    """Confidence against accuracy on test, before and after the temperature."""
    before, after = calibration_error(model.before), calibration_error(model.after)
    text = f"calibration error {words.percent(before, 2)} % before, {words.percent(after, 2)} % after"
    caption = Caption(id, f"Calibration of {model.model} on test", text)
    return draw(lambda figure: _paint_reliability(figure, model, classes), 5.0, 4.4, caption)


def confusion(matrix: Confusion, labels: Sequence[str], model: str, *, id: str) -> Html:
    """Confusion matrix on test, shaded by the share of each true class."""
    cells, names = joined_classes(matrix, labels)
    right = sum(row[i] for i, row in enumerate(matrix))
    text = f"{right} of {sum(map(sum, matrix))} rows on the diagonal; {len(names)} classes"
    side = max(3.0, len(names) * (0.58 if len(names) <= CELL_NUMBERS_UP_TO else 0.135))
    margin = 0.55 + 0.085 * max(len(fitted(n, _LABEL_CHARACTERS)) for n in names) * (1 if len(names) <= 12 else 0.75)
    caption = Caption(id, f"Confusion matrix of {model} on test", text)
    return draw(
        lambda figure: _paint_confusion(figure, cells, names), side + margin + 0.75, side + margin + 0.35, caption
    )


def latency(variants: Sequence[VariantProfile], full: str, *, id: str) -> Html:
    """Time per batch and throughput by batch size, both logarithmic."""
    measured = [v for v in variants if v.speed is not None]
    text = "; ".join(f"{v.name}: {v.speed.best_rows_per_s:.4g} rows/s at best" for v in measured if v.speed)
    caption = Caption(id, "Latency and throughput by batch size", text)
    height = max(3.8, 1.2 + 0.2 * len(measured))
    return draw(lambda figure: _paint_latency(figure, measured, full), 9.4, height, caption)


def learning_curves(training: Training, *, id: str) -> Html:
    """Losses and validation metrics by epoch; the epoch that was kept is marked."""
    best = next(h for h in training.history if int(h["epoch"]) == training.best_epoch)
    text = f"Best of {len(training.history)} epochs: {training.best_epoch}, {training.metric} {best[training.metric]:.4f}"
    caption = Caption(id, "Learning curves of the full model", text)
    return draw(lambda figure: _paint_learning(figure, training), 9.0, 3.4, caption)


def token_lengths(data: DataSummary, *, id: str) -> Html:
    """Histogram of the tokens per row, over all splits."""
    train = data.token_length[data.splits[0]]
    text = f"median {train.p50}, 95th percentile {train.p95}, longest {train.max} tokens in {data.splits[0]}"
    caption = Caption(id, "Length of the texts in tokens", text)
    return draw(lambda figure: _paint_lengths(figure, data), 7.4, 3.2, caption)


def short(label: str) -> str:
    """A class name as figures show it."""
    return fitted(label, _LABEL_CHARACTERS)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Count-weighted mean of |confidence - accuracy|."""
    return sum(abs(b.confidence - b.accuracy) * b.count for b in bins) / sum(b.count for b in bins)


def joined_classes(matrix: Confusion, labels: Sequence[str]) -> tuple[Confusion, list[str]]:
    """The matrix as it is up to `MOST_CLASSES` classes; beyond, the least frequent true classes are added up."""
    if len(labels) <= MOST_CLASSES:
        return [list(row) for row in matrix], list(labels)
    by_rows = sorted(range(len(labels)), key=lambda i: (-sum(matrix[i]), i))
    kept = sorted(by_rows[: MOST_CLASSES - 1])
    place_of = {old: new for new, old in enumerate(kept)}
    result = [[0] * MOST_CLASSES for _ in range(MOST_CLASSES)]
    for i, row in enumerate(matrix):
        for j, n in enumerate(row):
            result[place_of.get(i, MOST_CLASSES - 1)][place_of.get(j, MOST_CLASSES - 1)] += n
    return result, [labels[i] for i in kept] + [f"{len(labels) - len(kept)} others"]


def _of(variant: VariantProfile, quality: QualityName) -> Estimate:
    estimate: Estimate = getattr(variant.test, quality)
    return estimate


# Pareto


def _paint_pareto(
    figure: Figure, shown: Sequence[VariantProfile], plan: Alternative | None, full: str, quality: QualityName
) -> None:
    axes = figure.add_subplot()
    colour = colours([v.name for v in shown if v.servable], full)
    front = sorted((v for v in shown if v.servable and v.dominated_by is None), key=lambda v: v.cost)
    axes.plot([v.cost for v in front], [100 * _of(v, quality).value for v in front], color=LIGHT["faint"], zorder=1.5)
    dots = []
    for v in shown:
        dots.append((v.name, v.cost, _of(v, quality), colour.get(v.name, LIGHT["muted"])))
        _dot(axes, v, _of(v, quality), dots[-1][3])
    if plan is not None and quality == "accuracy":
        dots.append(("the plan", plan.cost, plan.accuracy, LIGHT["accent"]))
        _error_bar(axes, plan.cost, plan.accuracy, LIGHT["accent"])
        axes.plot([plan.cost], [100 * plan.accuracy.value], "*", color=LIGHT["accent"], markersize=13, zorder=4)
    log_axis(axes, "x", [cost for _, cost, _, _ in dots], margin=1.6)
    axes.set_xlabel("cost per request, relative to the full model (log scale)")
    axes.set_ylabel(f"{quality.replace('_', ' ')} on test, %")
    axes.margins(y=0.08)
    _label_dots(figure, axes, dots)


def _dot(axes: Axes, variant: VariantProfile, estimate: Estimate, colour: str) -> None:
    hollow = variant.dominated_by is not None or not variant.servable
    _error_bar(axes, variant.cost, estimate, colour)
    axes.plot(
        [variant.cost],
        [100 * estimate.value],
        "o" if variant.servable else "s",
        color=colour,
        markerfacecolor=LIGHT["paper"] if hollow else colour,
        markersize=7,
        zorder=3,
    )


def _error_bar(axes: Axes, x: float, estimate: Estimate, colour: str) -> None:
    axes.plot([x, x], [100 * estimate.low, 100 * estimate.high], color=colour, linewidth=1.1, alpha=0.7, zorder=2)


def _label_dots(figure: Figure, axes: Axes, dots: Sequence[tuple[str, float, Estimate, str]]) -> None:
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    to_points = axes.transData.transform
    points = [tuple(map(float, to_points((cost, 100 * e.value)))) for _, cost, e, _ in dots]
    texts = [fitted(name, 28) for name, *_ in dots]
    sizes = [_size(figure, text) for text in texts]
    obstacles: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for (x, _), (_, cost, e, _) in zip(points, dots, strict=True):
        low, high = (float(to_points((cost, 100 * end))[1]) for end in (e.low, e.high))
        obstacles.append((x - 1, low, x + 1, high))
    inside = axes.get_window_extent()
    bounds = (inside.x0 + 2, inside.y0 + 2, inside.x1 - 2, inside.y1 - 2)
    boxes = place([(x, y) for x, y in points], sizes, obstacles, bounds)
    for box, text, (x, y), dot in zip(boxes, texts, points, dots, strict=True):
        _name_dot(axes, box, text, (x, y), dot[3])


def _name_dot(axes: Axes, box: Box, text: str, point: tuple[float, float], colour: str) -> None:
    middle = (box[1] + box[3]) / 2
    end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
    if math.dist(end, point) > 12:
        axes.annotate(
            "", end, point, xycoords="figure pixels", textcoords="figure pixels",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 5, "shrinkB": 0},
        )  # fmt: skip
    # Anchored on the side of its point: a browser's narrower font then leaves no gap.
    left = (box[0] + box[2]) / 2 >= point[0] - 1
    axes.annotate(
        text, (box[0] + 1 if left else box[2] - 1, middle), xycoords="figure pixels",
        ha="left" if left else "right", va="center", fontsize=8.5, color=colour, annotation_clip=False,
    )  # fmt: skip


def _size(figure: Figure, text: str, fontsize: float = 8.5) -> tuple[float, float]:
    probe = figure.text(0, 0, text, fontsize=fontsize)
    extent = probe.get_window_extent()
    probe.remove()
    return extent.width + 2, extent.height + 1


# Risk


def _paint_risk(figure: Figure, certified: Certified, validator: str, risk: str) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    curve, alpha = certified.curve, certified.alpha
    x = range(len(curve))
    upper.plot(x, [100 * p.bound for p in curve], color=LIGHT["accent"], label=_bound_name(certified))
    upper.plot(
        x, [100 * p.risk for p in curve], color=LIGHT["muted"], linewidth=1.2, label=f"{risk} among all rows, measured"
    )
    upper.axhline(100 * alpha, color=LIGHT["alert"], linestyle="--", label=f"promise: alpha = {100 * alpha:g} %")
    top = min(1.1 * max(p.bound for p in curve), 4 * alpha)
    upper.set_ylim(0, 100 * max(top, 1.3 * alpha))
    upper.set_ylabel(f"{risk}, % of all answers")
    lower.plot(x, [100 * p.escalation_rate for p in curve], color=LIGHT["ink"])
    lower.set_ylim(-3, 103)
    lower.set_ylabel("escalated, % of requests")
    lower.set_xlabel(f"threshold on {validator}, from strict to lenient (steps of equal share of rows)")
    ticks = sorted({round(i * (len(curve) - 1) / 7) for i in range(8)})
    lower.set_xticks(ticks, labels=[_tick(curve[i]) for i in ticks])
    for axes in (upper, lower):
        axes.set_xlim(-0.02 * len(curve), 1.02 * len(curve))
    if certified.point is not None:
        _mark_certified((upper, lower), certified, list(curve).index(certified.point))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", ncols=2)


def _bound_name(certified: Certified) -> str:
    return f"exact upper bound, {100 * (1 - certified.delta):g} % confidence"


def _mark_certified(panels: tuple[Axes, Axes], certified: Certified, index: int) -> None:
    point = certified.point
    if point is None:
        return
    for axes, value in zip(panels, (point.bound, point.escalation_rate), strict=True):
        axes.axvspan(-0.02 * len(certified.curve), index, color=LIGHT["good"], alpha=0.07, linewidth=0)
        axes.axvline(index, color=LIGHT["good"], linewidth=1)
        axes.plot([index], [100 * value], "o", color=LIGHT["good"], markersize=7, zorder=4)
    left = index < len(certified.curve) / 2
    side: dict[str, Any] = {"ha": "left" if left else "right", "color": LIGHT["good"], "textcoords": "offset points"}
    shift = 8 if left else -8
    top = panels[0].get_ylim()[1]
    panels[0].annotate(
        f"certified: {_threshold(point)}\n{point.losses:,} losses in {certified.n:,} rows, bound {100 * point.bound:.2f} %",
        (index, top), xytext=(shift, -4), va="top", **side,
    )  # fmt: skip
    high = point.escalation_rate > 0.6
    panels[1].annotate(
        f"{100 * point.escalation_rate:.1f} % escalated", (index, 100 * point.escalation_rate),
        xytext=(shift, -8 if high else 8), va="top" if high else "bottom", **side,
    )  # fmt: skip


def _threshold(point: RiskPoint) -> str:
    return "every answer accepted" if point.threshold <= ACCEPT_ALL else f"threshold {point.threshold:.4f}"


def _tick(point: RiskPoint) -> str:
    return "accept all" if point.threshold <= ACCEPT_ALL else f"{point.threshold:.4f}".replace("-", words.MINUS)


# Calibration


def _paint_reliability(figure: Figure, model: Reliability, classes: int) -> None:
    axes = figure.add_subplot()
    every = [*model.before, *model.after]
    lowest = min([b.confidence for b in every] + [b.accuracy for b in every])
    low = max(0.0, 100 * min(lowest, 1 / classes) - 2) if lowest < 0.6 else 100 * lowest - 4
    axes.plot([low, 100], [low, 100], color=LIGHT["muted"], linestyle=":", linewidth=1.2, label="perfect calibration")
    for bins, colour, marker, when in (
        (model.before, LIGHT["series-2"], "s", "before"),
        (model.after, LIGHT["series-1"], "o", f"after temperature {model.temperature:.2f}"),
    ):
        for b in bins:
            _error_bar(axes, 100 * b.confidence, proportion(round(b.accuracy * b.count), b.count), colour)
        axes.plot(
            [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins],
            color=colour, marker=marker, markersize=5, linewidth=1.2,
            markerfacecolor=LIGHT["paper"] if when == "before" else colour,
            label=f"{when}: error {100 * calibration_error(bins):.1f} %",
        )  # fmt: skip
    axes.set_xlim(low, 101)
    axes.set_ylim(low, 101)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence (probability of the answer), %")
    axes.set_ylabel("accuracy of the answers, %")
    axes.legend(loc="upper left")


# Confusion


def _paint_confusion(figure: Figure, cells: Confusion, names: Sequence[str]) -> None:
    axes = figure.add_subplot()
    k, numbers = len(names), len(names) <= CELL_NUMBERS_UP_TO
    shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in cells]
    _shade(axes, shares)
    if numbers:
        _write_cells(axes, cells, shares)
    shown = [fitted(name, _LABEL_CHARACTERS) for name in names]
    size = 8.5 if numbers else 6.5
    slanted = numbers and max(map(len, shown)) * k < 40
    axes.set_xticks(range(k), labels=shown, fontsize=size, rotation=0 if slanted else 90)
    axes.set_yticks(range(k), labels=shown, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, k - 0.5)
    axes.set_ylim(k - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(LIGHT["faint"])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _shade_legend(figure, axes)


def _shade(axes: Axes, shares: Sequence[Sequence[float]]) -> None:
    """One compound path per shade: a matrix of 60 classes stays small."""
    for level in range(1, _SHADES + 1):
        squares = [
            (j, i) for i, row in enumerate(shares) for j, share in enumerate(row) if _shade_of(share) == level
        ]
        if squares:
            _squares(axes, squares, level / _SHADES, 1.0, 1.0)


def _squares(axes: Axes, centres: Sequence[tuple[float, float]], opacity: float, width: float, height: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]
    vertices = [(x + width * dx, y + height * dy) for x, y in centres for dx, dy in corners]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(centres)
    patch = PathPatch(Path(vertices, codes), facecolor=LIGHT["accent"], alpha=opacity, linewidth=0)
    axes.add_patch(patch)


def _shade_of(share: float) -> int:
    """0 for an empty cell, else 1 to `_SHADES`: a single row of a large class must still be seen."""
    return 0 if share == 0 else max(1, math.ceil(share * _SHADES - 1e-9))


def _write_cells(axes: Axes, cells: Confusion, shares: Sequence[Sequence[float]]) -> None:
    large = len(cells) <= 6
    for i, row in enumerate(cells):
        for j, n in enumerate(row):
            colour = LIGHT["paper"] if _shade_of(shares[i][j]) >= 6 else LIGHT["ink"]
            text = f"{n:,}\n{100 * shares[i][j]:.0f} %" if large and sum(row) else f"{n:,}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5 if large else 7.5, color=colour)


def _shade_legend(figure: Figure, axes: Axes) -> None:
    box = axes.inset_axes((1.03, 0.0, 0.0, 1.0))
    box.set_axis_off()
    strip = axes.inset_axes((1.04, 0.25, 0.03, 0.5))
    for level in range(1, _SHADES + 1):
        _squares(strip, [(0.5, level - 0.5)], level / _SHADES, 1.0, 1.0)
    strip.set_xlim(0, 1)
    strip.set_ylim(0, _SHADES)
    strip.set_xticks([])
    strip.yaxis.tick_right()
    strip.yaxis.set_label_position("right")
    strip.set_yticks([0, _SHADES / 2, _SHADES], labels=["0", "50", "100"], fontsize=7.5)
    strip.set_ylabel("% of true class", fontsize=7.5)
    strip.tick_params(length=0)
    strip.grid(visible=False)
    for spine in strip.spines.values():
        spine.set_visible(False)


# Speed


def _paint_latency(figure: Figure, measured: Sequence[VariantProfile], full: str) -> None:
    left, right = figure.subplots(1, 2)
    panels: list[tuple[Axes, str, Callable[[int, float], float]]] = [
        (left, "time per batch, ms (log scale)", lambda size, rate: 1e3 * size / rate),
        (right, "throughput, rows per second (log scale)", lambda size, rate: rate),
    ]
    sizes = sorted({size for v in measured if v.speed for size in v.speed.rows_per_s})
    for axes, label, value in panels:
        _paint_speed_panel(axes, measured, full, value)
        _batch_axis(axes, sizes)
        axes.set_ylabel(label)
    _name_lines(right, measured, full)


def _paint_speed_panel(
    axes: Axes, measured: Sequence[VariantProfile], full: str, value: Callable[[int, float], float]
) -> None:
    names = [v.name for v in measured]
    colour, marker = colours(names, full), markers(names, full)
    every = []
    for v in measured:
        rates = dict(sorted(v.speed.rows_per_s.items())) if v.speed else {}
        heights = [value(size, rate) for size, rate in rates.items()]
        every += heights
        axes.plot(
            list(rates), heights, color=colour[v.name], marker=marker[v.name], markersize=5, linewidth=1.4,
            markerfacecolor=LIGHT["paper"] if v.dominated_by else colour[v.name],
        )  # fmt: skip
    log_axis(axes, "y", every)


def _batch_axis(axes: Axes, sizes: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    kept = sizes if len(sizes) <= 8 else [*sizes[:: -(-len(sizes) // 8)], sizes[-1]]
    axes.set_xticks(kept, labels=[str(size) for size in kept])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size, rows (log scale)")


def _name_lines(axes: Axes, measured: Sequence[VariantProfile], full: str) -> None:
    """Names at the right ends of the lines, moved apart, instead of a legend."""
    colour = colours([v.name for v in measured], full)
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    ends = []
    for v in measured:
        rates = v.speed.rows_per_s if v.speed else {}
        ends.append((math.log10(rates[max(rates)]) - low) / (high - low))
    heights = spread(ends, 0.055, 0.02, 0.98)
    for v, end, height in zip(measured, ends, heights, strict=True):
        axes.annotate(
            fitted(v.name, 26), (0.99, end), xytext=(1.06, height), xycoords="axes fraction",
            textcoords="axes fraction", color=colour[v.name], fontsize=8.5, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour[v.name], "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1,
                        "shrinkB": 0},
        )  # fmt: skip


# Training and data


def _paint_learning(figure: Figure, training: Training) -> None:
    left, right = figure.subplots(1, 2)
    epochs = [int(h["epoch"]) for h in training.history]
    losses = {"train_loss": ("training", LIGHT["muted"], "s"), "loss": ("validation", LIGHT["series-1"], "o")}
    scores = {
        "accuracy": ("accuracy", LIGHT["series-1"], "o"),
        "balanced_accuracy": ("balanced accuracy", LIGHT["series-2"], "D"),
        "macro_f1": ("macro-F1", LIGHT["series-4"], "^"),
    }
    _epoch_panel(left, epochs, training, losses, 1, "loss, nats per row")
    _epoch_panel(right, epochs, training, scores, 100, "on validation, %")


def _epoch_panel(
    axes: Axes,
    epochs: list[int],
    training: Training,
    lines: Mapping[str, tuple[str, str, str]],
    scale: float,
    unit: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    for key, (label, colour, marker) in lines.items():
        values = [scale * h[key] for h in training.history]
        axes.plot(epochs, values, color=colour, marker=marker, markersize=5, label=label)
    axes.axvline(training.best_epoch, color=LIGHT["good"], linestyle=":", label=f"kept: epoch {training.best_epoch}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(epochs) - 0.4, max(epochs) + 0.4)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.figure.get_figure(root=True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2, handlelength=1.6)


def _paint_lengths(figure: Figure, data: DataSummary) -> None:
    axes = figure.add_subplot()
    width, counts = total_lengths(data)
    start = next((i for i, n in enumerate(counts) if n), 0)
    axes.bar(
        [i * width for i in range(start, len(counts))], counts[start:], width=width * 0.92, align="edge",
        color=LIGHT["series-1"], linewidth=0,
    )  # fmt: skip
    axes.set_xlim(start * width - width, len(counts) * width + width)
    if data.max_length is not None and len(counts) * width > data.max_length:
        axes.axvline(data.max_length + width, color=LIGHT["alert"], linestyle="--", linewidth=1)
        axes.annotate(
            f"cut at {data.max_length} tokens", (data.max_length + width, 0.97), xycoords=("data", "axes fraction"),
            xytext=(-5, 0), textcoords="offset points", ha="right", va="top", color=LIGHT["alert"],
        )  # fmt: skip
    axes.set_xlabel("length, tokens" + (f" (bins of {width})" if width > 1 else ""))
    axes.set_ylabel("rows")
    axes.grid(visible=False, axis="x")


def total_lengths(data: DataSummary, most: int = 64) -> tuple[int, list[int]]:
    """Bin width and counts over all splits, bins joined until there are at most `most`."""
    parts = [length for length in data.token_length.values() if length.counts]
    if not parts:
        return 1, [0]
    counts = [0] * max(len(p.counts) for p in parts)
    for part in parts:
        for i, n in enumerate(part.counts):
            counts[i] += n
    factor = -(-len(counts) // most)
    return parts[0].bin_width * factor, [sum(counts[i : i + factor]) for i in range(0, len(counts), factor)]
