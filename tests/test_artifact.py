import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.artifact import (
    MANIFEST,
    ArtifactStore,
    filesystem,
    join,
    name_of,
    open_artifact,
    split_uri,
    write_atomic,
)
from lspm_ray.errors import ArtifactError, ConfigError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def make(store: ArtifactStore, text: str = "hello", config: dict | None = None):
    def build(draft):
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text(text)
        (draft.path / "b.json").write_text(json.dumps({"x": 1}))
        draft.summary["rows"] = 3

    return store.make("stage", config or {"k": 1}, {"parent": "abc"}, build)


def test_round_trip(store):
    artifact = make(store)
    again = open_artifact(artifact.uri)
    again.verify()
    assert again.manifest.summary == {"rows": 3}
    assert again.manifest.parents == {"parent": "abc"}
    assert again.read_json("b.json") == {"x": 1}
    assert set(again.manifest.files) == {"sub/a.txt", "b.json"}
    assert (again.local() / "sub" / "a.txt").read_text() == "hello"


def test_unchanged_inputs_are_not_built_again(store):
    first = make(store)
    second = store.make("stage", {"k": 1}, {"parent": "abc"}, lambda draft: pytest.fail("was built again"))
    assert second == first


@pytest.mark.parametrize(
    ("config", "parents"), [({"k": 2}, {"parent": "abc"}), ({"k": 1}, {"parent": "abd"}), ({"k": 1}, {})]
)
def test_key_depends_on_config_and_parents(store, config, parents):
    assert store.key("stage", config, parents) != store.key("stage", {"k": 1}, {"parent": "abc"})


def test_digest_is_of_the_content_alone(store, tmp_path):
    other = ArtifactStore(str(tmp_path / "elsewhere"))
    assert make(store).digest == make(other, config={"k": 99}).digest
    assert make(store, text="changed", config={"k": 3}).digest != make(store).digest


def test_failed_build_leaves_nothing(store):
    def build(draft):
        (draft.path / "half").write_text("x")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.make("stage", {}, {}, build)
    assert store.find("stage", store.key("stage", {}, {})) is None
    assert store.artifacts() == []


def test_flipped_byte_is_refused_and_named(store):
    artifact = make(store)
    file = Path(artifact.uri) / "sub" / "a.txt"
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    expected = artifact.manifest.files["sub/a.txt"].sha256
    with pytest.raises(ArtifactError, match=rf"sub/a\.txt.*expected sha256 {expected}"):
        artifact.local()
    with pytest.raises(ArtifactError, match=r"sub/a\.txt"):
        artifact.read_bytes("sub/a.txt")


@pytest.mark.parametrize("name", ["extra.bin", "sub/evil.py"])
def test_added_file_is_refused(store, name):
    artifact = make(store)
    (Path(artifact.uri) / name).write_text("x")
    with pytest.raises(ArtifactError, match=rf"{name}.*not in the manifest"):
        artifact.verify()


def test_missing_file_is_refused(store):
    artifact = make(store)
    (Path(artifact.uri) / "b.json").unlink()
    with pytest.raises(ArtifactError, match=r"b\.json.*missing"):
        artifact.verify()


def test_links_are_refused(store, tmp_path):
    artifact = make(store)
    (tmp_path / "secret").write_text("s")
    (Path(artifact.uri) / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="links are not allowed"):
        artifact.verify()


def test_changed_manifest_is_refused(store):
    artifact = make(store)
    file = Path(artifact.uri) / MANIFEST
    raw = json.loads(file.read_text())
    raw["digest"] = "0" * 64
    file.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match="own digest"):
        open_artifact(artifact.uri).verify()


def test_torn_manifest_is_an_error_not_a_crash(store):
    artifact = make(store)
    file = Path(artifact.uri) / MANIFEST
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ArtifactError, match="damaged manifest"):
        open_artifact(artifact.uri)


def test_unknown_artifact_lists_those_there_are(store):
    artifact = make(store)
    with pytest.raises(ArtifactError, match=Path(artifact.uri).name):
        store.get("stage-000000000000")


@pytest.mark.parametrize("relative", ["../x", "a/../../x", "/etc/passwd", "a\0b"])
def test_paths_cannot_leave_the_artifact(relative):
    with pytest.raises(ArtifactError):
        join("/store/a", relative)


@pytest.mark.parametrize("name", ["../evil", "A", "", "a/b", "a\0"])
def test_bad_stage_names_are_refused(store, name):
    with pytest.raises(ArtifactError):
        store.create(name, {}, {}).__enter__()


def test_unknown_scheme_lists_valid_ones():
    with pytest.raises(ConfigError, match="s3://"):
        ArtifactStore("nonsense://x/y")


