"""Stage `tune`: search the space, train the best points again with other seeds, choose the winner.

The search looks at the validation split, and at the selection split for what a cascade would cost. It never sees the
calibration and the test split; the winner's score on test is reported when everything is decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, hardware, join, name_of, open_artifact
from lspm_ray.cluster import smallest_node, totals
from lspm_ray.config import override
from lspm_ray.corpus.sources import fingerprint_sources
from lspm_ray.errors import ArtifactError, ConfigError, ResourceError
from lspm_ray.evaluation.outputs import outputs, read_outputs
from lspm_ray.pipeline import Pipeline
from lspm_ray.progress import Report
from lspm_ray.report.sweep.build import write_sweep_report
from lspm_ray.settings import Settings
from lspm_ray.training.trainer import resolve
from lspm_ray.trial import VALIDATION, FinetuneTrials, Prepared, shared_key
from lspm_ray.tuning.config import PREPARED, TuneConfig
from lspm_ray.tuning.finalists import Answers, interval, level, resample, score
from lspm_ray.tuning.goals import Goals
from lspm_ray.tuning.importance import importance
from lspm_ray.tuning.metrics import QUALITY, needs
from lspm_ray.tuning.records import Records, Trial, as_rows
from lspm_ray.tuning.scheduler import Scheduler
from lspm_ray.tuning.searcher import Searcher, settled
from lspm_ray.tuning.space import Domain, Params, Space
from lspm_ray.tuning.sweep import SWEEP_FILE, TRIALS_FILE, Finalist, Gap, Sweep
from lspm_ray.tuning.tune import Reserve, Sweeper

STAGE = "tune"
WORK = "sweep"
"""Name of the records: they outlive the artifact, so that a larger budget goes on where a smaller one ended."""

_MOST_PREPARED = 64
_POINTS_CHECKED = 32
_FITS_THE_MODEL = ("compress.", "finetune.frozen_layers")
_MOST_COUNTED = 1_000_000
_DISTRIBUTED_CPUS = 0.01
"""What a trial holds that only waits for workers of its own."""
_RESTS = {"profile", "select", "gears", "report", "gain"}
"""Stages that no trial makes: whoever made them wants what they rest on."""
_EXTENT = {"budget", "finalists", "seeds"}
_EXECUTION = {"trial", "concurrent", "hang_s", "retry_failed", "use_winner"}


class NoWinnerError(ConfigError):
    """No trial of a sweep came to an end and kept the constraints."""


def sweep(settings: Settings, store: ArtifactStore, report: Report) -> Artifact:
    """Run the sweep, or go on with it, or find it if it is done.

    Args:
        settings: with a section `tune`.
        store: for everything that is made.
        report: progress.

    Returns:
        An artifact with `sweep.json` (a `Sweep`), `trials.parquet` and a page.

    Raises:
        UserError: space or goals do not fit the settings, the cluster cannot hold a trial, or all trials failed.
    """
    config = _config(settings)
    check_settings(settings)
    prepared = _prepare(settings, store, report)
    parents = _digests(prepared)
    what = _identity(settings)
    uri = store.work_uri(WORK, store.key(WORK, _without(what, _EXTENT), parents))
    key = store.key(STAGE, what, parents)
    if config.retry_failed:
        _forget_if_failed(store, key)

    def build(draft: Draft) -> None:
        records = Records(uri, lambda line: report(f"! {line}"))
        begun = records.begin()
        reserve = reserve_for(settings, totals(), smallest_node())
        trials = _problem(settings, store, prepared, reserve, uri)
        sweeper = Sweeper(
            config=config,
            goals=config.goals(settings.finetune.metric),
            metric=settings.finetune.metric,
            seed=settings.finetune.seed,
            problem=trials,
            records=records,
            reserve=reserve,
            log_uri=join(store.root, f"tensorboard/{STAGE}-{key}"),
            report=report,
        )
        sweeper.search()
        found = _conclude(settings, sweeper, trials, store, report, begun.runs)
        (draft.path / SWEEP_FILE).write_text(found.model_dump_json(indent=1), encoding="utf-8")
        _write_page(draft, settings, found, prepared)
        pq.write_table(pa.Table.from_pylist(as_rows(found.trials)), draft.path / TRIALS_FILE)
        draft.summary = {"winner": None if found.winner is None else found.winner.params, "trials": len(found.trials)}
        _drop_losers(store, trials, found, begun.utc)

    return store.make(STAGE, what, parents, build)


def _write_page(draft: Draft, settings: Settings, found: Sweep, prepared: Mapping[str, Prepared]) -> None:
    named: dict[str, Artifact] = {}
    for number, shared in enumerate(prepared.values()):
        which = "" if len(prepared) == 1 else f" {number + 1}"
        named |= {f"model{which}": open_artifact(shared.start), f"data{which}": open_artifact(shared.data)}
    values = "" if found.winner is None else " ".join(override(*pair) for pair in found.winner.params.items())
    command = f"lspm finetune CONFIG --from-sweep   # or: lspm finetune CONFIG {values}" if values else ""
    write_sweep_report(draft, found, named, command)


def read_sweep(artifact: Artifact) -> Sweep:
    """What the sweep found."""
    return Sweep.parse(artifact.read_json(SWEEP_FILE))


def _forget_if_failed(store: ArtifactStore, key: str) -> None:
    """Have a sweep that is done go on, if some of its trials failed."""
    found = store.find(STAGE, key)
    if found is not None and any(trial.status == "failed" for trial in read_sweep(found).trials):
        store.delete(name_of(found.uri))


def with_winner(settings: Settings, artifact: Artifact) -> Settings:
    """The settings with the winner's values.

    Raises:
        NoWinnerError: no trial keeps the constraints.
    """
    winner = read_sweep(artifact).winner
    if winner is None:
        raise NoWinnerError(
            "the sweep has no winner: no trial came to an end and kept the constraints",
            field="tune.constraints",
            value={name: limit.model_dump(exclude_none=True) for name, limit in _config(settings).constraints.items()},
            hint="Loosen a constraint, or raise tune.budget",
        )
    return settings.with_values(winner.params)


def check_settings(settings: Settings) -> str:
    """Check a sweep without a cluster and without data.

    Returns:
        What there will be, in a line.

    Raises:
        ConfigError: a field of the space does not exist or does not take a value, a metric is never reported, the
            scheduler would do nothing, or the budget is too small for the grid.
    """
    config = _config(settings)
    if settings.finetune.metric not in QUALITY:
        raise ConfigError(
            "a sweep cannot judge trials by it",
            field="finetune.metric",
            value=settings.finetune.metric,
            valid=list(QUALITY),
        )
    space, goals = Space(config.space), config.goals(settings.finetune.metric)
    needs(goals.names, sorted(settings.compress.variants))
    for path in space.domains:
        _check_values(settings, space, path)
    _check_points(settings, space)
    Searcher.make(config.searcher).check(space, goals)
    Scheduler.make(config.scheduler).check(_most_epochs(settings, config), space, goals)
    _check_budget(config, space)
    fields = ", ".join(config.space)
    return f"tune: {config.budget.trials} trials at most over {fields}; by {', '.join(goals.names)}"


def reserve_for(settings: Settings, have: Mapping[str, float], node: Mapping[str, float]) -> Reserve:
    """What a trial holds, and how many fit.

    Args:
        settings: with a section `tune`.
        have: CPUs and GPUs of the cluster.
        node: the same of one node: the fewest CPUs, and the most GPUs, that any has.

    Raises:
        ResourceError: not even one fits.
    """
    config, workers = _config(settings), settings.finetune.workers
    most = config.concurrent or 1_000_000
    measured = needs(config.goals(settings.finetune.metric).names, sorted(settings.compress.variants)).measured
    if measured and settings.serve.variant.gpus:
        raise ConfigError(
            "the speed of models on a GPU cannot be measured in a trial, which holds it",
            field="tune.objectives",
            value=config.goals(settings.finetune.metric).names,
            hint="Tune for quality, and let lspm run measure the winner",
        )
    if (workers.num_workers or 1) > 1:
        scaling = resolve(workers, dict(have), grows=settings.cluster.wait_for_nodes_s is not None)
        cpus = scaling.num_workers * scaling.cpus_per_worker + 0.5
        fit = [have.get("CPU", 0.0) / cpus] + ([have.get("GPU", 0.0) / scaling.num_workers] if scaling.use_gpu else [])
        concurrent = 1 if measured else max(1, min(most, math.floor(min(fit))))
        return Reserve(_DISTRIBUTED_CPUS, 0.0, concurrent, fresh=True, held_cpus=cpus)
    cpus = config.trial.cpus or (node["CPU"] if measured else min(1.0, node["CPU"]))
    gpus = config.trial.gpus
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0.0) >= 1 and workers.use_gpu is not False else 0.0
    for name, amount, there in (("cpus", cpus, node["CPU"]), ("gpus", gpus, node.get("GPU", 0.0))):
        if amount > there + 1e-9:
            raise ResourceError(
                f"a trial asks for {amount:g} {name.upper()[:-1]} of one node, there are {there:g}",
                field=f"tune.trial.{name}",
                value=amount,
                hint=f"Lower tune.trial.{name}",
            )
    fit = [have.get("CPU", 0.0) / cpus] + ([have.get("GPU", 0.0) / gpus] if gpus else [])
    return Reserve(cpus, gpus, max(1, min(most, math.floor(min(fit) + 1e-9))), held_cpus=cpus)


def points_to_prepare(settings: Settings) -> list[Params]:
    """Every combination of the varied fields that decide what the trials are trained on.

    Raises:
        ConfigError: one of them has infinitely many values, or there are too many combinations.
    """
    config = _config(settings)
    part = Space(config.space).part(*PREPARED)
    points = []
    for point in part.points():
        points.append(point)
        if len(points) > _MOST_PREPARED:
            raise ConfigError(
                f"more than {_MOST_PREPARED} combinations of {', '.join(part.domains)}: the data are prepared for each",
                field="tune.space",
                hint="Vary fewer of them",
            )
    return points


def extremes(settings: Settings, prepared: Params) -> list[Params]:
    """Points with the lowest and the highest value of each field that has to fit the model.

    Args:
        settings: with a section `tune`.
        prepared: one of `points_to_prepare`.
    """
    space = Space(_config(settings).space)
    random = partial(_draw, np.random.default_rng(0))
    points = []
    for path, domain in space.domains.items():
        if path.startswith(_FITS_THE_MODEL):
            for value in domain.extremes:
                point = space.sample(settled(prepared | {path: value}, random))
                points += [point] if point.get(path) == value and not _problem_with(settings, point) else []
    return points


def _config(settings: Settings) -> TuneConfig:
    if settings.tune is None:
        raise ConfigError("this configuration says nothing about a sweep", field="tune", hint="Add a section `tune`")
    return settings.tune


def _prepare(settings: Settings, store: ArtifactStore, report: Report) -> dict[str, Prepared]:
    prepared = {}
    for params in points_to_prepare(settings):
        pipeline = Pipeline(settings.with_values(params), store, report)
        prepared[shared_key(params)] = Prepared(start=pipeline.start.uri, data=pipeline.prepare.uri)
    return prepared


def _digests(prepared: Mapping[str, Prepared]) -> dict[str, str]:
    return {
        f"{role}.{key[:12]}": open_artifact(uri).digest
        for key, shared in prepared.items()
        for role, uri in (("start", shared.start), ("data", shared.data))
    }


def _identity(settings: Settings) -> dict[str, Any]:
    """What decides the outcome, beside the data and the models."""
    sections = ("task", "finetune", "compress", "profile", "select", "serve")
    plain = settings.with_values({}).model_dump(mode="json", include=set(sections))
    for section in ("finetune", "compress"):
        plain[section].pop("workers", None)
    if settings.compress.unlabelled is not None:
        plain["compress"]["unlabelled"]["source"] = fingerprint_sources(settings.compress.unlabelled)
    plain["serve"] = plain["serve"]["variant"]
    tune = _config(settings).model_dump(mode="json", exclude=_EXECUTION)
    if tune["objectives"] is not None:  # their order counts, and that of a mapping does not
        tune["objectives"] = list(tune["objectives"].items())
    return {"settings": plain, "tune": tune, "hardware": hardware()}


def _without(what: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return what | {"tune": {name: value for name, value in what["tune"].items() if name not in names}}


def _problem(
    settings: Settings, store: ArtifactStore, prepared: Mapping[str, Prepared], reserve: Reserve, work_uri: str
) -> FinetuneTrials:
    config = _config(settings)
    goals = config.goals(settings.finetune.metric)
    return FinetuneTrials(
        settings=settings.with_values({}),
        root=store.root,
        prepared=prepared,
        needs=needs(goals.names, sorted(settings.compress.variants)),
        threads=max(1, int(reserve.cpus)),
        gpu=reserve.gpus > 0,
        distributed=reserve.fresh,
        population_uri=join(work_uri, "population") if Scheduler.make(config.scheduler).population else None,
    )


def _check_values(settings: Settings, space: Space, path: str) -> None:
    """Refuse a value that no point of the space can have."""
    conditions = _conditions(space, path)
    for value in space.domains[path].extremes:
        problem = ""
        for attempt in range(_POINTS_CHECKED):
            random = np.random.default_rng([attempt])
            chosen = settled(conditions | {path: value}, partial(_draw, random))
            problem = _problem_with(settings, space.sample(chosen))
            if not problem:
                break
        if problem:
            raise ConfigError(problem, field=f"tune.space.{path}", value=value)


def _conditions(space: Space, path: str) -> Params:
    """Values of other fields with which the field at a path counts."""
    found: Params = {}
    for other, wanted in space.domains[path].when.items():
        found |= _conditions(space, other) | {other: wanted[0] if isinstance(wanted, list) else wanted}
    return found


def _draw(random: np.random.Generator, _: str, domain: Domain) -> Any:
    return domain.draw(random)


def _problem_with(settings: Settings, params: Params) -> str:
    """What is wrong with a point; empty if nothing is."""
    try:
        settings.with_values(params)
    except ConfigError as error:
        lines = str(error).splitlines()
        return "; ".join(line.strip(" -") for line in (lines[1:] or lines))
    return ""


def _check_points(settings: Settings, space: Space) -> None:
    random = np.random.default_rng(0)
    for _ in range(_POINTS_CHECKED):
        params = space.draw(random)
        if problem := _problem_with(settings, params):
            raise ConfigError(f"some values do not go together: {problem}", field="tune.space", value=params)


def _most_epochs(settings: Settings, config: TuneConfig) -> int:
    domain = config.space.get("finetune.epochs")
    return settings.finetune.epochs if domain is None else int(max(domain.extremes))


def _check_budget(config: TuneConfig, space: Space) -> None:
    exhaustive = Searcher.make(config.searcher).exhaustive
    trials = config.budget.trials
    number = 0
    for _ in space.points() if exhaustive else space.grids():
        number += 1
        if number > _MOST_COUNTED:
            break
    if number > trials:
        size = f"{number:,}" if number <= _MOST_COUNTED else f"over {_MOST_COUNTED:,}"
        raise ConfigError(
            f"the grid has {size} points, more than the trials there may be",
            field="tune.budget.trials",
            value=trials,
            hint="Raise it, list fewer values, or take another searcher",
        )


def _conclude(
    settings: Settings, sweeper: Sweeper, problem: FinetuneTrials, store: ArtifactStore, report: Report, runs: int
) -> Sweep:
    config, goals, metric = sweeper.config, sweeper.goals, sweeper.metric
    best = _ranked(sweeper.search_trials, goals)[: config.finalists]
    for trial in best:
        if problem.lost(trial):
            sweeper.redo(trial)
    repeated = sweeper.repeat([trial.params for trial in best])
    best = [sweeper.trials[trial.number] for trial in best]
    groups = [
        [other for other in (again if config.seeds else [trial]) if other.status == "done"]
        for trial, again in zip(best, repeated, strict=True)
    ]
    report("tune: comparing the finalists")
    numbers = [trial.number for trial, group in zip(best, groups, strict=True) if group]
    groups = [group for group in groups if group]
    finalists, order = _judge(groups, numbers, goals, problem, store, report)
    done = {t.number: t.values for t in sweeper.search_trials if t.status == "done"}
    return Sweep(
        goals=goals,
        metric=metric,
        higher_is_better=metric != "loss",
        space=config.space,
        searcher=config.searcher,
        scheduler=config.scheduler,
        epochs=_most_epochs(settings, config),
        trials=sorted(sweeper.trials.values(), key=lambda trial: trial.number),
        finalists=finalists,
        front=goals.front(done),
        importance=importance(sweeper.search_trials, Space(config.space), goals, metric),
        gap=_gap(groups[order[0]], metric, problem, store, report) if order else None,
        seconds=sweeper.seconds,
        runs=runs,
        hardware=hardware(),
        settings=config.model_dump(mode="json", exclude_unset=True),
    )


def _ranked(trials: Sequence[Trial], goals: Goals) -> list[Trial]:
    """Trials that came to an end and keep the constraints, the best first."""
    kept = [trial for trial in trials if trial.status == "done" and goals.violation(trial.values) == 0]
    return sorted(kept, key=lambda trial: (goals.order(trial.values), trial.number))


def _judge(
    groups: list[list[Trial]],
    numbers: list[int],
    goals: Goals,
    problem: FinetuneTrials,
    store: ArtifactStore,
    report: Report,
) -> tuple[list[Finalist], list[int]]:
    """The finalists, the best first, and the place of each in `groups`."""
    sign = 1.0 if goals.first_is_higher else -1.0
    scores = [{trial.seed: trial.values[goals.first] for trial in group} for group in groups]
    drawn = _resampled(groups, goals.first, problem, store, report)
    means = [_means(group) for group in groups]
    kept = [place for place in range(len(groups)) if goals.violation(means[place]) == 0]
    order = sorted(kept, key=lambda place: goals.order(means[place]))
    finalists = []
    for place in order:
        mine = list(scores[place].values())
        finalist = Finalist(
            number=numbers[place],
            params=groups[place][0].params,
            scores=mine,
            mean=interval(mine, drawn.get(place)),
            values=means[place],
        )
        if place != order[0]:
            finalist = finalist.model_copy(update=_behind(scores, drawn, order[0], place, sign, level(len(order))))
        finalists.append(finalist)
    return finalists, order


def _means(group: Sequence[Trial]) -> dict[str, float]:
    """Everything that was measured, averaged over the seeds."""
    return {name: float(np.mean([trial.values[name] for trial in group])) for name in group[0].values}


def _resampled(
    groups: list[list[Trial]], objective: str, problem: FinetuneTrials, store: ArtifactStore, report: Report
) -> dict[int, Any]:
    """The objective on resampled validation rows, by the place of the group; empty if it is none of their quality.

    Groups with the same rows are resampled together, so that they can be compared row by row.
    """
    stage, _, metric = objective.partition(".")
    if stage != VALIDATION:
        return {}
    alike: dict[tuple[str, ...], dict[int, Answers]] = {}
    for place, group in enumerate(groups):
        ids, answers = _answers(group, VALIDATION, problem, store, report)
        alike.setdefault(tuple(ids), {})[place] = answers
    found: dict[int, Any] = {}
    for seed, answers_of in enumerate(alike.values()):
        found |= dict(zip(answers_of, resample(metric, list(answers_of.values()), seed), strict=True))
    return found


def _behind(
    scores: list[dict[int, float]], drawn: Mapping[int, Any], winner: int, place: int, sign: float, confidence: float
) -> dict[str, Any]:
    """By how much the winner is better, seed by seed, and whether that can be told."""
    common = [seed for seed in scores[winner] if seed in scores[place]]
    if not common:  # other seeds of each have failed
        return {}
    differences = [sign * (scores[winner][seed] - scores[place][seed]) for seed in common]
    rows = sign * (drawn[winner] - drawn[place]) if drawn else None
    behind = interval(differences, rows, confidence)
    return {"behind": behind, "distinguishable": behind.low > 0 and (len(common) > 1 or rows is not None)}


def _answers(
    group: list[Trial], split: str, problem: FinetuneTrials, store: ArtifactStore, report: Report
) -> tuple[list[str], Answers]:
    """Ids of the rows, and what the trainings of a group answer on them."""
    data = open_artifact(problem.prepared[shared_key(group[0].params)].data)
    models = {str(trial.seed): problem.full_model(trial) for trial in group}
    found = outputs(models, data, store, report, problem.gpu, splits=(split,))
    read = [read_outputs(artifact, split) for artifact in found.values()]
    return read[0][0], Answers(read[0][1], np.stack([logits for _, _, logits in read]))


def _gap(group: list[Trial], metric: str, problem: FinetuneTrials, store: ArtifactStore, report: Report) -> Gap:
    report("tune: the winner on the test split")
    _, test = _answers(group, "test", problem, store, report)
    scores = [score(metric, logits, test.labels) for logits in test.logits]
    return Gap(
        metric=metric,
        validation=float(np.mean([trial.values[f"{VALIDATION}.{metric}"] for trial in group])),
        test=interval(scores, resample(metric, [test])[0]),
    )


def _drop_losers(store: ArtifactStore, problem: FinetuneTrials, found: Sweep, begun_utc: str) -> None:
    """Remove models that the sweep made and nobody needs, and everything that was made of them.

    Needed are those of the finalists, and what a run that went on to `profile` or further rests on.
    """
    artifacts = store.artifacts()
    points = [finalist.params for finalist in found.finalists]
    done = [(trial, _made(problem, trial)) for trial in found.trials if trial.status == "done"]
    needed = {made.digest for trial, made in done if made is not None and trial.params in points}
    needed |= {artifact.digest for artifact in artifacts if artifact.manifest.stage in _RESTS}
    needed = _with_ancestors(needed, artifacts)
    gone = {made.digest for trial, made in done if made is not None} - needed
    left = [a for a in artifacts if a.manifest.created_utc > begun_utc and a.digest not in needed]
    while more := [a for a in left if a.digest in gone or gone & set(a.manifest.parents.values())]:
        for artifact in more:
            gone.add(artifact.digest)
            store.delete(name_of(artifact.uri))
            left.remove(artifact)


def _with_ancestors(digests: set[str], artifacts: Sequence[Artifact]) -> set[str]:
    parents = {artifact.digest: set(artifact.manifest.parents.values()) for artifact in artifacts}
    found, waiting = set(digests), list(digests)
    while waiting:
        new = parents.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _made(problem: FinetuneTrials, trial: Trial) -> Artifact | None:
    try:
        return problem.full_model(trial)
    except ArtifactError:
        return None
