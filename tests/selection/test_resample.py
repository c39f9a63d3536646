"""Repeating the procedure on rows whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from lspm_ray.selection.options import Rows
from lspm_ray.selection.points import Wanted
from lspm_ray.selection.resample import Resampled, pool, resample
from lspm_ray.selection.scorer import Scorer
from lspm_ray.selection.select import SelectConfig
from lspm_ray.validators import Training
from tests.selection.test_select import logits_for
from tests.selection.three_stages import three


def pooled(n: int) -> Rows:
    labels = np.random.default_rng(0).integers(2, size=n)
    full = logits_for(labels, 0.97, False, 1)
    return Rows(labels, [logits_for(labels, 0.93, False, 2), full], full, [np.array([1])] * n)


def fit_with(validator: str) -> Callable[[Rows], list[Scorer]]:
    config = SelectConfig.parse({"validator": validator})

    def fit(selection: Rows) -> list[Scorer]:
        training = Training(selection.inputs, selection.labels)
        judges = config.make_validator(), config.make_checks()
        rest = config.calibrator, config.risk, ["no", "yes"], lambda: training
        return [selection.fit_scorer(*judges, *rest, stage) for stage in range(len(selection.stages) - 1)]

    return fit


def repeat(
    wanted: Wanted,
    runs: int = 60,
    validator: str = "max_probability",
    rows: Rows | None = None,
    last_is_full: bool = True,
    tie: float = 1.0,
) -> Resampled:
    return resample(
        rows or pooled(1500),
        (300, 700),
        fit_with(validator),
        wanted,
        "regret",
        last_is_full=last_is_full,
        grid_size=40,
        tie=tie,
        runs=runs,
        report=lambda _: None,
    )


def test_the_procedure_keeps_its_promise_and_a_broken_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = repeat(Wanted(0.02, (0.03,), 0.05, {}))
    assert kept.ok and kept.issued == 1 and 0 < kept.escalation_rate < 1
    assert kept.drawn.low <= kept.drawn.rate <= kept.drawn.high
    assert kept.drawn.wrong >= kept.drawn.default_wrong
    # A test that lets pass what is a little above alpha on the rows at hand.
    monkeypatch.setattr("lspm_ray.selection.points.bdtr", lambda k, n, alpha: np.where(k <= 1.3 * n * alpha, 0.0, 1.0))
    assert not repeat(Wanted(0.02, (), 0.05, {})).ok


@pytest.mark.parametrize("last_is_full", [True, False])
def test_three_stages_keep_their_promise_too(monkeypatch: pytest.MonkeyPatch, last_is_full: bool) -> None:
    """Both scorers are fitted and both thresholds laid in every round."""
    asked = {"rows": three(1500), "tie": 2.0, "last_is_full": last_is_full}
    kept = repeat(Wanted(0.02, (0.03,), 0.05, {}), **asked)
    assert kept.ok and kept.issued == 1 and 0 < kept.escalation_rate < 0.6
    monkeypatch.setattr("lspm_ray.selection.points.bdtr", lambda k, n, alpha: np.where(k <= 1.3 * n * alpha, 0.0, 1.0))
    assert not repeat(Wanted(0.02, (), 0.05, {}), **asked).ok


def test_what_learns_learns_again_in_every_round() -> None:
    found = repeat(Wanted(0.02, (), 0.05, {}), 20, "deferral")
    assert found.ok and found.issued == 1 and 0 < found.escalation_rate < 1


def test_the_same_rows_give_the_same_answer() -> None:
    assert repeat(Wanted(0.02, (), 0.05, {}), 5) == repeat(Wanted(0.02, (), 0.05, {}), 5)


def test_rounds_without_enough_rows_of_a_class_issue_nothing() -> None:
    found = repeat(Wanted(0.02, (), 0.05, {0: 0.001}), 3)
    assert (found.issued, found.escalation_rate, found.drawn.wrong) == (0.0, 1.0, 0)


def test_splits_are_put_together_in_order() -> None:
    both = pool([pooled(10), pooled(5)])
    assert len(both.labels) == len(both.inputs) == 15
    assert np.array_equal(both.first[10:], pooled(5).first)