@pytest.mark.parametrize("query", ["", "?region=eu-west-1&endpoint_override=http%3A%2F%2F127.0.0.1%3A9"])
def test_the_settings_of_a_uri_stay_at_its_end(query):
    root = f"s3://bucket/my runs{query}"
    uri = join(root, "prepare-12/d 50%/x.parquet")
    assert uri == f"s3://bucket/my runs/prepare-12/d%2050%25/x.parquet{query}"
    assert filesystem(f"{uri}{'' if query else '?region=eu-west-1'}")[1] == "bucket/my runs/prepare-12/d 50%/x.parquet"
    assert name_of(join(root, "prepare-12")) == name_of(f"s3://bucket/prepare-12/{query}") == "prepare-12"


def test_a_question_mark_in_a_pattern_is_no_setting():
    assert split_uri("s3://bucket/part-?.csv") == ("s3://bucket/part-?.csv", "")
    assert split_uri("part-?a=b.csv") == ("part-?a=b.csv", "")


def test_uri_root_works_like_a_path(tmp_path):
    artifact = make(ArtifactStore(f"file://{tmp_path}/store"))
    assert open_artifact(artifact.uri).digest == artifact.digest


def test_remote_store_downloads_once_and_verifies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import pyarrow.fs as pafs

    import lspm_ray.artifact as module

    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    (tmp_path / "bucket").mkdir()
    local = module.filesystem
    monkeypatch.setattr(module, "filesystem", lambda uri: (remote, uri[6:]) if uri.startswith("mem://") else local(uri))
    artifact = make(ArtifactStore("mem://bucket"))
    copy = artifact.local()
    assert copy.is_relative_to(tmp_path / "cache")
    assert (copy / "sub" / "a.txt").read_text() == "hello"
    (tmp_path / "bucket" / Path(artifact.uri).name / "b.json").unlink()
    assert artifact.local() == copy


def test_a_remote_store_takes_turns_as_it_is_told(tmp_path, monkeypatch):
    import pyarrow.fs as pafs

    import lspm_ray.artifact as module

    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr(module, "filesystem", lambda uri: (remote, uri[6:]))
    told = []

    @contextmanager
    def turn(name, on_wait):
        on_wait()
        told.append(name)
        yield
        told.append("over")

    store = ArtifactStore("mem://bucket", lambda: told.append("waited"), turn)
    made = store.make("stage", {}, {}, lambda draft: told.append("made"))
    assert told == ["waited", made.uri, "made", "over"]
    assert store.make("stage", {}, {}, lambda draft: told.append("made")).digest == made.digest
    assert told == ["waited", made.uri, "made", "over"]


@given(before=st.binary(max_size=50), after=st.binary(max_size=50))
def test_write_atomic_replaces(tmp_path_factory, before, after):
    file = tmp_path_factory.mktemp("atomic") / "f"
    write_atomic(file, before)
    write_atomic(file, after)
    assert file.read_bytes() == after
    assert [p.name for p in file.parent.iterdir()] == ["f"]


def test_killed_writer_leaves_no_artifact(tmp_path):
    code = f"""
import os, signal
from lspm_ray.artifact import ArtifactStore
def build(draft):
    (draft.path / "half").write_text("x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
ArtifactStore({str(tmp_path)!r}).make("stage", {{}}, {{}}, build)
"""
    result = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ)
    assert result.returncode == -signal.SIGKILL
    store = ArtifactStore(str(tmp_path))
    assert store.artifacts() == []
    assert store.make("stage", {}, {}, lambda d: (d.path / "whole").write_text("y")).read_bytes("whole") == b"y"


def test_only_one_process_works_on_a_store(store):
    assert not store.busy()
    with store.exclusive():
        assert store.busy()
        code = f"""
from lspm_ray.artifact import ArtifactStore
with ArtifactStore({store.root!r}).exclusive():
    pass
"""
        other = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert "another run is at work here" in other.stderr
    assert not store.busy()
    with store.exclusive():
        pass


def test_processes_that_want_the_same_artifact_take_turns(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lspm_ray.artifact import ArtifactStore\n"
        "def build(draft):\n"
        "    with Path(sys.argv[2]).open('a') as log: log.write('made\\n')\n"
        "    for part in range(20):\n"
        "        (draft.path / f'{part}.txt').write_text(str(part))\n"
        "        time.sleep(0.02)\n"
        "print(ArtifactStore(sys.argv[1]).make('thing', {}, {}, build).digest)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(digests) == 1 and (tmp_path / "log").read_text() == "made\n"
    ArtifactStore(str(tmp_path / "store")).artifacts()[0].verify()


def test_who_waits_for_a_turn_is_asked_to_say_so(tmp_path):
    waits = []
    with ArtifactStore(str(tmp_path)).turn("thing", "k"):
        waiting = ArtifactStore(str(tmp_path), on_wait=lambda: waits.append(1) or release.set())
        release = threading.Event()
        made = threading.Thread(target=lambda: waiting.make("thing", {}, {}, lambda draft: None))
        with ArtifactStore(str(tmp_path)).turn("thing", waiting.key("thing", {}, {})):
            made.start()
            assert release.wait(10)
        made.join(10)
    assert waits and waiting.artifacts()
