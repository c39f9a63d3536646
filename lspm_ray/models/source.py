"""Where a pretrained model comes from: a Hub id, a local directory, or a folder of an installed package."""

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from lspm_ray.config import Config, digest_of
from lspm_ray.errors import ModelError

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken")
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
        name: `org/model` on the Hugging Face Hub, a local directory, or `package:NAME/PATH`.
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


def fingerprint(model: ModelConfig) -> str | None:
    """Digest of what `copy` would take of a model on this machine; None for one on the Hub: there `revision` pins it.

    Raises:
        ModelError: the directory or package does not exist.
    """
    if not model.name.startswith("package:") and not Path(model.name).expanduser().is_dir():
        return None
    directory = _directory(model)
    return digest_of({file.name: _sha256(file) for file in _wanted(directory)})


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
    if not any((directory / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError("has no tokenizer", field="model.name", value=name, valid=_TOKENIZER_FILES)
    return config


def read_config(directory: Path, name: str | None = None) -> dict[str, Any]:
    """The directory's `config.json`, refused if it asks for code of the model's own.

    Raises:
        ModelError: it is missing, not JSON, or names code.
    """
    name = name or str(directory)
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise ModelError("no config.json: not a transformers model", field="model.name", value=name)
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json is not valid JSON: {error}", field="model.name", value=name) from None
    forbidden = [key for key in ("auto_map", "_attn_implementation_internal") if key in config]
    if forbidden:
        raise ModelError(
            f"config.json sets {', '.join(forbidden)}: models that bring code are refused",
            field="model.name",
            value=name,
        )
    return config


def copy(source: Path, target: Path) -> None:
    """Copy what loading needs (configuration, tokenizer, safetensors), and nothing that could carry code."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _wanted(source):
        shutil.copyfile(file, target / file.name)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wanted(directory: Path) -> list[Path]:
    return sorted({file for pattern in _WANTED for file in directory.glob(pattern)})


def _directory(model: ModelConfig) -> Path:
    if model.name.startswith("package:"):
        return _in_package(model.name)
    path = Path(model.name).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(model.name) or model.name.startswith("."):
        raise ModelError("no such directory", field="model.name", value=model.name, valid=_FORMS)
    return _from_hub(model)


_FORMS = ("org/model (Hub id)", "a local directory", "package:NAME/PATH")


def _in_package(name: str) -> Path:
    package, _, relative = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"package {package!r} is not installed", field="model.name", value=name, hint=f"pip install {package}"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    directory = (root / relative).resolve()
    if not directory.is_relative_to(root) or not directory.is_dir():
        folders = sorted(str(f.parent.relative_to(root)) for f in root.rglob("config.json"))
        raise ModelError("no such folder in the package", field="model.name", value=name, valid=folders)
    return directory


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"neither a local directory nor to be had from the Hub: {first}",
            field="model.name",
            value=model.name,
            valid=_FORMS,
        ) from None
