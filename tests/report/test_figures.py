import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.recipe import FULL
from lspm_ray.evaluation.metrics import Bin
from lspm_ray.page.theme import LIGHT
from lspm_ray.report.canvas import Caption, draw
from lspm_ray.report.figures.confusion import MOST_CLASSES, confusion, joined_classes
from lspm_ray.report.figures.labels import Dot, label_dots
from lspm_ray.report.figures.latency import latency
from lspm_ray.report.figures.learning import learning_curves
from lspm_ray.report.figures.lengths import token_lengths, total_lengths
from lspm_ray.report.figures.pareto import pareto
from lspm_ray.report.figures.reliability import calibration_error, reliability
from lspm_ray.report.figures.risk import risk_curve
from lspm_ray.report.figures.series import colours, markers
from lspm_ray.report.findings import Findings
from lspm_ray.selection.risk import ACCEPT_ALL, fixed_sequence, threshold_grid
from tests.report.pages import parse
from tests.report.samples import Run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return Run(ArtifactStore(str(tmp_path_factory.mktemp("run"))), rows=600, alpha=0.03).findings()


def texts(drawn: str) -> list[str]:
    return [node.text() for node in parse(drawn).all("text")]


def test_pareto_names_every_variant_once_and_the_plan(found: Findings) -> None:
    drawn = texts(pareto(found.variants, found.alternatives[0], FULL, "accuracy", anchor="p"))
    names = [v.name for v in found.variants if v.cost > 0]
    assert all(Counter(drawn)[name] == 1 for name in [*names, "the plan"])
    assert "majority class" not in drawn
    assert "accuracy on test, %" in drawn
    assert any("relative to the full model" in text for text in drawn)


def test_pareto_says_in_words_what_has_no_cost(found: Findings) -> None:
    root = parse(pareto(found.variants, None, FULL, "accuracy", anchor="p"))
    assert "not shown: majority class" in root.by_id("p-desc").text()


def test_pareto_of_one_variant(found: Findings) -> None:
    assert FULL in texts(pareto([found.variant(FULL)], None, FULL, "balanced_accuracy", anchor="p"))


def test_names_of_dots_cover_no_other_dot() -> None:
    crowd = [(x / 10, y / 10) for x in range(4, 9) for y in range(4, 7) if (x, y) != (5, 5)]
    found = []

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        label_dots(figure, axes, [Dot("a long name", 0.5, 0.5, LIGHT["ink"])], others=crowd)
        (text,) = axes.texts
        box = text.get_window_extent()
        found.extend(point for point in axes.transData.transform(crowd) if box.contains(*point))

    assert "a long name" in texts(draw(paint, 4, 4, Caption("d", "t", "d")))
    assert not found


def test_the_risk_curve_marks_the_certified_point(found: Findings) -> None:
    assert found.curve is not None
    assert found.curve.point is not None
    drawn = texts(risk_curve(found.curve, "max_probability", "regret", anchor="r"))
    assert any(f"threshold {found.curve.point.threshold:.4f}" in text for text in drawn)
    assert f"{100 * found.curve.point.escalation_rate:.1f} % escalated" in drawn
    assert "promise: alpha = 3 %" in drawn
    assert "regret, % of all answers" in drawn
    assert "escalated, % of requests" in drawn


def test_the_risk_curve_without_a_certified_point() -> None:
    scores = np.linspace(0.5, 1, 400)
    certified = fixed_sequence(scores, scores > 0.9, threshold_grid(scores), 0.01, 0.05)
    assert certified.point is None
    drawn = risk_curve(certified, "margin", "regret", anchor="r")
    assert not any("certified" in text for text in texts(drawn))
    assert "No threshold is certified" in parse(drawn).by_id("r-desc").text()


def test_the_threshold_below_every_score_is_named_and_not_drawn_to_scale() -> None:
    scores = np.linspace(-2, 0, 400)
    certified = fixed_sequence(scores, scores > 1, threshold_grid(scores), 0.01, 0.05)
    assert certified.point is not None
    assert certified.point.threshold == ACCEPT_ALL
    drawn = texts(risk_curve(certified, "entropy", "regret", anchor="r"))
    assert "accept all" in drawn
    assert not any("e+38" in text for text in drawn)


