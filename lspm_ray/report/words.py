"""Numbers and findings in words. Every number of the page is formatted here, in one way."""

from __future__ import annotations

from typing import Any

from lspm_ray.compression.recipe import FULL
from lspm_ray.evaluation.metrics import Estimate
from lspm_ray.page.markup import Child, element, name
from lspm_ray.profiling.baselines import LINEAR
from lspm_ray.report.findings import Findings

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"
PERCENT = f"{THIN}%"
TIMES = "\N{MULTIPLICATION SIGN}"
EN_DASH = "\N{EN DASH}"
MISSING = EN_DASH


def significant(value: float, digits: int = 3) -> str:
    """With at least `digits` significant digits, not in scientific notation from 0.0001 up: 1,234, 12.3, 0.0120."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:#.{digits}g}".rstrip(".").replace("-", MINUS)


def percent(share: float, digits: int = 1) -> str:
    """A share as a number of percent, for columns that name the unit: 0.9012 is `90.1`."""
    return f"{100 * share:.{digits}f}".replace("-", MINUS)


def percents(share: float, digits: int = 1) -> str:
    """The same with its unit, for sentences: 0.9012 is `90.1 %`."""
    return percent(share, digits) + PERCENT


def level(share: float) -> str:
    """A share that somebody chose, as percent with as few digits as it has: 0.01 is `1 %`, 0.005 `0.5 %`."""
    return f"{100 * share:.6g}{PERCENT}"


def points(change: float, digits: int = 1) -> str:
    """A change of a share in percentage points with its sign; a plain 0 where it rounds to that."""
    text = f"{100 * change:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", MINUS)


def interval(estimate: Estimate, scale: float = 100, digits: int = 1) -> str:
    """The confidence interval, in the unit of the value it goes with."""
    low, high = (f"{scale * x:.{digits}f}".replace("-", MINUS) for x in (estimate.low, estimate.high))
    return f"{low}{EN_DASH}{high}" if MINUS not in low + high else f"{low} to {high}"


def count(number: int) -> str:
    """With thousands separated."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """`1 round`, `3 rounds`."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def large(number: float) -> str:
    """To three digits with a word for the rest, for sentences: 1,234,567 is `1.23 million`."""
    for size, noun in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{significant(number / size)} {noun}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """`4.9 s`, `12 min 30 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def times(cost: float) -> str:
    """A cost relative to the full model."""
    return significant(cost, 3)


def saving(cost: float) -> str:
    """What a relative cost saves, in words."""
    if cost >= 1:
        return "no saving" if round(cost, 2) == 1 else f"{percents(cost - 1, 0)} more than the full model alone"
    return f"{percents(1 - cost, 0)} less than the full model alone"


def spec(step: dict[str, Any], kind: str) -> str:
    """A plugin's YAML form in one line, its name first: `prune (heads=0.5, neurons=0.5)`."""
    rest = settings({key: value for key, value in step.items() if key != kind})
    label = str(step.get(kind, "?"))
    return f"{label} ({rest})" if rest else label


def settings(values: dict[str, Any]) -> str:
    """Settings in one line: `heads=0.5, neurons=0.5`."""
    return ", ".join(f"{key}={_value(value)}" for key, value in values.items())


