"""Stage `select`: choose on the selection split, certify on the calibration split, write the plan."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lspm_ray.artifact import Artifact, ArtifactStore, Draft, hardware
from lspm_ray.compression.recipe import FULL
from lspm_ray.config import Config
from lspm_ray.corpus.shards import max_characters, read_split
from lspm_ray.errors import CertificateError, ConfigError
from lspm_ray.evaluation.calibration import Calibrator, CalibratorKind, fit_calibrator, probabilities
from lspm_ray.evaluation.forgetting import Forgetting
from lspm_ray.evaluation.outputs import read_outputs
from lspm_ray.evaluation.reliability import Calibration, before_and_after
from lspm_ray.profiling.pareto import Constraints
from lspm_ray.profiling.profile import read_profile
from lspm_ray.profiling.table import Speed
from lspm_ray.progress import Report
from lspm_ray.selection.break_even import BreakEven, break_even
from lspm_ray.selection.conformal import ConformalConfig, LabelSets, coverage, fit_label_sets, stage_level
from lspm_ray.selection.options import (
    Option,
    Priced,
    Promise,
    Rows,
    broken_limits,
    choose,
    estimate,
    limits_of,
    triples,
    worth_a_third,
)
from lspm_ray.selection.plan import (
    CERTIFICATE_FILE,
    PLAN_FILE,
    Certificate,
    DisagreementBound,
    MiddleStage,
    ModelRef,
    Plan,
    PlanStage,
)
from lspm_ray.selection.points import DEFAULT_SHARE, Ints, Wanted, answered_by, certify, check_rows, curve, tied_path
from lspm_ray.selection.risk import Certified, RiskKind, cost_of_stages, upper_bound
from lspm_ray.selection.scorer import SCORER_FILE, Scorer, digest_of_state, dump_states, load_state, stage_name
from lspm_ray.tasks import Task
from lspm_ray.validators import Check, Training, Validator
from lspm_ray.validators.contract import part

Level = Annotated[float, Field(gt=0, lt=1)]

STAGE = "select"
CURVE_FILE = "curve.json"
OPTIONS_FILE = "options.json"
BREAK_EVEN_FILE = "break_even.json"
FORGETTING_FILE = "forgetting.json"
CALIBRATION_FILE = "calibration.json"
DISAGREEMENT_DELTA = 0.005
"""Chance that `Certificate.disagreement` is too small. Only its logarithm counts: a larger one would gain little."""
_TRAINING_ROWS = 20_000
"""Training rows that validators learn from, evenly spaced: enough for what familiarity looks at."""


class PerClass(Config):
    """What is promised about the rows of each true class.

    Attributes:
        alpha: largest share of a class's rows whose answer may be a loss.
        without: classes that nothing is promised about, as those with too few rows.
    """

    alpha: Level
    without: list[str] = Field(default_factory=list)


class SelectConfig(Config):
    """What is promised, and what is allowed.

    Attributes:
        alpha: largest share of all answers that may be worse than the full model's.
        points: further risk levels, certified along with `alpha` for whoever wants to serve stricter or cheaper answers
            for a while; one that these rows cannot certify is left out.
        delta: chance that the certificate promises too much, at any point or about any class.
        per_class: a promise about each class, beside that about all rows; None for none.
        risk: `regret`: accepted, wrong, and full would have been right; `disagreement`: accepted and not full's answer.
        validator: scores the answers; `{validator: NAME, ...}` or just the name.
        checks: refuse answers whatever their score, `{check: NAME, ...}` each; those are always escalated.
        calibrator: makes probabilities mean what they say: `temperature`, `vector` or `isotonic`.
        conformal: answers carry a set of labels with this coverage; None for no sets.
        grid_size: thresholds that are tried.
        min_saving: share of the full model's cost that must be saved for a compressed variant to be used at all.
        max_stages: models of a cascade at most.
        min_gain_of_third: share of the cost of the best plan with fewer models that a third one must save: it is one
            more deployment to run, and one more model in memory.
        constraints: limits on accuracy, on what any class may lose, latency and memory.
        first: force this variant to answer first; None chooses the cheapest.
    """

    alpha: float = Field(0.01, gt=0, lt=1)
    points: list[Level] = Field(default_factory=lambda: [0.005, 0.02])
    delta: float = Field(0.05, gt=0, lt=1)
    per_class: PerClass | None = None
    risk: Literal["regret", "disagreement"] = "regret"
    validator: dict[str, Any] = Field(default_factory=lambda: {"validator": "margin"})
    checks: list[dict[str, Any]] = Field(default_factory=list)
    calibrator: CalibratorKind = "temperature"
    conformal: ConformalConfig | None = None
    grid_size: int = Field(200, ge=2)
    min_saving: float = Field(0.1, ge=0, lt=1)
    max_stages: Literal[2, 3] = 3
    min_gain_of_third: float = Field(0.1, ge=0, lt=1)
    constraints: Constraints = Constraints()
    first: str | None = None

    def make_validator(self) -> Validator:
        """The validator."""
        return Validator.make(self.validator)

    def wanted(self, labels: Sequence[str]) -> Wanted:
        """What is to be certified.

        Raises:
            ConfigError: `per_class.without` names no class.
        """
        per_class = {}
        if self.per_class is not None:
            for name in self.per_class.without:
                if name not in labels:
                    raise ConfigError("no such class", field="select.per_class.without", value=name, valid=labels)
            kept = [index for index, name in enumerate(labels) if name not in self.per_class.without]
            per_class = dict.fromkeys(kept, self.per_class.alpha)
        return Wanted(self.alpha, tuple(self.points), self.delta, per_class)

    def make_checks(self) -> list[Check]:
        """The checks."""
        return [Check.make(spec) for spec in self.checks]

    @property
    def reads_texts(self) -> bool:
        """Whether the texts themselves are looked at."""
        return any(judge.reads_texts for judge in (self.make_validator(), *self.make_checks()))

    @field_validator("validator", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        try:
            return Validator.make(value).spec()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("checks", mode="before")
    @classmethod
    def _known_checks(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        try:
            made = [Check.make(spec) for spec in value]
            for check in made:
                if check.needs is not None:
                    check.needs.check("check", check.name)
            return [check.spec() for check in made]
        except ConfigError as error:
            raise ValueError(str(error)) from None


def check_feasible(config: SelectConfig, class_rows: Sequence[int], labels: Sequence[str]) -> None:
    """Refuse a promise that these calibration rows can never back, before anything expensive runs.

    Args:
        config: what is promised.
        class_rows: calibration rows of each class.
        labels: names of the classes.

    Raises:
        CertificateError: says how many rows are needed.
    """
    check_rows(sum(class_rows), class_rows, config.wanted(labels), labels)


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
        An artifact with plan.json, options.json, break_even.json, forgetting.json and calibration.json;
        certificate.json and curve.json unless the full model serves alone; scorer.safetensors where a validator or
        check has learnt something.

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
        decision = _Decision(config, task, models, profile, outputs, data, report)
        plan, certificate = decision.decide()
        _write(draft, PLAN_FILE, plan.model_dump(mode="json"))
        _write(draft, OPTIONS_FILE, [option.model_dump(mode="json") for option in decision.options])
        _write(draft, BREAK_EVEN_FILE, [entry.model_dump(mode="json") for entry in decision.break_even()])
        _write(draft, FORGETTING_FILE, decision.forgetting(plan).model_dump(mode="json"))
        _write(draft, CALIBRATION_FILE, [entry.model_dump(mode="json") for entry in decision.calibrations(plan)])
        if decision.certified is not None:
            _write(draft, CURVE_FILE, decision.certified.model_dump(mode="json"))
        if certificate is not None:
            _write(draft, CERTIFICATE_FILE, certificate.model_dump(mode="json"))
            judged = [certificate.first.name, *(stage.model.name for stage in certificate.middle)]
            if (learnt := dump_states([decision.scorer(name) for name in judged])) is not None:
                (draft.path / SCORER_FILE).write_bytes(learnt)
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


def read_break_even(artifact: Artifact) -> list[BreakEven]:
    """When each variant pays, as a plan's artifact has it."""
    return [BreakEven.parse(raw) for raw in artifact.read_json(BREAK_EVEN_FILE)]


