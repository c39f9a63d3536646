"""Sweeps on a real Ray cluster, of a problem that takes no time."""

from pathlib import Path

import pytest

from lspm_ray.errors import TrainingError
from lspm_ray.tuning.records import Trial
from tests.tuning.toy_problem import RATE, ToyPopulation, ToyProblem, toy_sweeper

pytestmark = pytest.mark.ray


@pytest.fixture
def log(tmp_path: Path) -> str:
    folder = tmp_path / "log"
    folder.mkdir()
    return str(folder)


def by_status(trials: list[Trial]) -> dict[str, list[int]]:
    return {status: [t.number for t in trials if t.status == status] for status in {t.status for t in trials}}


def test_trials_that_fail_are_reported_and_stop_nothing(ray_cluster, tmp_path, log):
    problem = ToyProblem(log, {1: "error", 2: "exit", 3: "hang", 4: "nan"})
    lines: list[str] = []
    sweeper = toy_sweeper(tmp_path, problem, lines, budget={"trials": 7}, hang_s=4)
    sweeper.search()
    assert by_status(sweeper.search_trials) == {"done": [0, 5, 6], "failed": [1, 2, 3, 4]}
    reasons = {trial.number: trial.reason for trial in sweeper.search_trials}
    assert reasons[1] == "of no use: at all"
    assert "its process died" in reasons[2]
    assert "no progress for 4 s" in reasons[3]
    assert "accuracy is nan after epoch 1" in reasons[4]
    assert {int(file.stem) for file in Path(log).glob("*.forgotten")} == {1, 2, 3, 4}
    assert any("7/7 trials: 3 finished, 0 stopped early, 4 failed" in line for line in lines)
    assert sorted(trial.number for trial in sweeper.records.load()) == list(range(7))


def test_a_sweep_that_ends_goes_on_with_a_larger_budget_and_does_nothing_twice(ray_cluster, tmp_path, log):
    problem = ToyProblem(log, {1: "error"})
    toy_sweeper(tmp_path, problem, budget={"trials": 3}).search()
    again = toy_sweeper(tmp_path, problem, budget={"trials": 5})
    before = again.seconds
    again.search()
    assert by_status(again.search_trials) == {"done": [0, 2, 3, 4], "failed": [1]}
    assert [problem.runs(number) for number in range(6)] == [1, 1, 1, 1, 1, 0]
    assert min(trial.began for trial in again.search_trials if trial.number > 2) >= before > 0
    points = [trial.params for trial in again.search_trials]
    whole = toy_sweeper(tmp_path / "other", problem, budget={"trials": 5})
    whole.search()
    assert [trial.params for trial in whole.search_trials] == points


def test_failed_trials_are_run_again_when_asked(ray_cluster, tmp_path, log):
    toy_sweeper(tmp_path, ToyProblem(log, {1: "error"}), budget={"trials": 3}).search()
    again = toy_sweeper(tmp_path, ToyProblem(log), budget={"trials": 3}, retry_failed=True)
    again.search()
    assert by_status(again.search_trials) == {"done": [0, 1, 2]}
    assert [again.problem.runs(number) for number in range(3)] == [1, 2, 1]


@pytest.mark.parametrize("scheduler", [{"scheduler": "asha", "reduction": 2}, "median"])
def test_bad_trials_are_stopped_early_and_the_reason_is_written_down(ray_cluster, tmp_path, log, scheduler):
    problem = ToyProblem(log)
    sweeper = toy_sweeper(tmp_path, problem, budget={"trials": 12}, scheduler=scheduler)
    sweeper.search()
    found = by_status(sweeper.search_trials)
    assert found["stopped"] and len(found["done"]) >= 3
    misses = {trial.number: trial.values.get("validation.accuracy", 0) for trial in sweeper.search_trials}
    best = max(misses, key=misses.__getitem__)
    assert sweeper.trials[best].status == "done"
    for number in found["stopped"]:
        trial = sweeper.trials[number]
        assert len(trial.history) < 4 and not trial.values
        assert f"accuracy {trial.history[-1].metrics['accuracy']:.4g} after epoch" in trial.reason
    assert {int(file.stem) for file in Path(log).glob("*.forgotten")} == set(found["stopped"])