def changed(step: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults; sections keep only what differs inside them."""
    kept: dict[str, Any] = {}
    for key, value in step.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            value = changed(value, defaults[key])
            if value:
                kept[key] = value
        elif key not in defaults or value != defaults[key]:
            kept[key] = value
    return kept


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + settings(value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def loss_in_words(risk: str) -> str:
    """What the certificate counts as a loss, said of an answer."""
    if risk == "regret":
        return "wrong where the full model would have been right"
    return "different from what the full model would have answered"


def headline(findings: Findings) -> Child:
    """What is served, in one sentence."""
    stages, expected = findings.plan.stages, findings.plan.expected
    first = element("strong", name(stages[0].model.name))
    cost = f"expected cost per request: {times(expected['cost'])} of the full model's ({saving(expected['cost'])})."
    if len(stages) > 1:
        told: list[Child] = [first, " answers first and"]
        for stage, share in zip(stages[1:], passed_on(findings), strict=True):
            told += [f" passes {percents(share)} on to ", element("strong", name(stage.model.name)), ", which"]
        return [*told[:-1], f"; {cost}"]
    if findings.certificate is not None:
        return [first, f" answers every request alone; {cost}"]
    return ["The full model, ", first, ", answers every request alone."]


def passed_on(findings: Findings) -> list[float]:
    """Shares of all requests that each stage but the last is expected to pass on."""
    default = findings.plan.default
    return [findings.plan.expected["escalation_rate"], *(default.middle_escalation_rates if default else [])]


def why(findings: Findings) -> str:
    """Why just that is served, in one sentence."""
    candidates = [v for v in findings.variants if v.servable and v.against_full is not None]
    if not candidates:
        return "There are no compressed variants to choose from."
    if findings.promise.first is not None:
        return f"The configuration asks for it: select.first is {findings.promise.first}."
    asked = f"at most {level(findings.promise.alpha)} {findings.promise.risk}"
    among = f"of {counted(len(candidates), 'compressed variant')}"
    if findings.certificate is None:
        least = level(findings.promise.min_saving)
        return f"Why: none {among} both keeps the promise asked for ({asked}) and saves {least} or more."
    return f"Why: {among}, it is the cheapest way found to keep the promise asked for ({asked})."


def promise(findings: Findings) -> str:
    """What is certified, in one sentence."""
    certificate = findings.certificate
    if certificate is None:
        return "There is no certificate, and none is needed: nothing but the full model answers."
    return (
        f"Certified: at most {level(certificate.alpha)} of all answers are {loss_in_words(certificate.risk)}, "
        f"with {level(1 - certificate.delta)} confidence."
    )


def evidence(findings: Findings) -> str:
    """What the certificate rests on, in one sentence; empty without one."""
    c = findings.certificate
    if c is None:
        return ""
    were = "was" if c.losses == 1 else "were"
    return (
        f"Of {count(c.calibration_rows)} calibration rows, seen by no training and no choice, {count(c.losses)} {were} "
        f"given an answer that is {loss_in_words(c.risk)}: {percents(c.losses / c.calibration_rows, 2)}, with an exact "
        f"upper bound of {percents(c.upper_bound, 2)} at {level(1 - c.delta)} confidence (p = {c.p_value:.2g})."
    )


def baseline(findings: Findings) -> tuple[str, bool]:
    """What the comparison with the linear baseline says, and whether it speaks for the full model."""
    verdict = findings.baseline_verdict[:1].upper() + findings.baseline_verdict[1:] + "."
    better = findings.linear.difference.value > 0
    if findings.linear.distinguishable and better:
        return verdict, True
    balanced = {v.name: v.test.balanced_accuracy for v in findings.variants}
    if balanced[FULL].low > balanced[LINEAR].high:
        where = "Accuracy does not call for the full model; where every class counts the same, it is better."
        return f"{verdict} {where}", True
    how = "better" if findings.linear.distinguishable else "as well"
    costs = [times(a.cost) for a in findings.alternatives if a.kind == "linear"]
    at = f" at {costs[0]} of the full model's cost" if costs else ""
    return (
        f"{verdict} On this data tf-idf with logistic regression does the job {how}{at}: "
        "consider using that, and no transformer at all."
    ), False


def hardware(found: dict[str, Any]) -> str:
    """The fingerprint of a machine in words."""
    gpus = found.get("gpus") or []
    kinds = ", ".join(f"{gpus.count(gpu)} {TIMES} {gpu}" for gpu in dict.fromkeys(gpus))
    text = f"{found.get('cpu', 'unknown CPU')} ({found.get('cpus', '?')} CPUs, {found.get('machine', '?')})"
    return f"{text} with {kinds}" if kinds else f"{text}, no GPU"


def moment(iso: str) -> str:
    """An ISO timestamp to the minute: `2026-01-31 09:30`."""
    return iso[:16].replace("T", " ")
