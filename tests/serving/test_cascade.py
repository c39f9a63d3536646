import asyncio
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lspm_ray.evaluation.calibration import Calibrator, softmax
from lspm_ray.selection.conformal import ConformalConfig, LabelSets
from lspm_ray.selection.plan import ModelRef, Plan, PlanStage
from lspm_ray.serving.cascade import (
    Cascade,
    CascadeAnswer,
    EmptyText,
    Logits,
    QueueFull,
    Rules,
    StageDown,
    Verdicts,
    accept,
    clean,
    usable,
)
from lspm_ray.tasks import Encoded

FULL_LOGITS = [-5.0, 5.0]


def plan(threshold: float | None = 0.8, *, stages: int = 2, temperature: float = 1.0) -> Plan:
    def stage(name: str, threshold: float | None, temperature: float) -> PlanStage:
        model = ModelRef(name=name, uri=f"/models/{name}", digest=name)
        return PlanStage(model=model, temperature=temperature, threshold=threshold, batch_1_latency_ms=1, cost=1)

    both = [stage("small", threshold, temperature), stage("full", None, 2.0)]
    return Plan(
        labels=["no", "yes"],
        task={"task": "text_classification"},
        validator={"validator": "max_probability"},
        stages=both[2 - stages :] if stages == 1 and threshold is not None else both[:stages],
        certificate_id="c",
        expected={},
        reasons={},
    )


