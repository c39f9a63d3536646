import json
from pathlib import Path

import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ArtifactError, ModelError
from lspm_ray.models.base import base
from lspm_ray.models.directory import load_model, load_tokenizer, read_labels
from lspm_ray.models.source import ModelConfig, copy, fingerprint, locate, locate_tokenizer
from tests.toys import LABELS, toy_model_artifact, toy_model_dir


@pytest.fixture
def directory(tmp_path) -> Path:
    return toy_model_dir(tmp_path / "model")


def edit(directory: Path, **changes) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_local_directory(directory):
    assert locate(ModelConfig(name=str(directory))) == directory


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_model_of_another_run(tmp_path, scheme):
    made = toy_model_artifact(ArtifactStore(str(tmp_path / "other")), "pretrain")
    taken = base(ModelConfig(name=scheme + made.uri), ArtifactStore(str(tmp_path / "run"))).local()
    assert read_labels(taken) == list(LABELS)


def test_a_uri_is_known_by_the_digest_of_the_artifact(tmp_path):
    made = toy_model_artifact(ArtifactStore(str(tmp_path)), "pretrain")
    assert fingerprint(ModelConfig(name=f"file://{made.uri}")) == made.digest


def test_a_run_that_has_not_pretrained_says_so(tmp_path):
    toy_model_artifact(ArtifactStore(str(tmp_path / "run")), "tokenizer")
    with pytest.raises(ModelError, match="has pretrained no model yet"):
        locate(ModelConfig(name=str(tmp_path / "run")))


def test_the_directory_of_a_run_stands_for_what_it_pretrained(tmp_path):
    store = ArtifactStore(str(tmp_path / "run"))
    made = toy_model_artifact(store, "pretrain")
    assert locate(ModelConfig(name=str(tmp_path / "run"))) == Path(made.uri)
    toy_model_artifact(store, "pretrain", seed=1)
    with pytest.raises(ModelError, match=r"several models were pretrained there.*valid: .*pretrain-"):
        locate(ModelConfig(name=str(tmp_path / "run")))


def test_a_damaged_artifact_is_not_taken_over(tmp_path):
    made = toy_model_artifact(ArtifactStore(str(tmp_path)), "pretrain")
    edit(Path(made.uri), architectures=["Other"])
    with pytest.raises(ArtifactError, match=r"config\.json"):
        locate(ModelConfig(name=f"file://{made.uri}"))


def test_folder_of_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "some_models"
    toy_model_dir(package / "nested" / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert locate(ModelConfig(name="package:some_models/nested/model")) == package / "nested" / "model"
    with pytest.raises(ModelError, match=r"no such folder in the package.*valid: nested/model"):
        locate(ModelConfig(name="package:some_models/other"))
    with pytest.raises(ModelError, match="no such folder"):
        locate(ModelConfig(name="package:some_models/../outside"))


def test_package_that_is_not_installed():
    with pytest.raises(ModelError, match=r"no_such_package.*is not installed.*pip install no_such_package"):
        locate(ModelConfig(name="package:no_such_package/model"))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_missing_directory_names_the_forms(name):
    with pytest.raises(ModelError, match=r"model\.name: no such directory.*valid: org/model"):
        locate(ModelConfig(name=name))


def test_hub_without_network_is_an_error_not_a_hang():
    with pytest.raises(ModelError, match="nor to be had from the Hub"):
        locate(ModelConfig(name="some-org/no-such-model-here", revision="0" * 40))


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal"])
def test_models_that_bring_code_are_refused(directory, key):
    edit(directory, **{key: {"AutoModel": "evil.Model"}})
    with pytest.raises(ModelError, match=f"{key}: models that bring code are refused"):
        locate(ModelConfig(name=str(directory)))


def test_pickled_weights_are_refused(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code when loaded"):
        locate(ModelConfig(name=str(directory)))


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/tmp/elsewhere.safetensors", "absent.safetensors"])
def test_an_index_that_names_weights_elsewhere_is_refused(directory, place):
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    locate(ModelConfig(name=str(directory)))
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": place}}))
    with pytest.raises(ModelError, match=r"names weights that are not in the directory: .*safetensors"):
        locate(ModelConfig(name=str(directory)))
    index.write_text("{}")
    with pytest.raises(ModelError, match="has no weight_map"):
        locate(ModelConfig(name=str(directory)))


def test_model_without_a_tokenizer(directory):
    for file in ("tokenizer.json", "vocab.txt"):
        (directory / file).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="has no tokenizer"):
        locate(ModelConfig(name=str(directory)))


def test_directory_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        locate(ModelConfig(name=str(tmp_path)))


def test_broken_config(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        locate(ModelConfig(name=str(directory)))


def test_torn_weights_are_an_error(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="does not load"):
        load_model(directory)


def test_copy_takes_nothing_that_could_carry_code(directory, tmp_path):
    for name in ("evil.py", "evil.bin", "evil.pkl", "evil.pt"):
        (directory / name).write_text("x")
    copy(directory, tmp_path / "copy")
    names = {f.name for f in (tmp_path / "copy").iterdir()}
    assert "model.safetensors" in names and not any(name.startswith("evil") for name in names)
    assert load_tokenizer(tmp_path / "copy")("good dress")["input_ids"]


def test_fresh_head_takes_new_labels(directory):
    assert read_labels(directory) == list(LABELS)
    model = load_model(directory, labels=["a", "b", "c"])
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.classifier.out_features == 3


def test_another_content_is_another_base(directory, tmp_path):
    store, model = ArtifactStore(str(tmp_path / "store")), ModelConfig(name=str(directory))
    first = base(model, store)
    assert base(model, store).uri == first.uri
    edit(directory, hidden_dropout_prob=0.3)
    second = base(model, store)
    assert second.uri != first.uri and second.digest != first.digest
    assert fingerprint(ModelConfig(name="org/model", revision="main")) is None


@pytest.fixture
def tokenizer_directory(directory, tmp_path) -> Path:
    load_tokenizer(directory).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_tokenizer_needs_no_model(tokenizer_directory):
    assert locate_tokenizer(ModelConfig(name=str(tokenizer_directory))) == tokenizer_directory
    (tokenizer_directory / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.name: has no tokenizer"):
        locate_tokenizer(ModelConfig(name=str(tokenizer_directory)))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_that_brings_code_is_refused(tokenizer_directory, name):
    (tokenizer_directory / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": "x.Y"}}))
    with pytest.raises(ModelError, match=rf"{name} sets auto_map.*bring code"):
        locate_tokenizer(ModelConfig(name=str(tokenizer_directory)))


@pytest.mark.parametrize("name", ["no/such/directory", "package:no_such_package/x"])
def test_errors_name_the_setting_of_the_tokenizer(name):
    with pytest.raises(ModelError, match=r"^tokenizer\.name: "):
        locate_tokenizer(ModelConfig(name=name))


def test_weights_do_not_change_a_tokenizer(directory):
    model = ModelConfig(name=str(directory))
    both = fingerprint(model), fingerprint(model, weights=False)
    (directory / "model.safetensors").write_bytes(b"other")
    assert fingerprint(model) != both[0] and fingerprint(model, weights=False) == both[1]
    (directory / "tokenizer.json").write_bytes(b"{}")
    assert fingerprint(model, weights=False) != both[1]
