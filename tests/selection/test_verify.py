"""Sound artifacts pass; any number or word that was altered is found, even where all digests were made to fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load, save

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.config import digest_of
from lspm_ray.errors import UserError
from lspm_ray.selection.options import TIES
from lspm_ray.selection.plan import Certificate
from lspm_ray.selection.scorer import digest_of_state
from lspm_ray.selection.verify import verify
from tests.selection.test_select import World
from tests.selection.three_stages import ThreeStages

CONFIG = {"alpha": 0.02, "points": [0.03], "grid_size": 20, "per_class": {"alpha": 0.05}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def sound(world: World) -> Artifact:
    return world.select(**CONFIG)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> World:
    return ThreeStages(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def sound_three(longer: World) -> Artifact:
    artifact = longer.select(**CONFIG | {"conformal": {"coverage": 0.9}})
    assert len(artifact.read_json("plan.json")["stages"]) == 3
    return artifact


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]
    if isinstance(node, list) and node:
        return [leaf for index, value in enumerate(node) for leaf in leaves(value, (*path, index))]
    return [path]


def altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.99 if value else 0.001
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [0.5]
    return {"x": "y"} if isinstance(value, dict) else 0.5


def with_leaf(raw: Any, path: tuple[Any, ...]) -> Any:
    changed = json.loads(json.dumps(raw))
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = altered(node[path[-1]])
    return changed


def forged(world: World, sound: Artifact, plan: Any, certificate: Any, learnt: bytes | None = None) -> Artifact:
    """An artifact like the sound one whose digests fit the altered documents."""
    manifest = sound.manifest

    def build(draft: Any) -> None:
        for name in manifest.files:
            (draft.path / name).write_bytes(sound.read_bytes(name))
        (draft.path / "plan.json").write_text(json.dumps(plan))
        (draft.path / "certificate.json").write_text(json.dumps(certificate))
        if learnt is not None:
            (draft.path / "scorer.safetensors").write_bytes(learnt)
        draft.summary = manifest.summary

    with world.store.create("select", manifest.config, manifest.parents, "forged") as draft:
        build(draft)
    return world.store.get("select-forged")


def caught(artifact: Artifact) -> bool:
    try:
        return not verify(artifact).ok
    except UserError:
        return True


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"alpha": 0.02, "points": [0.01]},
        {"alpha": 0.2},
        {"alpha": 0.02, "points": [], "validator": "margin"},
        {"alpha": 0.05, "risk": "disagreement", "validator": "entropy"},
        {"alpha": 0.02, "min_saving": 0.99},
    ],
)
def test_what_selection_wrote_verifies(world: World, config: dict[str, Any]) -> None:
    verdict = verify(world.select(**config))
    assert [check for check in verdict.checks if not check.ok] == []
    assert verdict.ok and verdict.same_hardware


def test_every_altered_field_of_the_certificate_is_found(world: World, sound: Artifact) -> None:
    plan, certificate = sound.read_json("plan.json"), sound.read_json("certificate.json")
    assert not caught(forged(world, sound, plan, certificate))
    for path in leaves(certificate):
        changed = with_leaf(certificate, path)
        fitting = plan | {"certificate_id": digest_of(changed)[:16], "points": changed["points"]}
        assert caught(forged(world, sound, fitting, changed)), path


def test_every_altered_field_of_the_plan_is_found(world: World, sound: Artifact) -> None:
    plan, certificate = sound.read_json("plan.json"), sound.read_json("certificate.json")
    for path in leaves(plan):
        assert caught(forged(world, sound, with_leaf(plan, path), certificate)), path


def of_the_middle(document: Any) -> list[tuple[Any, ...]]:
    """What documents of two stages have not."""
    found = [path for path in leaves(document) if "mid" in "".join(map(str, path)) or path[:2] == ("stages", 1)]
    assert found
    return found


def test_every_altered_field_about_the_middle_is_found_in_the_certificate(longer: World, sound_three: Artifact) -> None:
    plan, certificate = sound_three.read_json("plan.json"), sound_three.read_json("certificate.json")
    assert not caught(forged(longer, sound_three, plan, certificate))
    for path in of_the_middle(certificate):
        changed = with_leaf(certificate, path)
        repeated = {"certificate_id": digest_of(changed)[:16], "points": changed["points"]}
        fitting = json.loads(json.dumps(plan | repeated))
        # What the plan repeats is altered with it: only what it rests on can tell.
        for stage, judged in zip(fitting["stages"], [changed, *changed["middle"]], strict=False):
            stage |= {"temperature": judged["temperature"], "calibrator": judged["calibrator"]}
        limits = [changed["points"][0]["threshold"], *changed["points"][0]["middle_thresholds"]]
        for stage, limit in zip(fitting["stages"], limits, strict=False):
            stage["threshold"] = limit
        assert caught(forged(longer, sound_three, fitting, changed)), path


def test_every_altered_field_about_the_middle_is_found_in_the_plan(longer: World, sound_three: Artifact) -> None:
    plan, certificate = sound_three.read_json("plan.json"), sound_three.read_json("certificate.json")
    for path in of_the_middle(plan):
        assert caught(forged(longer, sound_three, with_leaf(plan, path), certificate)), path


def test_another_tie_is_another_path(longer: World, sound_three: Artifact) -> None:
    plan, certificate = sound_three.read_json("plan.json"), sound_three.read_json("certificate.json")
    assert certificate["tie"] in TIES
    for tie in set(TIES) - {certificate["tie"]}:
        changed = certificate | {"tie": tie}
        fitting = plan | {"certificate_id": digest_of(changed)[:16]}
        wrong = [check.what for check in verify(forged(longer, sound_three, fitting, changed)).checks if not check.ok]
        assert "point 0.02: middle_thresholds" in wrong
    changed = certificate | {"tie": 1.99}
    fitting = plan | {"certificate_id": digest_of(changed)[:16]}
    wrong = [check.what for check in verify(forged(longer, sound_three, fitting, changed)).checks if not check.ok]
    assert "tie" in wrong


@pytest.mark.parametrize("stage", [0, 1])
def test_what_any_stage_has_learnt_is_learnt_again(longer: World, stage: int) -> None:
    sound = longer.select(**CONFIG | {"validator": "deferral"})
    plan, certificate = sound.read_json("plan.json"), sound.read_json("certificate.json")
    state = load(sound.read_bytes("scorer.safetensors"))
    state[f"stages.{stage}.validator.weights"] = state[f"stages.{stage}.validator.weights"] * 1.01
    certificate["scorer_digest"] = digest_of_state(save(state))
    plan["certificate_id"] = digest_of(certificate)[:16]
    made = forged(longer, sound, plan, certificate, save(state))
    wrong = [check.what for check in verify(made).checks if not check.ok]
    assert f"{['cheap', 'middle'][stage]}: what was learnt: validator.weights" in wrong


def test_a_smaller_promise_that_fits_everywhere_is_still_not_the_one_that_was_made(
    world: World, sound: Artifact
) -> None:
    """Threshold, plan and stage agree; only the outputs know that another step of the path was certified."""
    plan, certificate = sound.read_json("plan.json"), sound.read_json("certificate.json")
    for point in certificate["points"]:
        point["threshold"] -= 0.01
    plan["points"], plan["stages"][0]["threshold"] = certificate["points"], certificate["points"][0]["threshold"]
    plan["certificate_id"] = Certificate.parse(certificate).id
    wrong = [check.what for check in verify(forged(world, sound, plan, certificate)).checks if not check.ok]
    assert "point 0.02: threshold" in wrong


@pytest.mark.parametrize("what", ["outputs", "select", "data", "profile", "cheap"])
def test_a_flipped_byte_in_any_file_is_found(tmp_path: Path, what: str) -> None:
    world = World(tmp_path)
    artifact = world.select(**CONFIG)
    owner = {"outputs": world.outputs["cheap"], "select": artifact, "data": world.data, "profile": world.profile}
    directory = Path(owner.get(what, world.models["cheap"]).uri)
    for file in sorted(directory.rglob("*")):
        if file.is_file() and file.name != "manifest.json":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(bytes(data))
            assert caught(artifact), file
            data[len(data) // 2] ^= 1
            file.write_bytes(bytes(data))
    assert not caught(artifact)


def test_a_text_in_two_splits_is_found(tmp_path: Path) -> None:
    """Ids alone would not tell: they are made of the split's name here."""
    world = World(tmp_path)
    store = ArtifactStore(str(tmp_path))
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, target = (Path(world.data.uri) / split / "part-00000.parquet" for split in ("train", "calibration"))
    table, text = pq.read_table(target), pq.read_table(source)["text"][0].as_py()
    texts = pa.array([text, *table["text"].to_pylist()[1:]])
    leaky = table.set_column(table.schema.get_field_index("text"), "text", texts)
    with store.create("prepare", world.data.manifest.config, {}, "leaky") as draft:
        for name in world.data.manifest.files:
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_bytes(world.data.read_bytes(name))
        pq.write_table(leaky, draft.path / "calibration" / "part-00000.parquet")
        draft.summary = world.data.manifest.summary
    world.data = store.get("prepare-leaky")
    wrong = [check for check in verify(world.select(**CONFIG)).checks if not check.ok]
    assert [(check.what, check.found) for check in wrong] == [("texts in both train and calibration", 1)]
