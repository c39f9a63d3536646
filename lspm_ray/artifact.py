"""The artifact store: what one stage hands to the next.

An artifact is a directory whose `manifest.json` is written last and holds the sha256 of every other file, the
config and parents that made it, the code version and the hardware. Its name is `<stage>-<key>`, the key being a
digest of config, parents and code version: a stage whose inputs are unchanged finds its artifact already there.
The root is a local path or any URI that `pyarrow.fs` understands (s3://, gs://, file://, ...).
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

import pyarrow.fs as pafs

from lspm_ray import __version__
from lspm_ray.cgroup import cpu_quota
from lspm_ray.config import Config, digest_of
from lspm_ray.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
_WAIT_S = 0.2
_CHUNK_BYTES = 1 << 20
_QUERY = re.compile(r"\?[A-Za-z_]\w*=.*$")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,100}")


class FileRecord(Config):
    """Size and digest of one file of an artifact."""

    bytes: int
    sha256: str


class Manifest(Config):
    """What `manifest.json` holds."""

    stage: str
    key: str
    digest: str
    """sha256 over the sorted (path, sha256) pairs: equal content, equal digest, wherever and whenever it was made."""
    files: dict[str, FileRecord]
    config: dict[str, Any]
    parents: dict[str, str]
    """Role -> content digest of the artifacts this one was made from."""
    summary: dict[str, Any]
    """Small results a person or the next stage wants without opening the files."""
    created_utc: str
    code_version: str
    hardware: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A complete artifact. `uri` is its directory."""

    uri: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Content digest: see `Manifest.digest`."""
        return self.manifest.digest

    @property
    def root(self) -> str:
        """The store it lies in."""
        return _parent(self.uri)

    @cached_property
    def _location(self) -> tuple[pafs.FileSystem, str]:
        return filesystem(self.uri)

    def path(self, relative: str) -> str:
        """URI of a file inside the artifact."""
        return join(self.uri, relative)

    def verify(self) -> None:
        """Hash every file and compare with the manifest.

        Raises:
            ArtifactError: a file is missing, was added, or has other content; names it and both digests.
        """
        fs, base = self._location
        found = set(_list_files(fs, base)) - {MANIFEST}
        recorded = self.manifest.files
        for extra in sorted(found - set(recorded)):
            raise ArtifactError("file is not in the manifest: refused", field=self.path(extra))
        for missing in sorted(set(recorded) - found):
            raise ArtifactError("file is missing", field=self.path(missing), hint=_REMAKE)
        self.verify_files(sorted(recorded))
        if _content_digest(recorded) != self.manifest.digest:
            raise ArtifactError("the manifest's own digest does not match its files", field=self.path(MANIFEST))

    def verify_files(self, names: Sequence[str]) -> None:
        """Hash some files of the manifest and compare.

        Raises:
            ArtifactError: a file is missing or has other content; names it and both digests.
        """
        fs, base = self._location
        recorded = self.manifest.files
        for name, actual in _hash_files(fs, base, list(names)).items():
            if actual != recorded[name]:
                raise ArtifactError(
                    f"content does not match the manifest: expected sha256 {recorded[name].sha256}, "
                    f"found {actual.sha256}",
                    field=self.path(name),
                    hint=_REMAKE,
                )

    def read_bytes(self, relative: str) -> bytes:
        """Content of one file, checked against its digest.

        Raises:
            ArtifactError: no such file, or its content is not what was written.
        """
        record = self.manifest.files.get(relative)
        if record is None:
            raise ArtifactError("no such file in the artifact", field=relative, valid=sorted(self.manifest.files))
        fs, base = self._location
        try:
            with fs.open_input_stream(f"{base}/{relative}", compression=None) as stream:
                data = bytes(stream.read())
        except OSError as error:
            raise ArtifactError(f"cannot read: {error}", field=self.path(relative), hint=_REMAKE) from None
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise ArtifactError("content does not match the manifest", field=self.path(relative), hint=_REMAKE)
        return data

    def read_json(self, relative: str) -> Any:
        """Parsed content of one JSON file, checked against its digest."""
        return json.loads(self.read_bytes(relative))

    def local(self) -> Path:
        """A verified local directory with the artifact's files; remote ones are downloaded once per machine.

        Raises:
            ArtifactError: verification failed.
        """
        fs, base = self._location
        if isinstance(fs, pafs.LocalFileSystem):
            self.verify()
            return Path(base)
        target = _cache_root() / self.digest
        copy = Artifact(str(target), self.manifest)
        if not (target / MANIFEST).is_file():
            self._download(fs, base, target)
        copy.verify()
        return target

    def _download(self, fs: pafs.FileSystem, base: str, target: Path) -> None:
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
        for name in [*self.manifest.files, MANIFEST]:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(
                f"{base}/{name}",
                str(partial / name),
                source_filesystem=fs,
                destination_filesystem=pafs.LocalFileSystem(),
            )
        try:
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial)
            if not (target / MANIFEST).is_file():
                raise


_REMAKE = "Delete the directory and run the stage again"


@dataclass
class Draft:
    """An artifact being written: fill `uri` (or `path`, when local), then leave the `with` block."""

    uri: str
    path: Path
    """Local directory to write to. With a remote store its files are uploaded when the draft is committed."""
    summary: dict[str, Any] = field(default_factory=dict)


Turn = Callable[[str, Callable[[], None]], AbstractContextManager[None]]


class ArtifactStore:
    """All artifacts below one root.

    Args:
        root: local path or URI. Created when the first artifact is written.
        on_wait: called now and then while another process makes what this one wants.
        remote_turn: takes a name and `on_wait`, and keeps others of that name waiting; for stores without file locks.
    """

    def __init__(self, root: str, on_wait: Callable[[], None] = lambda: None, remote_turn: Turn | None = None) -> None:
        self._on_wait, self._remote_turn = on_wait, remote_turn
        self._fs, self._base = filesystem(root)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)
        self.root = self._base if self._local else root.rstrip("/")

    def key(self, stage: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
        """The first 12 hex digits of what determines the artifact: stage, config, parents and code version."""
        what = {"stage": stage, "config": dict(config), "parents": dict(parents), "code": __version__}
        return digest_of(what)[:12]

    def find(self, stage: str, key: str) -> Artifact | None:
        """The complete artifact, or None. Does not verify digests: loading does."""
        return self._open(f"{_checked(stage)}-{key}")

    def get(self, uri: str) -> Artifact:
        """Open an artifact by directory name or URI.

        Raises:
            ArtifactError: it does not exist or is incomplete.
        """
        name = name_of(uri)
        artifact = self._open(name)
        if artifact is None:
            names = [name_of(a.uri) for a in self.artifacts()]
            raise ArtifactError("no such artifact", field="artifact", value=uri, valid=names)
        return artifact

    def artifacts(self) -> list[Artifact]:
        """Every complete artifact, oldest first."""
        infos = self._fs.get_file_info(pafs.FileSelector(self._base, allow_not_found=True))
        found = [self._open(info.base_name) for info in infos if info.type == pafs.FileType.Directory]
        return sorted((a for a in found if a), key=lambda a: a.manifest.created_utc)

    def names(self, stage: str) -> list[str]:
        """Directory names of a stage's artifacts, sorted; a damaged manifest does not matter here."""
        infos = self._fs.get_file_info(pafs.FileSelector(self._base, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.base_name.startswith(f"{_checked(stage)}-"))

    def delete(self, name: str) -> None:
        """Remove an artifact by its directory name."""
        self._remove(f"{self._base}/{_checked(name)}")

    def work_uri(self, stage: str, key: str) -> str:
        """Directory for what an unfinished stage must find again after a kill (checkpoints)."""
        return join(self.root, f".work/{_checked(stage)}-{key}")

    def has_work(self, stage: str) -> bool:
        """Whether a run of the stage left something to go on from."""
        infos = self._fs.get_file_info(pafs.FileSelector(f"{self._base}/.work", allow_not_found=True))
        return any(info.base_name.startswith(f"{_checked(stage)}-") for info in infos)

    def busy(self) -> bool:
        """Whether a process of this machine is writing here, see `exclusive`. False for remote stores: nobody knows."""
        if not self._local or not (lock := Path(self._base) / ".lock").exists():
            return False
        with lock.open("a") as handle:
            return not _lock(handle, fcntl.LOCK_SH)

    def clear_work(self, stage: str, key: str) -> None:
        """Drop the unfinished stage's directory."""
        path = f"{self._base}/.work/{_checked(stage)}-{key}"
        if self._fs.get_file_info(path).type == pafs.FileType.Directory:
            self._fs.delete_dir(path)

    @contextmanager
    def create(
        self, stage: str, config: Mapping[str, Any], parents: Mapping[str, str], key: str | None = None
    ) -> Iterator[Draft]:
        """Write an artifact: complete when the block ends, absent when it raises or the process dies.

        Distributed writers (Ray Data) write to `draft.uri`; local code to `draft.path`. Both are kept.
        """
        key = key or self.key(stage, config, parents)
        name = f"{_checked(stage)}-{key}"
        final = f"{self._base}/{name}"
        writing = f"{self._base}/.partial/{name}" if self._local else final
        self._remove(writing)
        self._fs.create_dir(writing, recursive=True)
        with _local_side(writing if self._local else None) as path:
            draft = Draft(join(self.root, f".partial/{name}") if self._local else join(self.root, name), path)
            yield draft
            if not self._local:
                pafs.copy_files(str(path), writing, destination_filesystem=self._fs)
            files = _hash_files(self._fs, writing, _list_files(self._fs, writing))
            manifest = Manifest(
                stage=stage,
                key=key,
                digest=_content_digest(files),
                files=files,
                config=dict(config),
                parents=dict(parents),
                summary=draft.summary,
                created_utc=datetime.now(UTC).isoformat(timespec="microseconds"),
                code_version=__version__,
                hardware=hardware(),
            )
            self._seal(writing, final, manifest)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes of this machine from writing here meanwhile. Does nothing for remote stores.

        Raises:
            ArtifactError: another process is at work.
        """
        if not self._local:
            yield
            return
        root = Path(self._base)
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("a") as lock:
            # The kernel drops the lock with the process, however that ends. Tried twice: `busy` holds it for a moment.
            if not _lock(lock, fcntl.LOCK_EX):
                time.sleep(0.2)
                if not _lock(lock, fcntl.LOCK_EX):
                    raise ArtifactError(
                        "another run is at work here", field="output", value=self.root, hint="Wait for it, or stop it"
                    )
            yield

    def make(
        self,
        stage: str,
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        build: Callable[[Draft], None],
    ) -> Artifact:
        """The artifact, made by `build` unless it is already there. Its unfinished work is dropped afterwards."""
        key = self.key(stage, config, parents)
        found = self.find(stage, key)
        if found is None:
            with self.turn(stage, key):
                found = self.find(stage, key)
                if found is None:
                    with self.create(stage, config, parents, key) as draft:
                        build(draft)
                    found = self.get(f"{stage}-{key}")
        self.clear_work(stage, key)
        return found

    @contextmanager
    def turn(self, stage: str, key: str) -> Iterator[None]:
        """Keep others from making the same artifact meanwhile; waits for one that does.

        Others are processes that can lock the same file, for remote stores those that `remote_turn` knows of.
        """
        if not self._local:
            name = join(self.root, f"{_checked(stage)}-{key}")
            with nullcontext() if self._remote_turn is None else self._remote_turn(name, self._on_wait):
                yield
            return
        locks = Path(self._base) / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / f"{_checked(stage)}-{key}").open("a") as lock:
            while not _lock(lock, fcntl.LOCK_EX):
                self._on_wait()
                time.sleep(_WAIT_S)
            yield

    def _seal(self, writing: str, final: str, manifest: Manifest) -> None:
        data = manifest.model_dump_json(indent=1).encode()
        if not self._local:
            with self._fs.open_output_stream(f"{writing}/{MANIFEST}") as stream:
                stream.write(data)
            return
        for name in manifest.files:
            _fsync(Path(writing) / name)
        write_atomic(Path(writing) / MANIFEST, data)
        self._remove(final)
        os.rename(writing, final)
        _fsync(Path(final).parent)

    def _remove(self, path: str) -> None:
        if self._fs.get_file_info(path).type == pafs.FileType.Directory:
            self._fs.delete_dir(path)

    def _open(self, name: str) -> Artifact | None:
        path = f"{self._base}/{name}/{MANIFEST}"
        if name.startswith(".") or self._fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with self._fs.open_input_stream(path) as stream:
            text = bytes(stream.read())
        try:
            manifest = Manifest.parse(json.loads(text))
        except (ValueError, ConfigError) as error:
            raise ArtifactError(f"damaged manifest: {error}", field=join(self.root, f"{name}/{MANIFEST}")) from None
        return Artifact(join(self.root, name), manifest)


def open_artifact(uri: str) -> Artifact:
    """The complete artifact at a directory path or URI.

    Raises:
        ArtifactError: it does not exist or is incomplete.
    """
    return ArtifactStore(_parent(uri)).get(uri)


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_beside(uri: str, neighbour: Artifact) -> Artifact:
    """The artifact at `uri`; if the store of `neighbour` holds one of that name, that one, as stores get copied.

    Raises:
        ArtifactError: it is in neither place.
    """
    store = ArtifactStore(_parent(neighbour.uri))
    try:
        return store.get(uri)
    except ArtifactError:
        return open_artifact(uri)


def name_of(uri: str) -> str:
    """Last part of a path or URI."""
    return split_uri(uri)[0].rstrip("/").rpartition("/")[2]


def _parent(uri: str) -> str:
    location, query = split_uri(uri)
    return (location.rstrip("/").rpartition("/")[0] or ".") + query


def split_uri(uri: str) -> tuple[str, str]:
    """Location and query of a URI, `?` included: `s3://bucket/x?region=eu-west-1`. A local path has no query.

    A question mark is the beginning of one where `name=` follows; else it belongs to a pattern.
    """
    found = _QUERY.search(uri) if "://" in uri else None
    return (uri, "") if found is None else (uri[: found.start()], found[0])


def _quoted(uri: str) -> str:
    location, query = split_uri(uri)
    # What is percent-encoded already stays as it is; a name may hold what a URI may not.
    return quote(location, safe="/:%@!$&'()*+,;=-._~") + query


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a local path or URI.

    Raises:
        ConfigError: unknown scheme, or the scheme's filesystem cannot be reached.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        fs, path = pafs.FileSystem.from_uri(_quoted(uri))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot open this location: {error}",
            field="uri",
            value=uri,
            valid=["a local path", "file://", "s3://", "gs://", "abfs://", "hdfs://"],
        ) from None
    return fs, path.rstrip("/")


def join(base: str, relative: str) -> str:
    """`base/relative` for paths and URIs; refuses to leave `base`."""
    if ".." in PurePosixPath(relative).parts or relative.startswith("/") or "\0" in relative:
        raise ArtifactError("a path inside an artifact may not leave it", field="path", value=relative)
    if "://" not in base:
        return f"{base.rstrip('/')}/{relative}"
    location, query = split_uri(base)
    return f"{location.rstrip('/')}/{quote(relative)}{query}"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a local file so that a crash leaves either the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def hardware() -> dict[str, Any]:
    """Fingerprint of this machine: what a measured latency depends on."""
    gpus: list[str] = []
    for directory in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        text = directory.read_text(encoding="utf-8", errors="replace")
        gpus += [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model")]
    return {"cpu": _cpu_name(), "cpus": cpu_count(), "gpus": gpus, "machine": platform.machine()}


def cpu_count() -> int:
    """CPUs this process may use: what its affinity and its container's quota leave of the machine, rounded up."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _checked(stage: str) -> str:
    if not _NAME.fullmatch(stage):
        raise ArtifactError("not a valid artifact name", field="name", value=stage, valid=[_NAME.pattern])
    return stage


def _list_files(fs: pafs.FileSystem, base: str) -> list[str]:
    infos = fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    prefix = base.rstrip("/") + "/"
    if isinstance(fs, pafs.LocalFileSystem):
        for info in infos:
            if Path(info.path).is_symlink():
                raise ArtifactError("links are not allowed in an artifact", field=info.path)
    return sorted(info.path.removeprefix(prefix) for info in infos if info.type == pafs.FileType.File)


def _hash_files(fs: pafs.FileSystem, base: str, names: list[str]) -> dict[str, FileRecord]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(names, pool.map(lambda name: _hash_file(fs, f"{base}/{name}"), names), strict=True))


def _hash_file(fs: pafs.FileSystem, path: str) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with fs.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def _content_digest(files: Mapping[str, FileRecord]) -> str:
    return digest_of({name: record.sha256 for name, record in files.items()})


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lspm_ray"


@contextmanager
def _local_side(path: str | None) -> Iterator[Path]:
    if path is not None:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="lspm-") as temporary:
        yield Path(temporary)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
