import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lspm_ray.errors import ConfigError
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.records import Epoch, Trial
from lspm_ray.tuning.scheduler import EPOCH, Scheduler
from lspm_ray.tuning.space import Domain, Space

STOP, CONTINUE = "STOP", "CONTINUE"

SPACE = Space({"finetune.learning_rate": Domain(uniform=(0.0, 1.0))})
GOALS = Goals(objectives={"validation.accuracy": "max"})


class Running:
    """What Ray Tune tells a scheduler of."""

    def __init__(self, number):
        self.trial_id = f"now-{number}"


def watch(scheduler, number, values, metric="loss", fails=False):
    """Tell a scheduler of a whole trial as Ray Tune does, and write it down as the sweep does."""
    running, history, status = Running(number), [], "failed" if fails else "done"
    scheduler.on_trial_add(None, running)
    result = None
    for epoch, value in enumerate(values, 1):
        result = {EPOCH: epoch, metric: value}
        history.append(Epoch(epoch=epoch, metrics={metric: value}, seconds=0.0))
        if scheduler.on_trial_result(None, running, result) == STOP:
            status = "stopped"
            break
    if status == "failed":
        scheduler.on_trial_error(None, running)
    else:
        scheduler.on_trial_complete(None, running, result)
    return Trial(number=number, params={}, seed=0, status=status, history=history)


def decisions(spec, trials, metric="loss", mode="min"):
    """Epochs that each trial got, one after another."""
    scheduler = Scheduler.make(spec).build(metric, mode, [], SPACE)
    return [len(watch(scheduler, number, values, metric).history) for number, values in enumerate(trials)]


def test_asha_lets_one_in_so_many_go_on():
    spec = {"scheduler": "asha", "grace_epochs": 1, "reduction": 3}
    trials = [[level] * 6 for level in (1.0, 2.0, 3.0, 1.5, 0.9, 2.5)]
    # 1.5 is in the best third of what came before it at epoch 1, and behind 1.0, which alone came to epoch 3.
    assert decisions(spec, trials) == [6, 1, 1, 3, 6, 1]
    trials = [[-value for value in values] for values in trials]
    assert decisions(spec, trials, "accuracy", "max") == [6, 1, 1, 3, 6, 1]


def test_asha_cuts_at_powers_of_the_reduction_times_the_grace():
    spec = {"scheduler": "asha", "grace_epochs": 2, "reduction": 2}
    for better in range(9):  # so many epochs at the head, then behind
        good = [1.0] * 9
        late = [0.5] * better + [2.0] * (9 - better)
        expected = next((cut for cut in (2, 4, 8) if cut > better), 9)
        assert decisions(spec, [good, late]) == [9, expected], better


def test_median_stops_what_never_was_as_good_as_the_middle_of_the_others():
    spec = {"scheduler": "median", "grace_epochs": 2, "min_trials": 3}
    others = [[1.0] * 5, [2.0] * 5, [3.0] * 5]
    assert decisions(spec, [*others, [2.5] * 5]) == [5, 5, 5, 2]
    assert decisions(spec, [*others, [1.9] + [9.0] * 4]) == [5, 5, 5, 5]
    assert decisions(spec, [*others, [9.0, 2.0, 9.0, 9.0, 9.0]]) == [5, 5, 5, 5]
    assert decisions(spec, [*others[:2], [9.0] * 5]) == [5, 5, 5]
    accuracies = [[-value for value in values] for values in [*others, [2.5] * 5]]
    assert decisions(spec, accuracies, "accuracy", "max") == [5, 5, 5, 2]


def test_none_stops_nothing():
    assert decisions("none", [[1.0] * 5, [0.5] * 5, [9.0] * 5]) == [5, 5, 5]


