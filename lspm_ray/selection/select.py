"""Stage `select`: choose on the selection split, certify on the calibration split, write the plan."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, hardware, open_artifact, open_beside
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.shards import max_characters, read_split
from lspm_ray.errors import CertificateError, ConfigError
from lspm_ray.evaluation.calibration import fit_temperature
from lspm_ray.evaluation.forgetting import Forgetting
from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.profiling.pareto import Constraints
from lspm_ray.profiling.profile import read_profile
from lspm_ray.profiling.table import ProfileTable, Speed
from lspm_ray.progress import Report
from lspm_ray.selection.break_even import BreakEven, break_even
from lspm_ray.selection.options import Option, Priced, Promise, Rows, broken_limits, choose, estimate
from lspm_ray.selection.plan import (
    CERTIFICATE_FILE,
    PLAN_FILE,
    Certificate,
    DisagreementBound,
    ModelRef,
    Plan,
    PlanStage,
)
from lspm_ray.selection.risk import (
    ACCEPT_ALL,
    Certified,
    cascade_cost,
    minimum_rows,
    threshold_grid,
    upper_bound,
)
from lspm_ray.tasks import Task
from lspm_ray.validators import Validator

STAGE = "select"
CURVE_FILE = "curve.json"
OPTIONS_FILE = "options.json"
BREAK_EVEN_FILE = "break_even.json"
FORGETTING_FILE = "forgetting.json"
DISAGREEMENT_DELTA = 0.005
"""Chance that `Certificate.disagreement` is too small. Only its logarithm counts: a larger one would gain little."""


class SelectConfig(Config):
    """What is promised, and what is allowed.

    Attributes:
        alpha: largest share of all answers that may be worse than the full model's.
        delta: chance that the certificate promises too much.
        risk: `regret`: accepted, wrong, and full would have been right; `disagreement`: accepted and not full's answer.
        validator: scores the answers; `{validator: NAME, ...}` or just the name.
        grid_size: thresholds that are tried.
        min_saving: share of the full model's cost that must be saved for a compressed variant to be used at all.
        constraints: limits on accuracy, on what any class may lose, latency and memory.
        first: force this variant to answer first; None chooses the cheapest.
    """

    alpha: float = Field(0.01, gt=0, lt=1)
    delta: float = Field(0.05, gt=0, lt=1)
    risk: Literal["regret", "disagreement"] = "regret"
    validator: dict[str, Any] = Field(default_factory=lambda: {"validator": "max_probability"})
    grid_size: int = Field(200, ge=2)
    min_saving: float = Field(0.1, ge=0, lt=1)
    constraints: Constraints = Constraints()
    first: str | None = None

    def make_validator(self) -> Validator:
        """The validator."""
        return Validator.make(self.validator)

    @field_validator("validator", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        try:
            return Validator.make(value).spec()
        except ConfigError as error:
            raise ValueError(str(error)) from None


def check_feasible(config: SelectConfig, calibration_rows: int) -> None:
    """Refuse a promise that this many calibration rows can never back, before anything expensive runs.

    Raises:
        CertificateError: says how many rows are needed.
    """
    needed = minimum_rows(config.alpha, config.delta)
    if calibration_rows < needed:
        raise CertificateError(
            f"alpha = {config.alpha:g} at delta = {config.delta:g} needs at least {needed} calibration rows, "
            f"there are {calibration_rows}",
            field="select.alpha",
            hint="Give more data, a larger share to data.splits.calibration, or a larger alpha",
        )


def select(
    config: SelectConfig,
    task: Task,
    models: Mapping[str, Artifact],
    profile: Artifact,
    outputs: Mapping[str, Artifact],
    data: Artifact,
    store: ArtifactStore,
    report: Report,
) -> Artifact:
    """Decide what to serve.

    Returns:
        An artifact with plan.json, options.json, break_even.json and forgetting.json; certificate.json and curve.json
        unless the full model serves alone.

    Raises:
        CertificateError: too few calibration rows.
        ConfigError: `first` names no variant, or no plan keeps the constraints.
    """
    if config.first is not None and config.first not in models:
        raise ConfigError("no such variant", field="select.first", value=config.first, valid=sorted(models))
    parents = {"profile": profile.digest, "data": data.digest}
    parents |= {f"outputs.{name}": artifact.digest for name, artifact in outputs.items()}
    what = {"select": config.model_dump(mode="json"), "task": task.spec()}

    def build(draft: Draft) -> None:
        decision = _Decision(config, task, models, read_profile(profile), outputs, data, report)
        plan, certificate = decision.decide()
        _write(draft, PLAN_FILE, plan.model_dump(mode="json"))
        _write(draft, OPTIONS_FILE, [option.model_dump(mode="json") for option in decision.options])
        _write(draft, BREAK_EVEN_FILE, [entry.model_dump(mode="json") for entry in decision.break_even()])
        _write(draft, FORGETTING_FILE, decision.forgetting(plan).model_dump(mode="json"))
        if decision.certified is not None:
            _write(draft, CURVE_FILE, decision.certified.model_dump(mode="json"))
        if certificate is not None:
            _write(draft, CERTIFICATE_FILE, certificate.model_dump(mode="json"))
        draft.summary = {"plan": [s.model.name for s in plan.stages], "expected": plan.expected}
        draft.summary["reasons"] = plan.reasons

    return store.make(STAGE, what, parents, build)


def read_plan(artifact: Artifact) -> tuple[Plan, Certificate | None]:
    """The plan and its certificate (None when the full model serves alone).

    Raises:
        CertificateError: the certificate is not the one that the plan names.
    """
    plan = Plan.parse(artifact.read_json(PLAN_FILE))
    if CERTIFICATE_FILE not in artifact.manifest.files:
        return plan, None
    certificate = Certificate.parse(artifact.read_json(CERTIFICATE_FILE))
    if plan.certificate_id != certificate.id:
        raise CertificateError("the plan names another certificate", field=PLAN_FILE, value=plan.certificate_id)
    return plan, certificate


class _Decision:
    def __init__(
        self,
        config: SelectConfig,
        task: Task,
        models: Mapping[str, Artifact],
        table: ProfileTable,
        outputs: Mapping[str, Artifact],
        data: Artifact,
        report: Report,
    ) -> None:
        self.config, self.task, self.models, self.table = config, task, models, table
        self.outputs, self.data, self.report = outputs, data, report
        self.validator = config.make_validator()
        self.options: list[Option] = []
        self.certified: Certified | None = None
        self._inputs: dict[str, list[Any]] = {}

    def decide(self) -> tuple[Plan, Certificate | None]:
        config = self.config
        check_feasible(config, len(self._rows(FULL, FULL, "calibration").labels))
        self.options = estimate_pairs(
            config,
            {name: self.table[name] for name in self.models},
            self._selection,
            self._validator_cost,
            self.report,
            self.table.labels,
        )
        chosen, reasons = choose(self.options, config.min_saving if config.first is None else -math.inf)
        if chosen is None or config.first == FULL:
            return self._full_alone(reasons), None
        return self._certify(chosen, reasons)

    def break_even(self) -> list[BreakEven]:
        """When each variant would pay."""
        full = self.table[FULL].speed
        validator_s = self._validator_cost / full.best_rows_per_s if full else 0.0
        return break_even(self.table, self.options, validator_s, self.config.min_saving)

    def forgetting(self, plan: Plan) -> Forgetting:
        """What each variant alone and the plan's answers lose of each class on the selection rows."""
        labels, bound = self.table.labels, self.config.constraints.max_recall_drop
        alone = {}
        for name in self.models:
            if name != FULL:
                found = self._selection(name, FULL)
                alone[name] = found.changes(np.ones(len(found.labels), dtype=bool), labels, bound)
        first, last = plan.stages[0], plan.stages[-1]
        if first.model.name == FULL:
            return Forgetting(bound=bound, alone=alone, plan=[])
        found = self._selection(first.model.name, last.model.name)
        limit = ACCEPT_ALL if first.threshold is None else first.threshold
        accepted = found.scores(self.validator, first.temperature) >= limit
        return Forgetting(bound=bound, alone=alone, plan=found.changes(accepted, labels, bound))

    def _certify(self, chosen: Option, reasons: dict[str, str]) -> tuple[Plan, Certificate | None]:
        config, first = self.config, chosen.first
        last = chosen.last or FULL
        selection, calibration = self._rows(first, last, "selection"), self._rows(first, last, "calibration")
        grid = threshold_grid(selection.scores(self.validator, chosen.temperature), config.grid_size)
        scores = calibration.scores(self.validator, chosen.temperature)
        self.certified = calibration.certify(config.risk, scores, grid, config.alpha, config.delta)
        point = self.certified.point
        if point is None:
            reasons[first] = f"no threshold keeps {config.risk} below {config.alpha:.2%} on the calibration rows"
            return self._full_alone(reasons), None
        alone = point.threshold == ACCEPT_ALL
        e, c = point.escalation_rate, self.table[first].cost
        cost = c if alone else cascade_cost(c, self._validator_cost, e, self.table[last].cost)
        used = [self.table[first]] if alone else [self.table[first], self.table[last]]
        accepted = selection.scores(self.validator, chosen.temperature) >= point.threshold
        # The certified threshold is not the estimated one: what was to serve alone may need a second model now.
        if broken := broken_limits(used, selection, accepted, config.constraints, self.table.labels):
            reasons[first] = f"certified {'alone' if alone else 'before ' + last}, but {'; '.join(broken)}"
            return self._full_alone(reasons), None
        if cost > 1 - config.min_saving and config.first is None:
            reasons[first] = f"certified, but would cost {cost:.2f} of full: saves less than {config.min_saving:.0%}"
            return self._full_alone(reasons), None
        certificate = Certificate(
            alpha=config.alpha,
            delta=config.delta,
            risk=config.risk,
            first=self._ref(first),
            last=None if alone else self._ref(last),
            full=self._ref(FULL),
            validator=config.validator,
            temperature=chosen.temperature,
            threshold=None if alone else point.threshold,
            calibration_rows=self.certified.n,
            losses=point.losses,
            p_value=point.p_value,
            upper_bound=point.bound,
            escalation_rate=e,
            outputs={name: _ref(name, self.outputs[name]) for name in (first, last, FULL)},
            data=_ref("data", self.data),
            hardware=hardware(),
            how_to_check="lspm_ray.selection.select.recheck(uri of this directory) recomputes every number",
            disagreement=disagreement_bound(calibration, scores >= point.threshold, len(grid))
            if config.risk == "regret"
            else None,
        )
        return self._plan(certificate, cost, reasons), certificate

    def _plan(self, certificate: Certificate, cost: float, reasons: dict[str, str]) -> Plan:
        first, last = certificate.first.name, certificate.last
        stages = [self._stage(first, certificate.temperature, certificate.threshold)]
        if last is not None:
            stages.append(self._stage(last.name, self._temperature(last.name), None))
        test = self._rows(first, last.name if last else FULL, "test")
        accepted = test.scores(self.validator, certificate.temperature) >= _limit(certificate)
        expected = {
            "escalation_rate": certificate.escalation_rate,
            "cost": cost,
            "test_accuracy": test.accuracy(accepted),
            "test_full_accuracy": test.full_accuracy,
            "test_balanced_accuracy": test.balanced_accuracy(accepted),
            "test_full_balanced_accuracy": test.full_balanced_accuracy,
            "test_escalation_rate": float(1 - accepted.mean()),
            "test_risk": test.risk(self.config.risk, accepted),
        }
        return self._make(stages, certificate.id, expected, reasons)

    def _full_alone(self, reasons: dict[str, str]) -> Plan:
        """The plan that needs no certificate.

        Raises:
            ConfigError: the full model breaks a limit, so nothing may be served.
        """
        selection = self._rows(FULL, FULL, "selection")
        everything = np.ones(len(selection.labels), dtype=bool)
        limits, labels = self.config.constraints, self.table.labels
        if broken := broken_limits([self.table[FULL]], selection, everything, limits, labels):
            others = [f"{name}: {reason}" for name, reason in reasons.items()]
            raise ConfigError(
                f"nothing may be served. {'; '.join([f'full: {reason}' for reason in broken] + others)}",
                field="select.constraints",
                value=self.config.constraints.model_dump(exclude_none=True),
                hint="Loosen a limit, or add smaller variants under compress.variants",
            )
        accuracy = self._rows(FULL, FULL, "test").full_accuracy
        expected = {"escalation_rate": 0.0, "cost": 1.0, "test_accuracy": accuracy, "test_full_accuracy": accuracy}
        return self._make([self._stage(FULL, self._temperature(FULL), None)], None, expected, reasons)

    def _make(
        self, stages: list[PlanStage], certificate_id: str | None, expected: dict[str, float], reasons: dict[str, str]
    ) -> Plan:
        return Plan(
            labels=self.table.labels,
            task=self.task.spec(),
            max_characters=max_characters(self.data),
            validator=self.config.validator,
            stages=stages,
            certificate_id=certificate_id,
            expected=expected,
            reasons=reasons,
        )

    def _stage(self, name: str, temperature: float, threshold: float | None) -> PlanStage:
        profile = self.table[name]
        latency = profile.speed.p50_ms if profile.speed else 0.0
        return PlanStage(
            model=self._ref(name),
            temperature=temperature,
            threshold=threshold,
            batch_1_latency_ms=latency,
            cost=profile.cost,
        )

    def _temperature(self, name: str) -> float:
        rows = self._rows(name, FULL, "selection")
        return fit_temperature(rows.first, rows.labels)

    def _ref(self, name: str) -> ModelRef:
        return _ref(name, self.models[name])

    def _rows(self, first: str, last: str, split: str) -> Rows:
        if split not in self._inputs:
            self._inputs[split] = inputs_of(self.data, split)
        return rows([self.outputs[name] for name in (first, last, FULL)], split, self._inputs[split])

    def _selection(self, first: str, last: str) -> Rows:
        return self._rows(first, last, "selection")

    @cached_property
    def _validator_cost(self) -> float:
        return validator_cost(self.validator, self._rows(FULL, FULL, "selection"), self.table[FULL].speed)