def test_the_time_budget_leaves_time_for_the_finalists(ray_cluster, tmp_path, log):
    problem = ToyProblem(log)
    sweeper = toy_sweeper(
        tmp_path,
        problem,
        clock=lambda: 5.0 * len(list(Path(log).glob("*.txt"))),  # a trial takes five seconds, whatever the machine does
        budget={"trials": 100, "minutes": 0.5},
        finalists=1,
        seeds=2,
    )
    sweeper.search()
    found = by_status(sweeper.search_trials)
    # Of thirty seconds, a finalist with two seeds needs ten.
    assert 3 <= len(found["done"]) <= 5 and set(found) <= {"done", "stopped"}
    for number in found.get("stopped", []):
        assert sweeper.trials[number].reason == "the time budget of 0.5 minutes is used up"
    on_disk = {trial.number: trial.status for trial in sweeper.records.load()}
    assert {number for number, status in on_disk.items() if status == "running"} == set(found.get("stopped", []))


def test_finalists_are_trained_with_every_further_seed_once(ray_cluster, tmp_path, log):
    problem = ToyProblem(log)
    sweeper = toy_sweeper(tmp_path, problem, budget={"trials": 2}, seeds=2)
    sweeper.search()
    points = [{RATE: 1e-3}, {RATE: 1e-4}]
    first = sweeper.repeat(points)
    assert [[trial.seed for trial in trials] for trials in first] == [[1, 2], [1, 2]]
    assert all(trial.finalist and trial.status == "done" for trials in first for trial in trials)
    again = toy_sweeper(tmp_path, problem, budget={"trials": 2}, seeds=2)
    assert again.repeat(points) == first
    assert len(again.search_trials) == 2


def test_when_every_trial_fails_the_sweep_gives_up_and_says_why(ray_cluster, tmp_path, log):
    problem = ToyProblem(log, dict.fromkeys(range(50), "error"))
    sweeper = toy_sweeper(tmp_path, problem, budget={"trials": 50})
    with pytest.raises(TrainingError, match=r"every trial failed; the first: of no use: at all.*retry_failed"):
        sweeper.search()
    assert 5 <= len([t for t in sweeper.search_trials if t.status == "failed"]) < 10
    again = toy_sweeper(tmp_path, problem, budget={"trials": 50})
    with pytest.raises(TrainingError, match="every trial failed"):
        again.search()
    assert len(again.search_trials) == len(sweeper.search_trials)


def test_tensorboard_has_every_trial(ray_cluster, tmp_path, log):
    toy_sweeper(tmp_path, ToyProblem(log), budget={"trials": 2}).search()
    folders = {file.parent.name for file in (tmp_path / "tensorboard").rglob("events.out.tfevents.*")}
    assert folders == {"trial-00000", "trial-00001"}


def test_members_of_a_population_take_over_from_each_other_and_stay_in_the_space(ray_cluster, tmp_path, log):
    problem = ToyPopulation(log, epochs=6)
    pbt = {"scheduler": "pbt", "share": 0.5, "resample": 0.0}
    sweeper = toy_sweeper(tmp_path, problem, scheduler=pbt, budget={"trials": 4})
    sweeper.search()
    assert by_status(sweeper.search_trials) == {"done": [0, 1, 2, 3]}
    starts = {n: [line.split() for line in Path(log, f"{n}.txt").read_text().splitlines()] for n in range(4)}
    assert any(int(other) != number for number, found in starts.items() for other, _ in found)
    for trial in sweeper.search_trials:
        assert trial.history[-1].epoch == 6
        assert 1e-5 <= trial.params[RATE] <= 1e-1