SPECS = st.one_of(
    st.fixed_dictionaries(
        {
            "scheduler": st.just("asha"),
            "grace_epochs": st.integers(1, 3),
            "reduction": st.sampled_from([1.2, 1.5, 2.0, 3.0]),
        }
    ),
    st.fixed_dictionaries(
        {"scheduler": st.just("median"), "grace_epochs": st.integers(1, 3), "min_trials": st.integers(1, 3)}
    ),
    st.just({"scheduler": "none"}),
)
VALUES = st.lists(st.floats(0.01, 9), min_size=1, max_size=8)
MODES = st.sampled_from([("loss", "min"), ("accuracy", "max")])


@given(SPECS, MODES, st.lists(VALUES, max_size=8))
def test_the_best_so_far_is_never_stopped(spec, metric_and_mode, trials):
    metric, mode = metric_and_mode
    scheduler = Scheduler.make(spec).build(metric, mode, [], SPACE)
    for number, values in enumerate(trials):
        watch(scheduler, number, values, metric)
    best = [0.01] * 9 if mode == "min" else [9.0] * 9
    assert watch(scheduler, 99, best, metric).status == "done"


@given(SPECS, MODES, st.lists(st.tuples(VALUES, st.booleans()), max_size=8), st.lists(VALUES, min_size=1, max_size=3))
@example(  # Ray Tune tells the median rule of a last result twice, which moves the average
    {"scheduler": "median", "grace_epochs": 1, "min_trials": 1}, ("loss", "min"), [([3.0, 1.0], False)], [[2.5, 1.8]]
)
@example(  # and ASHA, which then fills a level below
    {"scheduler": "asha", "grace_epochs": 1, "reduction": 1.2},
    ("loss", "min"),
    [([1.0, 1.0], False)],
    [[0.5] * 13 + [2.0] * 2],
)
def test_told_of_trials_it_decides_as_if_it_had_seen_them(spec, metric_and_mode, before, after):
    metric, mode = metric_and_mode
    live = Scheduler.make(spec).build(metric, mode, [], SPACE)
    seen = [watch(live, number, values, metric, fails) for number, (values, fails) in enumerate(before)]
    told = Scheduler.make(spec).build(metric, mode, seen, SPACE)
    for number, values in enumerate(after, len(before)):
        assert watch(told, number, values, metric) == watch(live, number, values, metric)


def test_trials_that_failed_before_their_first_epoch_are_passed_over():
    failed = Trial(number=0, params={}, seed=0, status="failed")
    cut = Trial(number=1, params={}, seed=0, status="stopped")
    for name in ("none", "asha", "median"):
        assert watch(Scheduler.make(name).build("loss", "min", [failed, cut], SPACE), 2, [1.0]).status == "done"


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_grace_as_long_as_the_trial_is_refused(name):
    Scheduler.make({"scheduler": name, "grace_epochs": 2}).check(3, SPACE, GOALS)
    for epochs in (1, 2):
        with pytest.raises(
            ConfigError, match=rf"tune\.scheduler\.grace_epochs: trials of {epochs} epoch.*got 2.*finetune\.epochs"
        ):
            Scheduler.make({"scheduler": name, "grace_epochs": 2}).check(epochs, SPACE, GOALS)
    Scheduler.make("none").check(1, SPACE, GOALS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"scheduler": "asha", "grace_epochs": 0}, "grace_epochs: .*greater than or equal to 1"),
        ({"scheduler": "asha", "reduction": 1}, "reduction: .*greater than 1"),
        ({"scheduler": "median", "min_trials": 0}, "min_trials: .*greater than or equal to 1"),
        ({"scheduler": "median", "reduction": 2}, "reduction: unknown key.*grace_epochs, min_trials"),
        ("hyperband", r"scheduler: unknown scheduler \(got 'hyperband'\); valid: asha, median, none"),
        (None, r"scheduler: say which scheduler; valid: asha, median, none"),
        (3, r"say which scheduler \(got 3\)"),
    ],
)
def test_bad_settings_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        Scheduler.make(spec)