def estimate_pairs(
    config: SelectConfig,
    models: Mapping[str, Priced],
    rows_of: Callable[[str, str], Rows],
    validator_cost: float,
    report: Report,
    labels: Sequence[str],
) -> list[Option]:
    """What each pair of models would give: any but full may answer first, then full, or any model that costs less than
    full and more than the first.

    Args:
        config: what is promised.
        models: by name, full among them.
        rows_of: names of the first and the last model -> their outputs on the selection split.
        validator_cost: see `validator_cost`.
        report: progress.
        labels: names of the classes.
    """
    validator, cost = config.make_validator(), {name: model.cost for name, model in models.items()}
    firsts = [name for name in models if name != FULL and config.first in (None, name)]
    lasts = [name for name in models if name == FULL or cost[name] < cost[FULL]]
    options = []
    for first in firsts:
        for last in lasts:
            if last != FULL and cost[first] >= cost[last]:
                continue
            report(f"select: estimating {first} before {last}")
            found = rows_of(first, last)
            promise = Promise(
                risk=config.risk,
                # The selection split may be too small to certify this alpha; as an estimate a wider one will do.
                alpha=max(config.alpha, _reachable(len(found.labels), config.delta)),
                delta=config.delta,
                grid_size=config.grid_size,
                validator_cost=validator_cost,
                constraints=config.constraints,
                labels=list(labels),
            )
            options.append(estimate(models[first], models[last], found, validator, promise))
    return options