def read_forgetting(artifact: Artifact) -> Forgetting:
    """What classes lose, as a plan's artifact has it."""
    return Forgetting.parse(artifact.read_json(FORGETTING_FILE))


def certified_scorers(artifact: Artifact, plan: Plan, certificate: Certificate) -> list[Scorer]:
    """The scorers that a certificate is about, of the first stage and those in the middle, with what they have learnt.

    Raises:
        CertificateError: what they have learnt is missing, or not what the certificate was issued for.
    """
    learnt = artifact.read_bytes(SCORER_FILE) if SCORER_FILE in artifact.manifest.files else None
    state = load_state(learnt, certificate.scorer_digest)
    validator, checks = Validator.make(certificate.validator), [Check.make(spec) for spec in certificate.checks]
    fitted = [(certificate.temperature, certificate.calibrator)]
    fitted += [(stage.temperature, stage.calibrator) for stage in certificate.middle]
    return [
        Scorer(plan.labels, validator, checks, temperature, calibrator, part(state, stage_name(stage)))
        for stage, (temperature, calibrator) in enumerate(fitted)
    ]


class _Decision:
    def __init__(
        self,
        config: SelectConfig,
        task: Task,
        models: Mapping[str, Artifact],
        profile: Artifact,
        outputs: Mapping[str, Artifact],
        data: Artifact,
        report: Report,
    ) -> None:
        self.config, self.task, self.models = config, task, models
        self.measured, self.table = profile, read_profile(profile)
        self.outputs, self.data, self.report = outputs, data, report
        self.options: list[Option] = []
        self.certified: Certified | None = None
        self._inputs: dict[str, tuple[list[Any], list[str] | None]] = {}
        self._scorers: dict[str, Scorer] = {}

    def decide(self) -> tuple[Plan, Certificate | None]:
        config = self.config
        counts = np.bincount(self._rows([FULL], "calibration").labels, minlength=len(self.table.labels))
        check_feasible(config, counts.tolist(), self.table.labels)
        self.options = estimate_options(
            config,
            {name: self.table[name] for name in self.models},
            self._selection,
            self.scorer,
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
                found = self._selection([name])
                alone[name] = found.changes(np.zeros(len(found.labels), dtype=np.int64), labels, bound)
        if plan.default is None:
            return Forgetting(bound=bound, alone=alone, plan=[])
        names = [stage.model.name for stage in plan.stages]
        names = names if len(names) > 1 else [*names, FULL]
        found, scorers = self._selection(names), self.scorers(names)
        by = answered_by(found.all_scores(scorers), limits_of(plan.default, len(scorers)))
        return Forgetting(bound=bound, alone=alone, plan=found.changes(by, labels, bound))

    def calibrations(self, plan: Plan) -> list[Calibration]:
        """What calibration does to the probabilities of each model of the plan, on test rows."""
        found = []
        for stage in plan.stages:
            test = self._rows([stage.model.name], "test")
            fine = np.isfinite(test.first).all(axis=1)
            found.append(
                before_and_after(
                    stage.model.name, test.first[fine], test.labels[fine], stage.temperature, stage.calibrator
                )
            )
        return found

    def scorers(self, names: Sequence[str]) -> list[Scorer]:
        """Of every model of a cascade but the last."""
        return [self.scorer(name) for name in names[:-1]]

    def scorer(self, name: str) -> Scorer:
        """How far the answers of a variant are trusted, learnt on the selection rows, wherever it stands."""
        if name not in self._scorers:
            config = self.config
            self._scorers[name] = self._selection([name]).fit_scorer(
                config.make_validator(),
                config.make_checks(),
                config.calibrator,
                config.risk,
                self.table.labels,
                lambda: self._training,
            )
        return self._scorers[name]

    def _certify(self, chosen: Option, reasons: dict[str, str]) -> tuple[Plan, Certificate | None]:
        config, first = self.config, chosen.first
        names = chosen.names if chosen.last is not None else [first, FULL]
        selection, calibration = self._rows(names, "selection"), self._rows(names, "calibration")
        scorers = self.scorers(names)
        selection_scores, scores = selection.all_scores(scorers), calibration.all_scores(scorers)
        path, checked = tied_path(selection_scores, config.grid_size, chosen.tie), bool(scorers[0].checks)
        walked = calibration.walk(config.risk, scores, path, last_is_full=names[-1] == FULL, checked=checked)
        wanted = config.wanted(self.table.labels)
        found = certify(walked, wanted, self.table.labels)
        point = found.default
        self.certified = curve(walked, found, wanted)
        if point is None:
            reasons[first] = f"no threshold keeps {config.risk} below {config.alpha:.2%} on the calibration rows"
            return self._full_alone(reasons), None
        alone = point.threshold is None
        used = [self.table[name] for name in (names[:1] if alone else names)]
        cost = cost_of_stages([model.cost for model in used], self._validator_cost, point.shares)
        by = answered_by(selection_scores, limits_of(point, len(scores)))
        # The certified threshold is not the estimated one: what was to serve alone may need a second model now.
        if broken := broken_limits(used, selection, by, config.constraints, self.table.labels):
            how = "alone" if alone else f"before {' and '.join(names[1:])}"
            reasons[first] = f"certified {how}, but {'; '.join(broken)}"
            return self._full_alone(reasons), None
        if cost > 1 - config.min_saving and config.first is None:
            reasons[first] = f"certified, but would cost {cost:.2f} of full: saves less than {config.min_saving:.0%}"
            return self._full_alone(reasons), None
        certificate = Certificate(
            delta=config.delta,
            risk=config.risk,
            points=found.points,
            multiplicity=found.multiplicity,
            left_out=found.left_out,
            first=self._ref(first),
            middle=[
                MiddleStage(model=self._ref(name), temperature=scorer.temperature, calibrator=scorer.calibrator)
                for name, scorer in zip(names[1:-1], scorers[1:], strict=True)
            ],
            tie=chosen.tie,
            last=None if alone else self._ref(names[-1]),
            full=self._ref(FULL),
            validator=config.validator,
            temperature=scorers[0].temperature,
            calibrator=scorers[0].calibrator,
            checks=config.checks,
            scorer_digest=digest_of_state(dump_states(scorers)),
            grid_size=config.grid_size,
            calibration_rows=walked.rows,
            outputs={name: _ref(name, self.outputs[name]) for name in (*names, FULL)},
            data=_ref("data", self.data),
            profile=_ref("profile", self.measured),
            hardware=hardware(),
            disagreement=disagreement_bound(calibration, answered_by(scores, limits_of(point, len(scores))), len(path))
            if config.risk == "regret"
            else None,
        )
        return self._plan(certificate, names, cost, reasons), certificate

    def _plan(self, certificate: Certificate, names: Sequence[str], cost: float, reasons: dict[str, str]) -> Plan:
        point = certificate.default
        thresholds = [None] if point.threshold is None else [*point.thresholds, None]
        stages = [self._stage(name, threshold) for name, threshold in zip(names, thresholds, strict=False)]
        test, scorers = self._rows(names, "test"), self.scorers(names)
        by = answered_by(test.all_scores(scorers), limits_of(point, len(scorers)))
        expected = {
            "escalation_rate": certificate.escalation_rate,
            "cost": cost,
            "validator_cost": self._validator_cost,
            **came_true(test, by, self.config.risk),
        }
        return self._make(stages, certificate, expected, reasons)

    def _full_alone(self, reasons: dict[str, str]) -> Plan:
        """The plan that needs no certificate.

        Raises:
            ConfigError: the full model breaks a limit, so nothing may be served.
        """
        selection = self._rows([FULL], "selection")
        everything = np.zeros(len(selection.labels), dtype=np.int64)
        limits, labels = self.config.constraints, self.table.labels
        if broken := broken_limits([self.table[FULL]], selection, everything, limits, labels):
            others = [f"{name}: {reason}" for name, reason in reasons.items()]
            raise ConfigError(
                f"nothing may be served. {'; '.join([f'full: {reason}' for reason in broken] + others)}",
                field="select.constraints",
                value=self.config.constraints.model_dump(exclude_none=True),
                hint="Loosen a limit, or add smaller variants under compress.variants",
            )
        accuracy = self._rows([FULL], "test").full_accuracy
        expected = {"escalation_rate": 0.0, "cost": 1.0, "test_accuracy": accuracy, "test_full_accuracy": accuracy}
        return self._make([self._stage(FULL, None)], None, expected, reasons)

    def _make(
        self,
        stages: list[PlanStage],
        certificate: Certificate | None,
        expected: dict[str, float],
        reasons: dict[str, str],
    ) -> Plan:
        if self.config.conformal is not None:
            stages = [self._with_label_sets(stage, len(stages), self.config.conformal) for stage in stages]
            names = [stage.model.name for stage in stages]
            expected = expected | label_sets_came_true(stages, self._rows(names, "test"), self.scorers(names))
        return Plan(
            labels=self.table.labels,
            task=self.task.spec(),
            max_characters=max_characters(self.data),
            validator=self.config.validator,
            checks=self.config.checks if certificate else [],
            stages=stages,
            points=certificate.points if certificate else [],
            certificate_id=certificate.id if certificate else None,
            expected=expected,
            reasons=reasons,
        )

    def _stage(self, name: str, threshold: float | None) -> PlanStage:
        profile = self.table[name]
        temperature, calibrator = self._calibration(name)
        latency = profile.speed.p50_ms if profile.speed else 0.0
        return PlanStage(
            model=self._ref(name),
            temperature=temperature,
            calibrator=calibrator,
            threshold=threshold,
            batch_1_latency_ms=latency,
            cost=profile.cost,
            rows_per_s=profile.speed.best_rows_per_s if profile.speed else None,
        )

    def _with_label_sets(self, stage: PlanStage, stages: int, config: ConformalConfig) -> PlanStage:
        calibration = self._rows([stage.model.name], "calibration")
        level = stage_level(config.coverage, stages)
        found = label_sets(stage, calibration.first, calibration.labels, config, level)
        return stage.model_copy(update={"label_sets": found})

    def _calibration(self, name: str) -> tuple[float, Calibrator | None]:
        rows = self._selection([name])
        fine = np.isfinite(rows.first).all(axis=1)
        return fit_calibrator(self.config.calibrator, rows.first[fine], rows.labels[fine])

    def _ref(self, name: str) -> ModelRef:
        return _ref(name, self.models[name])

    def _rows(self, names: Sequence[str], split: str) -> Rows:
        if split not in self._inputs:
            texts = texts_of(self.data, split) if self.config.reads_texts else None
            self._inputs[split] = inputs_of(self.data, split), texts
        return rows([self.outputs[name] for name in (*names, FULL)], split, *self._inputs[split])

    def _selection(self, names: Sequence[str]) -> Rows:
        return self._rows(names, "selection")

    @cached_property
    def _training(self) -> Training:
        return training_of(self.data)

    @cached_property
    def _validator_cost(self) -> float:
        first = next((name for name in self.models if name != FULL), FULL)
        return validator_cost(self.scorer(first), self._selection([first]), self.table[FULL].speed)


def came_true(test: Rows, by: Ints, risk: RiskKind) -> dict[str, float]:
    """What the test rows say of a plan whose stage `by` answers each; for the record, no part of the promise."""
    return {
        "test_accuracy": test.accuracy(by),
        "test_full_accuracy": test.full_accuracy,
        "test_balanced_accuracy": test.balanced_accuracy(by),
        "test_full_balanced_accuracy": test.full_balanced_accuracy,
        "test_escalation_rate": float((by > 0).mean()),
        "test_risk": test.risk(risk, by),
    }


def label_sets_came_true(stages: Sequence[PlanStage], test: Rows, scorers: Sequence[Scorer]) -> dict[str, float]:
    """Coverage and mean size of the sets of the answers that a plan gives to the test rows.

    Args:
        stages: of the plan.
        test: outputs of these stages.
        scorers: of every stage but the last.
    """
    by = np.zeros(len(test.labels), dtype=np.int64)
    limits = [stage.threshold for stage in stages if stage.threshold is not None]
    if limits:
        by = answered_by(test.all_scores(scorers), limits)
    members = np.zeros(test.first.shape, dtype=bool)
    for number, (stage, logits) in enumerate(zip(stages, test.stages, strict=False)):
        some = by == number
        if stage.label_sets is not None and some.any():
            found = probabilities(logits[some], stage.temperature, stage.calibrator)
            members[some] = stage.label_sets.members(found)
    covered, size = coverage(members, test.labels)
    return {"test_label_set_coverage": covered, "test_label_set_size": size}


def label_sets(
    stage: PlanStage, logits: NDArray[np.float32], labels: NDArray[np.int64], config: ConformalConfig, level: float
) -> LabelSets:
    """The label sets of a stage, from its calibration rows whose logits are finite: others it does not answer."""
    fine = np.isfinite(logits).all(axis=1)
    found = probabilities(logits[fine], stage.temperature, stage.calibrator)
    return fit_label_sets(config, found, labels[fine], level)


def estimate_options(
    config: SelectConfig,
    models: Mapping[str, Priced],
    rows_of: Callable[[Sequence[str]], Rows],
    scorer_of: Callable[[str], Scorer],
    validator_cost: float,
    report: Report,
    labels: Sequence[str],
) -> list[Option]:
    """What each pair of models would give, and some with a third in between: see `triples`.

    In a pair any model but full may answer first, then full, or any that costs less than full and more than the first.

    Args:
        config: what is promised.
        models: by name, full among them.
        rows_of: names of the models, in the order in which they are asked -> their outputs on the selection split.
        scorer_of: name of a model -> what was learnt about it there.
        validator_cost: see `validator_cost`.
        report: progress.
        labels: names of the classes.
    """

    def estimated(names: Sequence[str]) -> Option:
        report(f"select: estimating {' before '.join(names)}")
        found = rows_of(names)
        promise = _promise(config, found, validator_cost, labels)
        return estimate([models[name] for name in names], found, [scorer_of(name) for name in names[:-1]], promise)

    cost = {name: model.cost for name, model in models.items()}
    firsts = [name for name in models if name != FULL and config.first in (None, name)]
    lasts = [name for name in models if name == FULL or cost[name] < cost[FULL]]
    pairs = [estimated([first, last]) for first in firsts for last in lasts if last == FULL or cost[first] < cost[last]]
    if config.max_stages < 3:
        return pairs
    gain, best = config.min_gain_of_third, min((pair.cost for pair in pairs if not pair.rejected), default=1.0)
    thirds = [names for names in triples(pairs, models, validator_cost, gain) if config.first in (None, names[0])]
    return [*pairs, *(worth_a_third(estimated(names), best, gain) for names in thirds)]


def _promise(config: SelectConfig, found: Rows, validator_cost: float, labels: Sequence[str]) -> Promise:
    """What is asked for, as far as these selection rows can tell: they may be too few to certify it."""
    wanted = config.wanted(labels)
    delta = wanted.delta * (DEFAULT_SHARE if len(wanted.alphas) > 1 else 1)
    counts = np.bincount(found.labels, minlength=len(labels)).tolist()
    return Promise(
        risk=config.risk,
        alpha=max(config.alpha, _reachable(len(found.labels), delta)),
        per_class={
            index: max(alpha, _reachable(counts[index], delta))
            for index, alpha in wanted.per_class.items()
            if counts[index]
        },
        delta=delta,
        grid_size=config.grid_size,
        validator_cost=validator_cost,
        constraints=config.constraints,
        labels=list(labels),
    )


def validator_cost(scorer: Scorer, sample: Rows, full: Speed | None) -> float:
    """Seconds of calibrator, validator and checks per row, measured on a sample, as a share of the full model's.

    It is taken to be the same for every stage: what is judged are as many probabilities, of the same texts.
    """
    started = time.perf_counter()
    sample.scores(scorer)
    seconds = (time.perf_counter() - started) / len(sample.labels)
    return seconds * full.best_rows_per_s if full else 0.0


def rows(outputs: Sequence[Artifact], split: str, inputs: list[Any], texts: list[str] | None = None) -> Rows:
    """Outputs of the models of a cascade and of the full one on one split, checked to be about the same rows.

    Args:
        outputs: of the models in the order in which they are asked, then of the full model.
        split: which.
        inputs: token ids of each row.
        texts: of each row, where they are read.

    Raises:
        CertificateError: they are not.
    """
    read = [read_outputs(artifact, split) for artifact in outputs]
    if any(ids != read[0][0] for ids, _, _ in read):
        raise CertificateError("outputs of the models are not about the same rows", field=split)
    *stages, full = (logits for _, _, logits in read)
    return Rows(read[0][1], stages, full, inputs, texts)


def disagreement_bound(
    calibration: Rows, by: Ints, thresholds: int, delta: float = DISAGREEMENT_DELTA
) -> DisagreementBound:
    """How often answers may differ from full's, with confidence 1 - `delta`; see `DisagreementBound`.

    Args:
        calibration: the rows that the threshold was chosen on.
        by: which stage answers each at that threshold, [rows].
        thresholds: how many it was chosen from.
        delta: chance that the bound is too small.
    """
    n = len(calibration.labels)
    losses = round(calibration.risk("disagreement", by) * n)
    level = upper_bound(losses, n, delta / thresholds)
    return DisagreementBound(losses=losses, rows=n, thresholds=thresholds, delta=delta, level=level)


def inputs_of(data: Artifact, split: str) -> list[Any]:
    """Token ids of each row of a split."""
    table = read_split(data, split, ["input_ids"])
    return [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]


def texts_of(data: Artifact, split: str) -> list[str]:
    """Text of each row of a split."""
    texts: list[str] = read_split(data, split, ["text"])["text"].to_pylist()
    return texts


def training_of(data: Artifact) -> Training:
    """At most 20,000 training rows, evenly spaced."""
    table = read_split(data, "train", ["input_ids", "label"])
    chosen = np.unique(np.linspace(0, table.num_rows - 1, min(table.num_rows, _TRAINING_ROWS)).astype(np.int64))
    table = table.take(chosen)
    inputs = [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_numpy()]
    return Training(inputs, table["label"].to_numpy())


def _ref(name: str, artifact: Artifact) -> ModelRef:
    return ModelRef(name=name, uri=artifact.uri, digest=artifact.digest)


def _reachable(n: int, delta: float) -> float:
    """An alpha that n rows can certify with a few losses among them, so that estimates are not all-or-nothing."""
    return upper_bound(min(n, 2), n, delta)


def _write(draft: Draft, name: str, value: Any) -> None:
    (draft.path / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
