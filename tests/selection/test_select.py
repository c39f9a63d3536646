"""The decision on synthetic outputs whose truth is known."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save
from sklearn.metrics import balanced_accuracy_score

from lspm_ray.artifact import ArtifactStore, hardware
from lspm_ray.corpus.shards import labels as label_names
from lspm_ray.corpus.shards import read_split
from lspm_ray.errors import CertificateError, ConfigError
from lspm_ray.evaluation.calibration import CALIBRATORS, softmax
from lspm_ray.evaluation.forgetting import Forgetting
from lspm_ray.evaluation.metrics import compare, evaluate
from lspm_ray.evaluation.outputs import EVALUATION_SPLITS, logits_array, read_outputs
from lspm_ray.evaluation.reliability import Calibration
from lspm_ray.profiling.table import ProfileTable, Speed, VariantProfile
from lspm_ray.selection.break_even import BreakEven
from lspm_ray.selection.risk import ACCEPT_ALL, upper_bound
from lspm_ray.selection.scorer import digest_of_state
from lspm_ray.selection.select import SelectConfig, check_feasible, inputs_of, read_plan, select
from lspm_ray.selection.verify import verify
from lspm_ray.tasks import Task
from lspm_ray.validators import Validator
from tests.toy_corpus import MAX_CHARACTERS, toy_corpus
from tests.toys import toy_model_artifact

ROWS = {"selection": 600, "calibration": 1500, "test": 600}
TASK = Task.make("text_classification")


def logits_for(labels, right, sure, seed):
    """Logits that are right with probability `right`; where wrong, they are unsure if `sure` is False."""
    random = np.random.default_rng(seed)
    hit = random.random(len(labels)) < right
    strength = np.where(hit | sure, random.uniform(2, 6, len(labels)), random.uniform(0, 0.8, len(labels)))
    sign = np.where(np.where(hit, labels, 1 - labels) == 1, 1.0, -1.0)
    return np.stack([-sign * strength / 2, sign * strength / 2], axis=1).astype(np.float32)


class World:
    """A store with a corpus, models, their outputs and a profile."""

    def __init__(self, root: Path, cheap_right=0.93, sure=False, cost=0.05, lucky=False):
        self.store = ArtifactStore(str(root))
        self.data = toy_corpus(self.store, ROWS)
        self.models = {
            "full": toy_model_artifact(self.store, "finetune"),
            "cheap": toy_model_artifact(self.store, "variant-a", "bag"),
            "middle": toy_model_artifact(self.store, "variant-b", "bag", seed=5),
        }
        quality = {"full": (0.97, False, 0), "cheap": (cheap_right, sure, 1), "middle": (0.97, False, 0)}
        self.lucky = lucky
        self.outputs = {name: self._outputs(name, *quality[name]) for name in self.models}
        costs = {"full": 1.0, "cheap": cost, "middle": 0.5}
        self.profile = self._profile(costs)

    def _outputs(self, name, right, sure, seed):
        def build(draft):
            for number, split in enumerate(EVALUATION_SPLITS):
                table = read_split(self.data, split, ["id", "label"])
                always = self.lucky and name == "cheap" and split == "selection"
                logits = logits_for(table["label"].to_numpy(), 1.0 if always else right, sure, [seed, number])
                if name == "middle":  # full's own answers, but for a few
                    other = np.random.default_rng([9, number]).random(len(logits)) < 0.004
                    logits = np.where(other[:, None], -logits, logits)
                columns = {"id": table["id"], "label": table["label"], "logits": logits_array(logits)}
                pq.write_table(pa.table(columns), draft.path / f"{split}.parquet")

        return self.store.make("outputs", {"name": name, "right": right, "sure": sure}, {}, build)

    def _profile(self, costs):
        names = label_names(self.data)
        quality = {n: {s: read_outputs(o, s)[1:] for s in EVALUATION_SPLITS} for n, o in self.outputs.items()}

        def row(name):
            selection, test = (
                evaluate(quality[name][s][1], quality[name][s][0], names, resamples=100) for s in ("selection", "test")
            )
            speed = Speed(
                p50_ms=10 * costs[name],
                p99_ms=20 * costs[name],
                rows_per_s={1: 100 / costs[name]},
                load_s=1,
                peak_memory_mb=300,
                size_mb=50,
                threads=1,
            )
            model = self.models[name]
            return VariantProfile(
                name=name,
                uri=model.uri,
                digest=model.digest,
                runtime="torch",
                precision="fp32",
                recipe=[],
                selection=selection,
                test=test,
                recall_change={},
                agreement=1.0,
                against_full=None,
                speed=speed,
                cost=costs[name],
            )

        right = quality["full"]["test"][1].argmax(1) == quality["full"]["test"][0]
        table = ProfileTable(
            variants=[row(name) for name in self.models],
            labels=names,
            encode_ms=0.1,
            linear=compare(right, right),
            baseline_verdict="",
            rounds=1,
            hardware=hardware(),
        )

        def build(draft):
            (draft.path / "profile.json").write_text(table.model_dump_json())

        return self.store.make("profile", {"costs": costs}, {n: o.digest for n, o in self.outputs.items()}, build)

    def select(self, **config):
        return select(
            SelectConfig.parse(config),
            TASK,
            self.models,
            self.profile,
            self.outputs,
            self.data,
            self.store,
            lambda _: None,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("store"))


def test_the_cheapest_certified_variant_answers_first(world):
    plan, certificate = read_plan(world.select(alpha=0.02))
    assert [stage.model.name for stage in plan.stages] == ["cheap", "middle"]
    assert (certificate.first.name, certificate.last.name, certificate.full.name) == ("cheap", "middle", "full")
    assert plan.certificate_id == certificate.id
    assert plan.stages[0].threshold == certificate.threshold
    assert certificate.upper_bound <= 0.02 and certificate.p_value <= 0.05
    assert plan.expected["cost"] == pytest.approx(0.05 + 0.5 * plan.expected["escalation_rate"], abs=0.01)
    assert plan.expected["test_risk"] < 0.03
    assert plan.reasons == {}


def margins(logits, temperature):
    """The default validator's scores."""
    ordered = np.sort(softmax(logits, temperature), axis=1)
    return ordered[:, -1] - ordered[:, -2]


