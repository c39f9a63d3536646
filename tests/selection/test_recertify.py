"""A plan on fresh labelled rows, answered by toy models of which the first is the full one under another name."""

import csv
from pathlib import Path

import pytest

from lspm_ray.artifact import Artifact
from lspm_ray.corpus.config import DataConfig
from lspm_ray.corpus.shards import read_split
from lspm_ray.errors import CertificateError, ConfigError, DataError
from lspm_ray.selection.recertify import history, latest, recertify
from lspm_ray.selection.select import read_plan
from lspm_ray.selection.verify import verify
from lspm_ray.serving.bundle import load_bundle
from tests.selection.test_select import World
from tests.toy_corpus import toy_rows
from tests.toys import LABELS, toy_model_artifact


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "store")
    world.models["cheap"] = toy_model_artifact(world.store, "variant-c")
    world.profile = world._profile({"full": 1.0, "cheap": 0.04, "middle": 0.5})
    for part in (world.models, world.outputs):
        del part["middle"]
    return world


def labelled(path: Path, rows: list[tuple[str, str]]) -> DataConfig:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    return DataConfig.parse({"source": str(path), "text": "text", "label": "label"})


def fresh(count: int, seed: int = 77) -> list[tuple[str, str]]:
    texts, labels = toy_rows(count, seed)
    return [(text, LABELS[label]) for text, label in zip(texts, labels, strict=True)]


def certify(world: World, present: Artifact, config: DataConfig, alpha: float | None = None) -> Artifact:
    return recertify(present, config, world.store, lambda _: None, alpha)


def test_fresh_rows_give_a_new_version_that_verifies_and_is_the_latest(world: World, tmp_path: Path) -> None:
    first = world.select(alpha=0.02, points=[])
    rows = fresh(300)
    train = read_split(world.data, "train", ["text"])["text"][0].as_py()
    extra = [(train, LABELS[0]), rows[0], ("no label", "")]
    second = certify(world, first, labelled(tmp_path / "a.csv", rows + extra))
    assert second.manifest.summary["dropped"] == {
        "occurs in train": 1,
        "occurs in the file already": 1,
        "without text or label": 1,
    }
    plan, certificate = read_plan(second)
    assert (certificate.calibration_rows, certificate.default.losses) == (300, 0)
    assert certificate.threshold is not None  # the plan has two models, whatever these rows would allow
    assert plan.stages[0].threshold == certificate.threshold and plan.points == certificate.points
    assert load_bundle(second.uri).certificate == certificate
    assert [check for check in verify(second).checks if not check.ok] == []
    third = certify(world, second, labelled(tmp_path / "b.csv", fresh(200, 78)), alpha=0.05)
    versions = history(third)
    assert [version.rows for version in versions] == [1500, 300, 200]
    assert [version.id for version in versions] == [read_plan(each)[1].id for each in (first, second, third)]
    assert [version.artifact for version in versions] == [each.digest for each in (first, second, third)]
    assert verify(third).ok
    assert latest(first, world.store).uri == third.uri == latest(third, world.store).uri


def test_changed_fresh_rows_are_found(world: World, tmp_path: Path) -> None:
    made = certify(world, world.select(alpha=0.02, points=[]), labelled(tmp_path / "a.csv", fresh(300)))
    _, certificate = read_plan(made)
    file = Path(certificate.fresh_outputs["cheap"].uri) / "calibration.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    wrong = [check.what for check in verify(made).checks if not check.ok]
    assert len(wrong) == 1 and wrong[0].endswith(": files")


def test_what_cannot_be_certified_leaves_everything_as_it_was(world: World, tmp_path: Path) -> None:
    first = world.select(alpha=0.02, points=[])
    with pytest.raises(CertificateError, match="needs at least 149 calibration rows, there are 100"):
        certify(world, first, labelled(tmp_path / "few.csv", fresh(100)))
    with pytest.raises(DataError, match="--labels: no such file"):
        certify(
            world, first, DataConfig.parse({"source": str(tmp_path / "none.csv"), "text": "text", "label": "label"})
        )
    with pytest.raises(DataError, match="the plan has no such label"):
        certify(world, first, labelled(tmp_path / "odd.csv", [("a text", "odd")]))
    for split in ("selection", "calibration"):
        texts = read_split(world.data, split, ["text"])["text"].to_pylist()
        with pytest.raises(DataError, match=rf"no row is left: .*occurs in {split}"):
            certify(world, first, labelled(tmp_path / "old.csv", [(text, LABELS[0]) for text in texts[:5]]))
    for alpha in (0.0, 1.5):
        with pytest.raises(ConfigError, match="alpha"):
            certify(world, first, labelled(tmp_path / "some.csv", fresh(300)), alpha=alpha)
    assert latest(first, world.store).uri == first.uri


def test_a_promise_that_fresh_rows_do_not_keep_is_not_made(tmp_path: Path) -> None:
    """Here the first model is another one, and as sure of its answers as can be."""
    world = World(tmp_path / "store")
    with pytest.raises(CertificateError, match="no threshold keeps the promise on the fresh rows"):
        certify(world, world.select(alpha=0.02, points=[]), labelled(tmp_path / "a.csv", fresh(300)))
