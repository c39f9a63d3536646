"""How training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lspm_ray.page.markup import Html
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.report.findings import Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curves(training: Training, *, anchor: str) -> Html:
    """Losses and validation metrics by epoch; the epoch that was kept is marked."""
    best = next(h for h in training.history if int(h["epoch"]) == training.best_epoch)
    text = (
        f"Best of {len(training.history)} epochs: {training.best_epoch}, {training.metric} {best[training.metric]:.4f}"
    )
    caption = Caption(anchor, "Learning curves of the full model", text)
    return draw(lambda figure: _paint_learning(figure, training), 9.0, 3.4, caption)


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
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2, handlelength=1.6)