def test_confusion_shows_numbers_for_few_classes_only() -> None:
    drawn = texts(confusion([[90, 10], [0, 1200]], ["no", "yes"], "full", anchor="c"))
    assert {"90", "90 %", "1,200", "100 %", "predicted class", "true class"} <= set(drawn)
    many = [[3 * (i == j) for j in range(13)] for i in range(13)]
    names = [f"class {i}" for i in range(13)]
    drawn = texts(confusion(many, names, "full", anchor="c"))
    assert "3" not in drawn
    assert all(Counter(drawn)[name] == 2 for name in names)


def test_confusion_of_sixty_classes_is_small_and_of_a_class_without_rows_is_drawn() -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.integers(0, 3, (60, 60)) + 50 * np.eye(60, dtype=int)).tolist()
    matrix[7] = [0] * 60
    drawn = confusion(matrix, [f"c{i}" for i in range(60)], "full", anchor="c")
    assert len(drawn) < 250_000
    assert {f"c{i}" for i in range(60)} <= set(texts(drawn))


def test_many_classes_are_joined_and_no_row_is_lost() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (90, 90)).tolist()
    cells, names = joined_classes(matrix, [f"c{i}" for i in range(90)])
    assert len(cells) == len(names) == MOST_CLASSES
    assert sum(map(sum, cells)) == sum(map(sum, matrix))
    assert names[-1] == "31 others"
    rarest = min(range(90), key=lambda i: sum(matrix[i]))
    assert f"c{rarest}" not in names


def test_latency_names_every_measured_variant_and_every_batch_size(found: Findings) -> None:
    drawn = texts(latency(found.variants, FULL, anchor="l"))
    assert all(drawn.count(v.name) == (1 if v.speed else 0) for v in found.variants)
    assert all(drawn.count(str(size)) >= 2 for size in (1, 8, 32))
    assert "time per batch, ms (log scale)" in drawn
    assert "throughput, rows per second (log scale)" in drawn


def test_latency_at_one_batch_size(found: Findings) -> None:
    speed = found.variant(FULL).speed
    assert speed is not None
    only = found.variant(FULL).model_copy(update={"speed": speed.model_copy(update={"rows_per_s": {4: 100.0}})})
    assert FULL in texts(latency([only], FULL, anchor="l"))


@pytest.mark.parametrize("epochs", [1, 3, 40])
def test_learning_curves(tmp_path: Path, epochs: int) -> None:
    training = Run(ArtifactStore(str(tmp_path)), rows=200, epochs=epochs).findings_of_training()
    drawn = texts(learning_curves(training, anchor="t"))
    assert drawn.count("epoch") == 2
    assert f"kept: epoch {training.best_epoch}" in drawn
    assert "loss, nats per row" in drawn


def test_reliability_names_the_errors_of_before_and_after(found: Findings) -> None:
    model = found.reliability[0]
    drawn = texts(reliability(model, anchor="k"))
    assert f"before: error {100 * calibration_error(model.before):.1f} %" in drawn
    assert any(text.startswith(f"after temperature {model.temperature:.2f}") for text in drawn)


def test_calibration_error_is_weighted_by_rows() -> None:
    bins = [Bin(confidence=0.6, accuracy=0.5, count=10), Bin(confidence=0.9, accuracy=0.9, count=30)]
    assert calibration_error(bins) == pytest.approx(0.025)


def test_lengths_are_added_over_the_splits_and_bins_joined(found: Findings) -> None:
    width, counts = total_lengths(found.data)
    assert sum(counts) == found.data.rows_kept
    assert width == 3
    assert len(counts) <= 64
    drawn = texts(token_lengths(found.data, anchor="h"))
    assert "length, tokens (bins of 3)" in drawn
    assert "cut at 128 tokens" in drawn


def test_colours_and_markers_belong_to_names_whatever_else_is_shown() -> None:
    names = [f"v{i}" for i in range(7)]
    assert colours([FULL, *names], FULL) == colours([*names, FULL], FULL)
    assert len(set(colours([FULL, *names], FULL).values())) == 8
    assert len({markers([FULL, *names], FULL)[name] for name in names}) == 7


def test_error_bars_span_the_interval(found: Findings) -> None:
    drawn = pareto([found.variant(FULL)], None, FULL, "accuracy", anchor="p")
    assert re.search(r"<path d=\"M [\d.]+ [\d.]+ L [\d.]+ [\d.]+", drawn)