def validator_cost(validator: Validator, sample: Rows, full: Speed | None) -> float:
    """Seconds of the validator per row, measured on a sample, as a share of the full model's."""
    started = time.perf_counter()
    sample.scores(validator, 1.0)
    seconds = (time.perf_counter() - started) / len(sample.labels)
    return seconds * full.best_rows_per_s if full else 0.0


def rows(outputs: Sequence[Artifact], split: str, inputs: list[Any]) -> Rows:
    """Outputs of the first, the last and the full model on one split, checked to be about the same rows.

    Raises:
        CertificateError: they are not.
    """
    read = [read_outputs(artifact, split) for artifact in outputs]
    if any(ids != read[0][0] for ids, _, _ in read):
        raise CertificateError("outputs of the models are not about the same rows", field=split)
    first, last, full = (logits for _, _, logits in read)
    return Rows(read[0][1], first, last, full, inputs)


def disagreement_bound(
    calibration: Rows, accepted: NDArray[np.bool_], thresholds: int, delta: float = DISAGREEMENT_DELTA
) -> DisagreementBound:
    """How often answers may differ from full's, with confidence 1 - `delta`; see `DisagreementBound`.

    Args:
        calibration: the rows that the threshold was chosen on.
        accepted: bool [rows], at that threshold.
        thresholds: how many it was chosen from.
        delta: chance that the bound is too small.
    """
    n = len(calibration.labels)
    losses = round(calibration.risk("disagreement", accepted) * n)
    level = upper_bound(losses, n, delta / thresholds)
    return DisagreementBound(losses=losses, rows=n, thresholds=thresholds, delta=delta, level=level)


