"""Where a pretrained model comes from: a Hub id, a local directory, or a folder of an installed package."""

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from lspm_ray.artifact import MANIFEST, open_artifact
from lspm_ray.config import Config, digest_of
from lspm_ray.errors import ModelError

_TOKENIZER_WANTED = ("*.json", "*.txt", "*.model", "*.tiktoken")
_WANTED = (*_TOKENIZER_WANTED, "*.safetensors")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class ModelConfig(Config):
    """The pretrained model to start from.

    Attributes:
        name: `org/model` on the Hugging Face Hub, a local directory, the URI of a run's artifact (`s3://...`), or
            `package:NAME/PATH`.
        revision: commit, tag or branch, for Hub models. Pin a commit: a branch can change under you.
    """

    name: str = Field(min_length=1)
    revision: str | None = None


def locate(model: ModelConfig) -> Path:
    """The local directory of the model, downloading it from the Hub if need be.

    Raises:
        ModelError: not found, not safetensors, without a tokenizer, or with code of its own.
    """
    directory = _directory(model)
    check(directory, model.name)
    return directory


def locate_tokenizer(model: ModelConfig, field: str = "tokenizer.name") -> Path:
    """The local directory of a tokenizer, with or without a model; from the Hub no weights are downloaded.

    Args:
        model: where the tokenizer comes from.
        field: the setting that names it, for messages.

    Raises:
        ModelError: not found, without a tokenizer, or with code of its own.
    """
    directory = _directory(model, field, _TOKENIZER_WANTED)
    _check_tokenizer(directory, model.name, field)
    for name in ("tokenizer_config.json", "config.json"):
        if (directory / name).is_file():
            _read_json(directory / name, model.name, field)
    return directory


def fingerprint(model: ModelConfig, *, weights: bool = True, field: str = "model.name") -> str | None:
    """Digest of what `copy` would take of a model on this machine; None for one on the Hub: there `revision` pins it.

    Args:
        model: which one.
        weights: whether they count; not for a tokenizer.
        field: the setting that names it, for messages.

    Raises:
        ModelError: the directory or package does not exist.
    """
    if "://" in model.name:
        return open_artifact(model.name).digest
    if not model.name.startswith("package:") and not Path(model.name).expanduser().is_dir():
        return None
    wanted = _WANTED if weights else _TOKENIZER_WANTED
    directory = _directory(model, field, wanted)
    return digest_of({file.name: _sha256(file) for file in _wanted(directory, wanted)})


def check(directory: Path, name: str) -> dict[str, Any]:
    """Refuse a directory that cannot be loaded safely; returns its `config.json`.

    Raises:
        ModelError: names what is missing or forbidden.
    """
    config = read_config(directory, name)
    if not any(directory.glob("*.safetensors")):
        raise ModelError(
            "no *.safetensors weights; other formats can run code when loaded and are refused",
            field="model.name",
            value=name,
            hint="Convert the model with save_pretrained() first",
        )
    _check_shards(directory, name)
    _check_tokenizer(directory, name, "model.name")
    return config


def _check_shards(directory: Path, name: str) -> None:
    """Refuse an index that names weights elsewhere: they would be loaded from there, and no digest would cover them."""
    for index in directory.glob("*.safetensors.index.json"):
        weights = _read_json(index, name, "model.name").get("weight_map")
        if not isinstance(weights, dict):
            raise ModelError(f"{index.name} has no weight_map", field="model.name", value=name)
        there = {file.name for file in directory.glob("*.safetensors")}
        for file in sorted(set(map(str, weights.values())) - there):
            problem = f"{index.name} names weights that are not in the directory: {file[:200]}"
            raise ModelError(problem, field="model.name", value=name)


def read_config(directory: Path, name: str | None = None) -> dict[str, Any]:
    """The directory's `config.json`, refused if it asks for code of the model's own.

    Raises:
        ModelError: it is missing, not JSON, or names code.
    """
    name = name or str(directory)
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise ModelError("no config.json: not a transformers model", field="model.name", value=name)
    return _read_json(config_file, name, "model.name")


def _read_json(file: Path, name: str, field: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file.name} is not valid JSON: {error}", field=field, value=name) from None
    forbidden = [key for key in ("auto_map", "_attn_implementation_internal") if key in config]
    if forbidden:
        raise ModelError(
            f"{file.name} sets {', '.join(forbidden)}: models that bring code are refused", field=field, value=name
        )
    return config


def _check_tokenizer(directory: Path, name: str, field: str) -> None:
    if not any((directory / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError("has no tokenizer", field=field, value=name, valid=_TOKENIZER_FILES)


def copy(source: Path, target: Path) -> None:
    """Copy what loading needs (configuration, tokenizer, safetensors), and nothing that could carry code."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _wanted(source, _WANTED):
        shutil.copyfile(file, target / file.name)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wanted(directory: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {file for pattern in patterns for file in directory.glob(pattern)}
    return sorted(file for file in found if file.name != MANIFEST)  # a model of another run is an artifact there


def _directory(model: ModelConfig, field: str = "model.name", wanted: tuple[str, ...] = _WANTED) -> Path:
    if model.name.startswith("package:"):
        return _in_package(model.name, field)
    if "://" in model.name:
        return open_artifact(model.name).local()
    path = Path(model.name).expanduser()
    if path.is_dir():
        return _of_run(path, field) if not (path / "config.json").exists() else path
    if not _HUB_ID.fullmatch(model.name) or model.name.startswith("."):
        raise ModelError("no such directory", field=field, value=model.name, valid=_FORMS)
    return _from_hub(model, field, wanted)


def _of_run(path: Path, field: str) -> Path:
    """The model that was pretrained in a run's directory; any other directory is left as it is.

    Raises:
        ModelError: there are several, or the run has made other things only.
    """
    made = [manifest.parent for manifest in sorted(path.glob(f"pretrain-*/{MANIFEST}"))]
    if len(made) > 1:
        raise ModelError("several models were pretrained there", field=field, value=str(path), valid=made)
    if not made and next(path.glob(f"*/{MANIFEST}"), None) is not None:
        raise ModelError(
            "this run has pretrained no model yet",
            field=field,
            value=str(path),
            hint="Run lspm run CONFIG with the configuration that has this `output`, and a section `pretrain`",
        )
    return made[0] if made else path


_FORMS = (
    "org/model (Hub id)",
    "a local directory (of a model, or of a run that pretrained one)",
    "the URI of an artifact",
    "package:NAME/PATH",
)


def _in_package(name: str, field: str) -> Path:
    package, _, relative = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"package {package!r} is not installed", field=field, value=name, hint=f"pip install {package}"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    directory = (root / relative).resolve()
    if not directory.is_relative_to(root) or not directory.is_dir():
        folders = sorted(str(f.parent.relative_to(root)) for f in root.rglob("config.json"))
        raise ModelError("no such folder in the package", field=field, value=name, valid=folders)
    return directory


def _from_hub(model: ModelConfig, field: str, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=list(wanted)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"neither a local directory nor to be had from the Hub: {first}",
            field=field,
            value=model.name,
            valid=_FORMS,
        ) from None