class Fake:
    """A stage with prepared outputs; remembers what it was asked."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs
        self.calls: list[int] = []

    async def __call__(self, inputs: Sequence[Encoded]) -> Logits:
        self.calls.append(len(inputs))
        if isinstance(self.outputs, BaseException):
            raise self.outputs
        if callable(self.outputs):
            result: Logits = await self.outputs(inputs)
            return result
        return np.asarray(self.outputs, dtype=np.float32)[: len(inputs)]


async def encode(texts: Sequence[str]) -> list[Encoded]:
    return [np.arange(len(text), dtype=np.int64) for text in texts]


def run(first: Any, texts: Sequence[str] = ("a", "b", "c"), full: Any = None, **options: Any) -> list[CascadeAnswer]:
    last = full if full is not None else Fake([FULL_LOGITS] * len(texts))
    cascade = Cascade(Rules.of(plan()), encode, [first, last], **options)
    return asyncio.run(cascade.answer(texts))


def test_confident_answers_are_given_and_the_rest_is_escalated_in_one_call() -> None:
    first, full = Fake([[3.0, 0.0], [0.1, 0.0], [0.0, 0.2]]), Fake([FULL_LOGITS] * 3)
    answers = run(first, full=full)
    assert [a.variant for a in answers] == ["small", "full", "full"]
    assert [a.escalated for a in answers] == [False, True, True]
    assert [a.reason for a in answers] == [None, "low_score", "low_score"]
    assert [a.label for a in answers] == ["no", "yes", "yes"]
    assert full.calls == [2]


def test_each_answer_is_calibrated_with_the_temperature_of_its_stage() -> None:
    answers = run(Fake([[3.0, 0.0], [0.1, 0.0]]), ["a", "b"])
    assert answers[0].probability == pytest.approx(softmax(np.array([[3.0, 0.0]]))[0, 0])
    assert answers[1].probability == pytest.approx(softmax(np.array([FULL_LOGITS]), 2.0)[0, 1])
    assert answers[1].validator_score == pytest.approx(softmax(np.array([[0.1, 0.0]]))[0, 0])


def test_the_first_temperature_enters_the_score() -> None:
    cascade = Cascade(Rules.of(plan(temperature=10.0)), encode, [Fake([[3.0, 0.0]]), Fake([FULL_LOGITS])])
    assert asyncio.run(cascade.answer(["a"]))[0].escalated


def test_what_a_check_refuses_is_escalated_whatever_its_score() -> None:
    checks = [{"check": "length", "min_tokens": 2}, {"check": "labels", "escalate": ["yes"]}]
    refusing = plan().model_copy(update={"checks": checks})
    first, full = Fake([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.1, 0.0]]), Fake([FULL_LOGITS] * 4)
    answers = asyncio.run(Cascade(Rules.of(refusing), encode, [first, full]).answer(["a", "bb", "cc", "dd"]))
    assert [a.reason for a in answers] == ["too_short", None, "label", "low_score"]
    assert full.calls == [3]
    assert answers[0].validator_score == pytest.approx(1, abs=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("lingua") is None, reason="lingua is not installed")
def test_checks_may_read_the_texts() -> None:
    reading = plan().model_copy(update={"checks": [{"check": "language", "languages": ["en"]}]})
    texts = ["The dress fits well and is very soft.", "Das Kleid passt gut und ist sehr weich."]
    cascade = Cascade(Rules.of(reading), encode, [Fake([[9.0, 0.0]] * 2), Fake([FULL_LOGITS] * 2)])
    assert [a.reason for a in asyncio.run(cascade.answer(texts))] == [None, "language"]


def test_answers_carry_the_label_set_of_the_stage_that_gave_them() -> None:
    def sets(limit: float) -> LabelSets:
        return LabelSets(config=ConformalConfig(), level=0.9, limits=(limit, limit), rows=100)

    first, last = plan().stages
    both = [first.model_copy(update={"label_sets": sets(0.97)}), last.model_copy(update={"label_sets": sets(0.1)})]
    covered = plan().model_copy(update={"stages": both})
    stages = [Fake([[3.0, 0.0], [9.0, 0.0], [0.1, 0.0]]), Fake([FULL_LOGITS])]
    answers = asyncio.run(Cascade(Rules.of(covered), encode, stages).answer(["a", "b", "c"]))
    assert [a.label_set for a in answers] == [("no", "yes"), ("no",), ("yes",)]
    assert run(Fake([[3.0, 0.0]] * 3))[0].label_set is None


def test_a_calibrator_enters_the_score_and_the_shown_probability() -> None:
    calibrator = Calibrator(kind="isotonic", x=(0.0, 1.0), y=(0.4, 0.6))
    first = plan().stages[0].model_copy(update={"calibrator": calibrator, "threshold": 0.5})
    changed = plan().model_copy(update={"stages": [first, plan().stages[1]]})
    cascade = Cascade(Rules.of(changed), encode, [Fake([[9.0, 0.0]]), Fake([FULL_LOGITS])])
    answer = asyncio.run(cascade.answer(["a"]))[0]
    assert (answer.variant, answer.label) == ("small", "no")
    assert answer.probability == answer.validator_score == pytest.approx(0.6, abs=1e-3)


def test_nothing_to_escalate_leaves_the_full_model_alone() -> None:
    full = Fake([FULL_LOGITS])
    run(Fake([[9.0, 0.0]] * 3), full=full)
    assert full.calls == []


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [0.0, -np.inf]])
def test_an_output_that_is_not_finite_is_escalated_alone(bad: list[float]) -> None:
    answers = run(Fake([[9.0, 0.0], bad, [9.0, 0.0]]))
    assert [a.reason for a in answers] == [None, "invalid_output", None]
    assert answers[1].variant == "full"
    assert answers[1].validator_score is None


@pytest.mark.parametrize("outputs", [[[1.0, 2.0, 3.0]] * 3, [[9.0, 0.0]], [1.0, 2.0, 3.0]])
def test_a_wrong_shape_escalates_everything(outputs: Any) -> None:
    answers = run(Fake(outputs))
    assert {a.reason for a in answers} == {"invalid_output"}
    assert {a.variant for a in answers} == {"full"}


def test_an_exception_of_the_first_variant_escalates_everything() -> None:
    answers = run(Fake(RuntimeError("out of memory")))
    assert {a.reason for a in answers} == {"error"}


def test_a_first_variant_that_hangs_is_escalated() -> None:
    async def hang(_: Any) -> Logits:
        await asyncio.Event().wait()
        raise AssertionError

    answers = run(Fake(hang), first_timeout_s=0.01)
    assert {a.reason for a in answers} == {"timeout"}


def test_overload_of_the_first_variant_is_not_passed_on_to_the_full_model() -> None:
    full = Fake([FULL_LOGITS] * 3)
    with pytest.raises(QueueFull):
        run(Fake(QueueFull("full")), full=full)
    assert full.calls == []


@pytest.mark.parametrize("outputs", [[[np.nan, 1.0]] * 3, [[1.0, 2.0, 3.0]] * 3])
def test_an_unusable_last_word_is_never_an_answer(outputs: Any) -> None:
    with pytest.raises(StageDown, match="full"):
        run(Fake([[0.1, 0.0]] * 3), full=Fake(outputs))


def test_the_error_of_the_last_stage_goes_through() -> None:
    with pytest.raises(StageDown, match="gone"):
        run(Fake([[0.1, 0.0]] * 3), full=Fake(StageDown("gone")))


def test_one_stage_answers_everything_and_still_shows_its_score() -> None:
    cascade = Cascade(Rules.of(plan(None, stages=1)), encode, [Fake([[0.1, 0.0]])])
    (answer,) = asyncio.run(cascade.answer(["a"]))
    assert (answer.variant, answer.escalated, answer.reason) == ("small", False, None)
    assert answer.validator_score == pytest.approx(answer.probability)


def test_one_stage_with_an_unusable_output_gives_no_answer() -> None:
    cascade = Cascade(Rules.of(plan(None, stages=1)), encode, [Fake([[np.nan, 0.0]])])
    with pytest.raises(StageDown, match="small"):
        asyncio.run(cascade.answer(["a"]))


def test_stages_and_functions_must_match() -> None:
    with pytest.raises(ValueError, match="2 stages, got functions for 1"):
        Cascade(Rules.of(plan()), encode, [Fake([[0.0, 0.0]])])


scores = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20).map(np.asarray)


@given(scores, st.floats(allow_nan=False))
def test_accept_is_score_at_least_threshold_and_never_nan(values: NDArray[np.float64], threshold: float) -> None:
    expected = [not np.isnan(v) and v >= threshold for v in values]
    assert accept(values.astype(float), threshold).tolist() == expected


@given(scores)
def test_without_threshold_every_number_is_accepted(values: NDArray[np.float64]) -> None:
    assert accept(values.astype(float), None).tolist() == [not np.isnan(v) for v in values]


def test_the_score_on_the_threshold_is_accepted() -> None:
    assert accept(np.array([0.8, np.nextafter(0.8, 0)]), 0.8).tolist() == [True, False]


def test_usable_looks_at_each_row() -> None:
    assert usable(np.array([[0, 1], [np.nan, 1]], dtype=np.float32), 2, 2).tolist() == [True, False]
    assert not usable(np.zeros((2, 3), dtype=np.float32), 2, 2).any()
    assert not usable(None, 2, 2).any()  # type: ignore[arg-type]


def test_verdicts_are_cut_row_by_row() -> None:
    whole = Rules.of(plan()).judge([np.arange(n) for n in range(1, 5)], np.array([[n, 0.0] for n in range(4)]))
    part = whole[1:3]
    assert isinstance(part, Verdicts)
    assert len(part) == 2
    assert [len(row) for row in part.inputs] == [2, 3]
    assert part.scores.tolist() == whole.scores[1:3].tolist()


def test_texts_are_cleaned_as_for_training() -> None:
    assert clean([" a\u200b  b ", "caf\u0065\u0301"], None) == ["a b", "caf\u00e9"]
    assert clean([" a\u200b  b c", "d"], 3) == ["a b", "d"]


def test_a_text_of_invisible_characters_is_empty() -> None:
    with pytest.raises(EmptyText) as caught:
        clean(["a", "\u200b\x00"], None)
    assert caught.value.index == 1
