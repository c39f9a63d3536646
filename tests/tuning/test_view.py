import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.tuning.goals import Goals, Limit
from lspm_ray.tuning.records import Epoch, Trial
from lspm_ray.tuning.view import best_of, clock, left, left_of_finalists, makespan, picture, shown

GOALS = Goals(objectives={"validation.accuracy": "max"}, constraints={"certified.cost": Limit(max=0.5)})


def trial(number, status="running", **changes):
    return Trial(number=number, params={"finetune.learning_rate": 0.00123456}, seed=0, status=status, **changes)


def done(number, accuracy, cost=0.25):
    return trial(number, "done", values={"validation.accuracy": accuracy, "certified.cost": cost})


def test_nothing_yet():
    assert picture([], GOALS, "loss", 20, 0.4, None) == ("0/20 trials: 0 finished, 0 stopped early, 0 failed; 0:00")


def test_some_trials():
    epochs = [Epoch(epoch=n, metrics={"loss": 1 / n, "accuracy": 0.5}, seconds=n) for n in (1, 3)]
    trials = [
        done(0, 0.75),
        done(1, 0.875),
        done(2, 0.99, cost=0.75),
        trial(3, "failed", reason="no memory"),
        trial(4, "stopped", reason="asha: behind"),
        trial(5),
        trial(6, history=epochs),
    ]
    assert picture(trials, GOALS, "loss", 20, 125.9, 61).splitlines() == [
        "5/20 trials: 3 finished, 1 stopped early, 1 failed; 2:05, 1:01 left",
        "  best    #1   learning_rate=0.00123  validation.accuracy 0.875, certified.cost 0.25",
        "  running #5   learning_rate=0.00123  first epoch",
        "  running #6   learning_rate=0.00123  epoch 3: loss 0.3333",
        "  failed  #3   learning_rate=0.00123  no memory",
        "  stopped #4   learning_rate=0.00123  asha: behind",
    ]


def test_after_the_search_it_shows_the_finalists():
    again = [done(4, 0.95), trial(5), trial(6)]
    again = [one.model_copy(update={"finalist": True}) for one in again]
    trials = [
        done(0, 0.75),
        done(1, 0.875),
        trial(2, "stopped", reason="the time is used up"),
        trial(3, "failed"),
        *again,
    ]
    assert picture(trials, GOALS, "loss", 20, 125.9, 61).splitlines() == [
        "searched with 4 trials: 2 finished, 1 stopped early, 1 failed; finalists again: 1/3; 2:05, 1:01 left",
        "  best    #1   learning_rate=0.00123  validation.accuracy 0.875, certified.cost 0.25",
        "  running #5   learning_rate=0.00123  first epoch",
        "  running #6   learning_rate=0.00123  first epoch",
    ]
    assert "#5" in picture(trials, GOALS, "loss", 20, 125.9, 61, {5})
    assert "#6" not in picture(trials, GOALS, "loss", 20, 125.9, 61, {5})


@pytest.mark.parametrize(
    ("seconds", "slots", "expected"),
    [([], 2, 0), ([5], 2, 5), ([5, 5, 2, 2], 2, 7), ([2, 2, 5, 5], 2, 7), ([1, 5, 1, 1], 2, 5), ([3, 3, 3], 1, 9)],
)
def test_jobs_share_the_slots(seconds, slots, expected):
    assert makespan(seconds, slots) == expected


def test_finalists_take_as_long_as_their_points_took():
    epoch = Epoch(epoch=1, metrics={}, seconds=101)
    slow = [done(0, 0.5).model_copy(update={"ended": 50.0}), done(1, 0.5).model_copy(update={"ended": 10.0})]
    slow[1] = slow[1].model_copy(update={"params": {"a.b": 1}})
    again = [
        slow[0].model_copy(update={"finalist": True, "number": 2}),
        trial(3, finalist=True, began=80.0, history=[epoch]),
        trial(4, finalist=True),
        Trial(number=5, params={"a.b": 1}, seed=1, finalist=True),
    ]
    assert left_of_finalists([*slow, *again], 2, 100.0) == 50  # 30 are left of the one that runs, then the short one
    assert left_of_finalists([*slow, *again], 1, 100.0) == 90


def test_many_trials_take_few_lines():
    trials = [trial(n) for n in range(50)] + [trial(n, "failed", reason="r") for n in range(50, 99)] + [done(99, 0.5)]
    lines = picture(trials, GOALS, "loss", 100, 9, None).splitlines()
    assert len(lines) <= 10
    assert lines[-1].startswith("  failed  #98")


def test_the_best_keeps_the_constraints_and_the_first_of_equals_stays():
    assert best_of([], GOALS) is None
    assert best_of([trial(0), done(1, 0.9, cost=0.6), trial(2, "failed")], GOALS) is None
    assert best_of([done(3, 0.5), done(2, 0.5), done(4, 0.4)], GOALS).number == 2


@pytest.mark.parametrize(
    ("over", "budget", "seconds", "expected"), [(0, 9, 5, None), (2, 8, 10, 30), (8, 8, 10, 0), (9, 8, 10, 0)]
)
def test_time_left_goes_by_the_pace_so_far(over, budget, seconds, expected):
    trials = [done(n, 0.5) for n in range(over)] + [trial(over)]
    assert left(trials, budget, seconds) == expected


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (3725, "62:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_points_in_few_words():
    params = {"a.b.rate": 0.000123456, "c.n": 3, "c.flag": True, "c.none": None, "c.list": [1, "x"], "model": "m"}
    assert shown(params) == 'rate=0.000123, n=3, flag=true, none=null, list=[1, "x"], model=m'
    assert shown({"model.name": "/very/long/" + 50 * "x" + "/end"}) == "name=…" + 26 * "x" + "/end"
    assert shown({}) == ""


HOSTILE = st.text() | st.sampled_from(["a\nb", "\x1b[2J", "\r", "\u2028", "\0", "[red]", "% s {0}", "x" * 5000])


@given(HOSTILE, HOSTILE)
def test_hostile_strings_stay_in_their_line(value, reason):
    trials = [
        done(0, 0.5).model_copy(update={"params": {"a.b": value, "a.c": [value], "a.d": {value: value}}}),
        trial(1, "failed", reason=reason),
    ]
    text = picture(trials, GOALS, "loss", 5, 1, None)
    assert len(text.splitlines()) == 3
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_model_is_shown_by_what_tells_it_from_others():
    lstm = {"architecture": "lstm", "config": {"hidden_size": 128}}
    assert shown({"model": {"name": "org/model"}}) == "model=org/model"
    assert shown({"model": lstm}) == "model=lstm"