def test_losses_of_the_last_variant_count_too(world):
    """Escalating to a model that is worse than full spends part of the same promise."""
    _, certificate = read_plan(world.select(alpha=0.02))
    splits = {name: read_outputs(world.outputs[name], "calibration") for name in ("cheap", "middle", "full")}
    labels = splits["full"][1]
    answer = {name: logits.argmax(1) for name, (_, _, logits) in splits.items()}
    scores = margins(splits["cheap"][2], certificate.temperature)
    given = np.where(scores >= certificate.threshold, answer["cheap"], answer["middle"])
    assert certificate.losses == int(((given != labels) & (answer["full"] == labels)).sum())
    # Of the served answers, the middle model's too, and wider than the bound at one threshold alone.
    bound = certificate.disagreement
    assert (bound.losses, bound.rows) == (int((given != answer["full"]).sum()), len(labels))
    assert bound.level > upper_bound(bound.losses, bound.rows, bound.delta) > bound.losses / bound.rows


def test_without_another_variant_full_has_the_last_word(tmp_path):
    world = World(tmp_path)
    for part in (world.models, world.outputs):
        del part["middle"]
    plan, certificate = read_plan(world.select(alpha=0.02))
    assert [stage.model.name for stage in plan.stages] == ["cheap", "full"]
    assert certificate.last == certificate.full
    assert plan.expected["cost"] == pytest.approx(0.05 + plan.expected["escalation_rate"], abs=0.01)


def test_further_points_are_certified_along_with_the_default(world):
    plan, certificate = read_plan(world.select(alpha=0.02, points=[0.01, 0.03, 0.0001]))
    assert plan.points == certificate.points
    assert [point.alpha for point in plan.points if point.default] == [0.02]
    assert plan.default.threshold == plan.stages[0].threshold
    rates = [point.escalation_rate for point in plan.points]
    assert rates == sorted(rates, reverse=True) and len(rates) >= 2
    assert "needs" in certificate.left_out["0.0001"]
    assert certificate.multiplicity == "bonferroni"  # `middle` answers what is escalated and errs itself


def test_what_is_promised_about_each_class_is_kept_at_every_point(world):
    _, certificate = read_plan(world.select(alpha=0.02, per_class={"alpha": 0.03}))
    for point in certificate.points:
        assert [bound.label for bound in point.classes] == label_names(world.data)
        assert all(bound.upper_bound <= 0.03 for bound in point.classes)
    with pytest.raises(ConfigError, match=r"select\.per_class\.without: no such class"):
        world.select(per_class={"alpha": 0.03, "without": ["nonsense"]})


