"""The tables of the page about a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import words
from lspm_ray.report.canvas import fitted
from lspm_ray.report.grid import TALL_FROM, cell, head, missing, row, table, text_cell
from lspm_ray.report.sweep import view
from lspm_ray.report.sweep.measure import Measure
from lspm_ray.report.sweep.words import point
from lspm_ray.tuning.records import Trial
from lspm_ray.tuning.sweep import Finalist, Sweep

_REASON_CHARACTERS = 300
_VALUE_CHARACTERS = 80
_DOMAIN_CHARACTERS = 400
_SETTING_CHARACTERS = 600
_STATUSES = {"done": "done", "stopped": "stopped", "failed": "failed", "running": "not finished"}


def finalists(sweep: Sweep, measures: Mapping[str, Measure]) -> Html:
    """The points that were trained with several seeds."""
    first = measures[sweep.goals.first]
    others = [measures[metric] for metric in sweep.goals.names if metric != first.name]
    heads = [
        head("finalist"),
        head(name(first.label), f"mean{', ' + first.unit if first.unit else ''}"),
        head("with each seed", first.unit),
        head("behind the winner", "points" if first.share else None),
        *(head(name(other.label), other.unit) for other in others),
        head("settings", text=True),
    ]
    rows = [
        row(
            _finalist(f, sweep),
            [
                element("td", first.number(f.mean.value), element("span", first.interval(f.mean), class_="range")),
                cell(" · ".join(map(first.number, f.scores)) or words.MISSING),
                _behind(f, first),
                *(_value(f.values, other) for other in others),
                element("td", point(f), class_="text narrow"),
            ],
            "served" if f is sweep.winner else None,
        )
        for f in sweep.finalists
    ]
    caption = (
        "The best points, trained again with other seeds. Small figures are 95 % intervals. Two finalists cannot be "
        "told apart where the interval of their difference holds zero."
    )
    return table("finalists", caption, heads, [element("tbody", rows)])


def trials(sweep: Sweep, measures: Mapping[str, Measure]) -> Html:
    """Every trial with its end, its results and its settings."""
    shown = [measures[metric] for metric in sweep.goals.names]
    heads = [
        head("trial"),
        head("status", text=True),
        *(head(name(measure.label), measure.unit) for measure in shown),
        head("epochs"),
        head("time", "s"),
        *(_field(path) for path in sweep.space),
        head("why", text=True),
    ]
    rows = [
        row(
            _trial(trial, sweep),
            [
                text_cell(_STATUSES[trial.status]),
                *(_value(trial.values, measure) for measure in shown),
                cell(words.count(len(trial.history))),
                cell(words.significant(trial.seconds)),
                *(_setting(trial.params, path) for path in sweep.space),
                text_cell(name(fitted(trial.reason, _REASON_CHARACTERS)) if trial.reason else None),
            ],
            _mark(trial, sweep),
        )
        for trial in sorted(sweep.trials, key=lambda trial: trial.number)
    ]
    caption = "Every trial in the order of its number. trials.parquet has the same with all digits."
    return table("trials", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def space(sweep: Sweep) -> Html:
    """What was varied, over what, and what won."""
    heads = [
        head("field"),
        head("over", text=True),
        head("only when", text=True),
        head("importance", "%"),
        head("winner", text=True),
    ]
    won = {} if sweep.winner is None else sweep.winner.params
    rows = []
    for path, domain in sweep.space.items():
        condition = view.condition(domain)
        found = sweep.importance.get(path)
        cells = [
            text_cell(name(fitted(view.domain(domain), _DOMAIN_CHARACTERS))),
            text_cell(name(fitted(condition, _DOMAIN_CHARACTERS)) if condition else "always"),
            missing("not known") if found is None or not found.real else cell(words.percent(found.share)),
            text_cell(_shown(won[path]) if path in won else words.MISSING),
        ]
        rows.append(row(name(fitted(path, _VALUE_CHARACTERS)), cells))
    return table("space", "What was varied, and over what.", heads, [element("tbody", rows)])


def settings(sweep: Sweep) -> Html:
    """How the sweep was run."""
    objectives = ", ".join(f"{metric} ({mode})" for metric, mode in sweep.goals.objectives.items())
    entries: dict[str, str] = {
        "objectives": objectives,
        "constraints": ", ".join(_limit(sweep, metric) for metric in sweep.goals.constraints) or "none",
        "searcher": words.spec(sweep.searcher, "searcher"),
        "scheduler": words.spec(sweep.scheduler, "scheduler"),
        "metric of the scheduler": f"{sweep.metric} ({'max' if sweep.higher_is_better else 'min'})",
        "epochs": f"at most {words.count(sweep.epochs)}",
    }
    entries |= {f"tune.{key}": view.value(value) for key, value in sweep.settings.items() if key != "space"}
    rows = [
        row(name(fitted(key, _VALUE_CHARACTERS)), [text_cell(name(fitted(text, _SETTING_CHARACTERS)))])
        for key, text in entries.items()
    ]
    heads = [head("setting"), head("value", text=True)]
    return table("settings", "How the sweep was run.", heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _field(path: str) -> Html:
    section, _, field = fitted(path, _VALUE_CHARACTERS).rpartition(".")
    return head(name(field), section or None)


def _limit(sweep: Sweep, metric: str) -> str:
    limit = sweep.goals.constraints[metric]
    bounds = [f"at least {limit.min:g}" if limit.min is not None else ""]
    bounds.append(f"at most {limit.max:g}" if limit.max is not None else "")
    return f"{metric} {' and '.join(filter(None, bounds))}"


def _finalist(finalist: Finalist, sweep: Sweep) -> Child:
    label = f"trial {finalist.number}"
    if finalist is sweep.winner:
        return [label, " ", _badge("winner", on=True)]
    return label if finalist.distinguishable else [label, " ", _badge("not distinguishable")]


def _behind(finalist: Finalist, measure: Measure) -> Html:
    if finalist.behind is None:
        return missing("is the winner")
    interval = element("span", measure.interval(finalist.behind), class_="range")
    chance = None if finalist.distinguishable else element("span", "could be chance", class_="range")
    return element("td", measure.number(finalist.behind.value), interval, chance)


def _trial(trial: Trial, sweep: Sweep) -> Child:
    again = view.repeated(sweep, trial)
    if sweep.winner is not None and trial.number == sweep.winner.number:
        badge: Child = _badge("winner", on=True)
    elif any(finalist.number == trial.number for finalist in sweep.finalists):
        badge = _badge("finalist", on=True)
    elif trial.finalist:
        badge = _badge("repeats a finalist" if again is None else f"repeats {again.number}")
    elif view.complete(sweep, trial) and not view.kept(sweep, trial):
        badge = _badge("breaks a constraint")
    else:
        badge = None
    return [str(trial.number), " ", badge]


def _mark(trial: Trial, sweep: Sweep) -> str | None:
    if sweep.winner is not None and trial.number == sweep.winner.number:
        return "served"
    return None if trial.status == "done" else "dominated"


def _value(values: Mapping[str, float], measure: Measure) -> Html:
    return cell(measure.number(values[measure.name])) if measure.name in values else missing("not measured")


def _setting(params: Mapping[str, Any], path: str) -> Html:
    return cell(_shown(params[path])) if path in params else missing("does not count here")


def _shown(setting: Any) -> Html:
    return name(fitted(view.value(setting), _VALUE_CHARACTERS))


def _badge(text: str, *, on: bool = False) -> Html:
    return element("span", text, class_="badge on" if on else "badge")