def inputs_of(data: Artifact, split: str) -> list[Any]:
    """Token ids of each row of a split."""
    table = read_split(data, split, ["input_ids"])
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]


def _limit(certificate: Certificate) -> float:
    return ACCEPT_ALL if certificate.threshold is None else certificate.threshold


def _ref(name: str, artifact: Artifact) -> ModelRef:
    return ModelRef(name=name, uri=artifact.uri, digest=artifact.digest)


def _reachable(n: int, delta: float) -> float:
    """An alpha that n rows can certify with a few losses among them, so that estimates are not all-or-nothing."""
    return upper_bound(min(n, 2), n, delta)


def _write(draft: Draft, name: str, value: Any) -> None:
    (draft.path / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def recheck(uri: str) -> list[str]:
    """Recompute a certificate from the stored outputs it names.

    Returns:
        What does not agree, in plain words; empty when everything does.

    Raises:
        ArtifactError: a file it rests on is missing or changed.
    """
    artifact = open_artifact(uri)
    _, certificate = read_plan(artifact)
    if certificate is None:
        return []
    problems = []
    last = certificate.last or certificate.full
    named = [certificate.data, certificate.first, last, certificate.full, *certificate.outputs.values()]
    for ref in named:
        found = open_beside(ref.uri, artifact)
        found.verify()
        if found.digest != ref.digest:
            problems.append(f"{ref.name}: {ref.uri} has digest {found.digest}, the certificate says {ref.digest}")
    data = open_beside(certificate.data.uri, artifact)
    outputs = [
        open_beside(certificate.outputs[ref.name].uri, artifact) for ref in (certificate.first, last, certificate.full)
    ]
    calibration = rows(outputs, "calibration", inputs_of(data, "calibration"))
    ids = [set(read_split(data, split, ["id"])["id"].to_pylist()) for split in ("train", "calibration")]
    if ids[0] & ids[1]:
        problems.append("calibration rows occur among the training rows")
    scores = calibration.scores(Validator.make(certificate.validator), certificate.temperature)
    grid = np.array([_limit(certificate)])
    found_risk = calibration.certify(certificate.risk, scores, grid, certificate.alpha, certificate.delta)
    lost, n = found_risk.curve[0].losses, found_risk.n
    if (lost, n) != (certificate.losses, certificate.calibration_rows):
        problems.append(
            f"found {lost} losses in {n} rows, the certificate says "
            f"{certificate.losses} in {certificate.calibration_rows}"
        )
    if found_risk.point is None:
        problems.append("the threshold does not hold the promised risk")
    return problems