def test_a_certificate_that_the_plan_does_not_name_is_refused(world, tmp_path):
    plan, certificate = read_plan(world.select(alpha=0.02))

    def build(draft):
        (draft.path / "plan.json").write_text(plan.model_dump_json())
        (draft.path / "certificate.json").write_text(certificate.model_copy(update={"delta": 0.5}).model_dump_json())

    artifact = ArtifactStore(str(tmp_path)).make("select", {}, {}, build)
    with pytest.raises(CertificateError, match="names another certificate"):
        read_plan(artifact)


def test_a_variant_that_is_sure_when_wrong_is_not_used(tmp_path):
    world = World(tmp_path, cheap_right=0.7, sure=True)
    plan, _ = read_plan(world.select(alpha=0.02))
    assert plan.stages[0].model.name != "cheap"
    assert "escalating 9" in plan.reasons["cheap"] or "no share of its answers" in plan.reasons["cheap"]


def test_full_serves_alone_when_nothing_pays(tmp_path):
    world = World(tmp_path, cheap_right=0.93, cost=0.99)
    plan, certificate = read_plan(world.select(alpha=0.02, min_saving=0.7))
    assert certificate is None and plan.certificate_id is None
    assert [stage.model.name for stage in plan.stages] == ["full"]
    assert all("saves less than 70%" in reason for reason in plan.reasons.values())


def test_a_lenient_alpha_lets_the_variant_serve_alone(world):
    plan, certificate = read_plan(world.select(alpha=0.2))
    assert [stage.model.name for stage in plan.stages] == ["cheap"]
    assert certificate.threshold is None and plan.stages[0].threshold is None
    assert plan.expected["cost"] == pytest.approx(0.05)


def test_constraints_reject_by_name(world):
    plan, _ = read_plan(world.select(alpha=0.02, constraints={"max_memory_mb": 400}))
    assert [stage.model.name for stage in plan.stages] == ["middle"]
    assert "peak memory is 600 MB, 400 MB are allowed" in plan.reasons["cheap"]


def test_a_limit_that_nothing_keeps_is_an_error(world):
    with pytest.raises(ConfigError, match=r"select\.constraints: nothing may be served\. full: peak memory is 300 MB"):
        world.select(alpha=0.02, constraints={"max_memory_mb": 100})


def test_what_was_to_serve_alone_keeps_the_limits_with_the_second_model_too(tmp_path):
    world = World(tmp_path, lucky=True)
    alone = json.loads(world.select(alpha=0.02).read_bytes("options.json"))
    assert next(option for option in alone if option["first"] == "cheap")["last"] is None
    plan, certificate = read_plan(world.select(alpha=0.02, constraints={"max_memory_mb": 400}))
    assert [stage.model.name for stage in plan.stages] == ["full"] and certificate is None
    assert plan.reasons["cheap"].startswith("certified before ")


def test_balanced_accuracy_of_the_plan_is_the_mean_recall(world):
    artifact = world.select(alpha=0.02)
    plan, certificate = read_plan(artifact)
    names = [certificate.first.name, (certificate.last or certificate.full).name]
    read = {name: read_outputs(world.outputs[name], "test") for name in {*names, "full"}}
    labels = read["full"][1]
    scores = margins(read[names[0]][2], certificate.temperature)
    accepted = scores >= (-np.inf if certificate.threshold is None else certificate.threshold)
    answers = np.where(accepted, *(read[name][2].argmax(1) for name in names))
    expected = plan.expected
    assert expected["test_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers))
    full = read["full"][2].argmax(1)
    assert expected["test_full_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, full))


def test_the_plan_cuts_texts_where_the_corpus_did(world):
    plan, _ = read_plan(world.select(alpha=0.02))
    assert plan.max_characters == MAX_CHARACTERS


def test_the_first_variant_can_be_forced(world):
    plan, _ = read_plan(world.select(alpha=0.02, first="middle"))
    assert plan.stages[0].model.name == "middle"
    with pytest.raises(ConfigError, match=r"select\.first.*nonsense.*valid: cheap, full, middle"):
        world.select(first="nonsense")


def test_disagreement_needs_no_labels_to_agree_with_regret(world):
    _, certificate = read_plan(world.select(alpha=0.05, risk="disagreement"))
    assert certificate.risk == "disagreement"


def wrong(artifact):
    """What verification finds."""
    return [check.what for check in verify(artifact).checks if not check.ok]


def forged(artifact, tmp_path, alter):
    """The artifact with altered files, whose digests fit."""

    def build(draft):
        for name in artifact.manifest.files:
            (draft.path / name).write_bytes(artifact.read_bytes(name))
        alter(draft.path)
        draft.summary = artifact.manifest.summary

    store = ArtifactStore(str(tmp_path / alter.__name__))
    return store.make("select", artifact.manifest.config, artifact.manifest.parents, build)


@pytest.mark.parametrize("validator", Validator.names())
def test_every_validator_certifies(world, validator):
    artifact = world.select(alpha=0.02, validator=validator)
    _, certificate = read_plan(artifact)
    assert wrong(artifact) == []
    if certificate is not None:
        learns = Validator.make(validator).learns
        assert (certificate.scorer_digest is not None) == learns == ("scorer.safetensors" in artifact.manifest.files)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_certifies(world, calibrator):
    artifact = world.select(alpha=0.02, calibrator=calibrator)
    plan, certificate = read_plan(artifact)
    assert wrong(artifact) == []
    assert plan.stages[0].calibrator == certificate.calibrator
    for stage in plan.stages:
        assert (stage.calibrator is None) == (calibrator == "temperature")
    found = [Calibration.parse(raw) for raw in json.loads(artifact.read_bytes("calibration.json"))]
    assert [entry.model for entry in found] == [stage.model.name for stage in plan.stages]
    assert found[0].after.adaptive_ece < found[0].before.adaptive_ece and found[0].after.rows == ROWS["test"]


def test_what_a_validator_learnt_is_what_is_checked_again(world, tmp_path):
    artifact = world.select(alpha=0.02, validator="deferral")
    plan, certificate = read_plan(artifact)

    def double(path):
        state = load((path / "scorer.safetensors").read_bytes())
        state["stages.0.validator.weights"] = state["stages.0.validator.weights"] * 2
        (path / "scorer.safetensors").write_bytes(save(state))

    assert wrong(artifact) == []
    assert "what validator and checks have learnt" in wrong(forged(artifact, tmp_path, double))

    def double_and_say_so(path):
        double(path)
        state = (path / "scorer.safetensors").read_bytes()
        raw = certificate.model_copy(update={"scorer_digest": digest_of_state(state)})
        (path / "certificate.json").write_text(raw.model_dump_json())
        (path / "plan.json").write_text(plan.model_copy(update={"certificate_id": raw.id}).model_dump_json())

    assert "cheap: what was learnt: validator.weights" in wrong(forged(artifact, tmp_path, double_and_say_so))


def test_refused_answers_count_as_escalated_and_never_serve_alone(world):
    """A lenient alpha accepts every answer that may be: the share of refused ones is escalated all the same."""
    lengths = [len(row) for row in inputs_of(world.data, "calibration")]
    shortest = int(np.quantile(lengths, 0.25))
    artifact = world.select(alpha=0.2, checks=[{"check": "length", "min_tokens": shortest}])
    plan, certificate = read_plan(artifact)
    assert len(plan.stages) == 2 and certificate.threshold == ACCEPT_ALL
    assert certificate.checks == plan.checks == [{"check": "length", "min_tokens": shortest, "max_tokens": None}]
    refused = np.array(lengths) < shortest
    assert 0 < certificate.escalation_rate == refused.mean()
    answers = {ref.name: read_outputs(world.outputs[ref.name], "calibration")[2].argmax(1) for ref in (
        certificate.first, certificate.last, certificate.full)}  # fmt: skip
    given = np.where(refused, answers[certificate.last.name], answers[certificate.first.name])
    labels = read_outputs(world.outputs["full"], "calibration")[1]
    assert certificate.losses == int(((given != labels) & (answers["full"] == labels)).sum())
    assert wrong(artifact) == []


def test_outputs_that_are_not_finite_count_as_escalated(tmp_path):
    world = World(tmp_path)

    def build(draft):
        for split in EVALUATION_SPLITS:
            ids, labels, logits = read_outputs(world.outputs["cheap"], split)
            logits = logits.copy()
            logits[::50] = np.nan
            columns = {"id": ids, "label": labels, "logits": logits_array(logits)}
            pq.write_table(pa.table(columns), draft.path / f"{split}.parquet")

    world.outputs["cheap"] = world.store.make("outputs", {"name": "broken"}, {}, build)
    plan, certificate = read_plan(world.select(alpha=0.2))
    assert plan.stages[0].model.name == "cheap" and certificate.escalation_rate == 1 / 50


@pytest.mark.parametrize("kind", ["split", "mondrian", "aps", "raps"])
def test_answers_carry_label_sets_of_the_stated_coverage(world, tmp_path, kind):
    artifact = world.select(alpha=0.02, conformal={"coverage": 0.9, "kind": kind})
    plan, _ = read_plan(artifact)
    assert [stage.label_sets.level for stage in plan.stages] == pytest.approx([0.95, 0.95])
    assert plan.expected["test_label_set_coverage"] > 0.9 - 0.03
    assert 1 <= plan.expected["test_label_set_size"] < 2
    assert wrong(artifact) == []

    first = plan.stages[0]
    limits = first.label_sets.model_copy(update={"limits": (0.5, 0.5)})
    stages = [first.model_copy(update={"label_sets": limits}), *plan.stages[1:]]

    def narrow(path):
        (path / "plan.json").write_text(plan.model_copy(update={"stages": stages}).model_dump_json())

    assert f"{first.model.name}: label sets, fitted again" in wrong(forged(artifact, tmp_path, narrow))


def test_a_model_alone_needs_no_share_of_the_coverage(world):
    plan, _ = read_plan(world.select(alpha=0.02, min_saving=0.99, conformal={"coverage": 0.9}))
    assert [stage.label_sets.level for stage in plan.stages] == pytest.approx([0.9])


def test_a_label_that_is_not_there_is_refused(world):
    with pytest.raises(ConfigError, match=r"escalate: no such label.*valid: no, yes"):
        world.select(checks=[{"check": "labels", "escalate": ["maybe"]}])
    with pytest.raises(ConfigError, match=r"unknown check.*valid: familiarity, known_tokens, labels, language, length"):
        SelectConfig.parse({"checks": ["gut_feeling"]})


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(CertificateError, match="needs at least 299 calibration rows, there are 298"):
        check_feasible(SelectConfig(), [200, 98], ["no", "yes"])
    check_feasible(SelectConfig(), [200, 99], ["no", "yes"])


def test_what_is_forgotten_is_kept_for_the_report(world):
    artifact = world.select(alpha=0.02)
    found = Forgetting.parse(json.loads(artifact.read_bytes("forgetting.json")))
    plan, certificate = read_plan(artifact)
    read = {name: read_outputs(world.outputs[name], "selection") for name in ("cheap", "middle", "full")}
    labels = read["full"][1]
    right = {name: logits.argmax(1) == labels for name, (_, _, logits) in read.items()}
    assert set(found.alone) == {"cheap", "middle"} and found.bound == 0.05
    lost = [int((right["full"] & ~right["cheap"] & (labels == k)).sum()) for k in (0, 1)]
    assert [change.lost for change in found.alone["cheap"]] == lost
    accepted = margins(read["cheap"][2], certificate.temperature) >= certificate.threshold
    given = np.where(accepted, right["cheap"], right[plan.stages[1].model.name])
    assert [change.lost for change in found.plan] == [
        int((right["full"] & ~given & (labels == k)).sum()) for k in (0, 1)
    ]
    assert sum(change.lost for change in found.plan) < sum(lost)


def test_where_full_serves_alone_no_answers_of_a_plan_are_judged(tmp_path):
    artifact = World(tmp_path, cheap_right=0.93, cost=0.99).select(alpha=0.02, min_saving=0.7)
    assert json.loads(artifact.read_bytes("forgetting.json"))["plan"] == []


def test_when_variants_pay_is_kept_for_the_report(world):
    found = [BreakEven.parse(raw) for raw in json.loads(world.select(alpha=0.02).read_bytes("break_even.json"))]
    assert [(entry.first, entry.batch_size) for entry in found] == [("cheap", 1), ("middle", 1)]
    options = json.loads(world.select(alpha=0.02).read_bytes("options.json"))
    with_full = next(o for o in options if o["first"] == "cheap" and o["last"] == "full")
    assert found[0].needed == with_full["escalation_rate"]
    assert all(entry.pays for entry in found)


def test_unknown_validator_lists_valid_ones():
    with pytest.raises(
        ConfigError, match=r"unknown validator.*valid: combined, deferral, energy, entropy, familiarity"
    ):
        SelectConfig.parse({"validator": "gut_feeling"})


def test_curve_is_kept_for_the_report(world):
    artifact = world.select(alpha=0.02)
    curve = json.loads(artifact.read_bytes("curve.json"))["curve"]
    rates = [point["escalation_rate"] for point in curve]
    assert rates == sorted(rates, reverse=True)
