"""Which files a source names, how they are cut into units of work, and a fingerprint of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow.fs as pafs

from lspm_ray.artifact import filesystem, join, split_uri
from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.format import Format, formats
from lspm_ray.errors import DataError

Compression = Literal["gzip", "bz2", "zstd"]

_COMPRESSIONS: dict[str, Compression] = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}
# Parquet files are often named after the codec inside: data.parquet.brotli.
_CODECS = {"brotli", "snappy", "gzip", "zstd", "lz4", "gz", "zst"}
# Beside the data in a directory of the Hugging Face datasets library, and in any directory of tables.
_DATASET_FILES = {"dataset_info.json", "state.json", "dataset_dict.json"}
_ABOUT = {"readme", "license", "licence", "notice", "citation", "changelog"}
_WILDCARD = re.compile(r"[*?\[]")
_HASHED_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
# Of compressed text, roughly.
_EXPANSION = 4


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    Attributes:
        uri: local path or URI.
        name: its path below the directory, glob or file that the user named; the same wherever the data lie.
        bytes: size as stored.
        mtime_ns: modification time, where the filesystem knows one.
        format: of the (decompressed) content; the name of a `Format`.
        compression: of the file as a whole; codecs inside Parquet do not count.
        held_out: it belongs to `test_source`.
        section: of the settings that name it, for error messages.
    """

    uri: str
    name: str
    bytes: int
    mtime_ns: int | None
    format: str
    compression: Compression | None
    held_out: bool = False
    section: str = "data"


@dataclass(frozen=True)
class Unit:
    """One piece of work: part `part` of `parts` of a file. Every row of the file lies in exactly one part."""

    number: int
    file: SourceFile
    part: int
    parts: int

    def byte_range(self) -> tuple[int, int]:
        """Where the unit begins and ends, in a file that is cut by bytes."""
        size = self.file.bytes
        return size * self.part // self.parts, size * (self.part + 1) // self.parts

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Unit:
        """Inverse of `to_dict`."""
        return cls(**{**raw, "file": SourceFile(**raw["file"])})


@dataclass(frozen=True)
class Layout:
    """How the work is cut. It decides how much can run at once and how much memory a task takes, never the result.

    Attributes:
        unit_bytes: a unit reads about this much of a file, as stored, or more if the files are large.
        unit_growth: units are at least the square root of this times the size of all files.
        most_parts: parts of one file whose parts must each go through the whole file (CSV, Arrow, compressed).
        chunk_rows: a unit stages its rows in chunks of this many.
        chunk_characters: or of this many characters, whichever is reached first.
        partition_bytes: of text per partition of the shuffles, or more if the units are larger.
    """

    unit_bytes: int = 1 << 19
    unit_growth: int = 1 << 16
    most_parts: int = 8
    chunk_rows: int = 1 << 16
    chunk_characters: int = 1 << 25
    partition_bytes: int = 1 << 26

    def partitions(self, files: Sequence[SourceFile]) -> int:
        """Partitions for the shuffles of these files."""
        partition_bytes = max(self.partition_bytes, self.bytes_per_unit(files))
        return max(2, math.ceil(self.text_bytes(files) / partition_bytes))

    def grown(self, files: Sequence[SourceFile]) -> Layout:
        """With chunks as large as the units of these files, so that there are not many more of them.

        Every partition of a shuffle reads a part of every chunk: were chunks of a fixed size, the reads would grow
        faster than the corpus.
        """
        factor = max(1, self.bytes_per_unit(files) // self.chunk_characters)
        return replace(self, chunk_rows=self.chunk_rows * factor, chunk_characters=self.chunk_characters * factor)

    def text_bytes(self, files: Sequence[SourceFile]) -> int:
        """About how much text the files hold."""
        return sum(file.bytes * (_EXPANSION if _is_compressed(file) else 1) for file in files)

    def bytes_per_unit(self, files: Sequence[SourceFile]) -> int:
        """About how much of these files a unit reads, as stored."""
        # A unit of 8 MiB for 1 GiB, 256 MiB for 1 TiB: both the number of units and their size stay within reason.
        return max(self.unit_bytes, math.isqrt(self.unit_growth * sum(file.bytes for file in files)))

    def units(self, files: Sequence[SourceFile]) -> list[Unit]:
        """Cut the files into units."""
        units: list[Unit] = []
        unit_bytes = self.bytes_per_unit(files)
        for file in files:
            parts = max(1, math.ceil(file.bytes / unit_bytes))
            cut = Format.find(file.format).cut
            if cut == "whole":
                parts = 1
            elif cut == "scanned" or file.compression is not None:
                parts = min(parts, self.most_parts)
            units += [Unit(len(units) + part, file, part, parts) for part in range(parts)]
        return units


def resolve(config: SourceConfig) -> list[SourceFile]:
    """Every input file, in a fixed order.

    Raises:
        DataError: a source does not exist, matches no file, is of unknown format, or is labelled and of several.
    """
    files = _resolve_all(config.source, config, f"{config.section}.source", held_out=False)
    if config.test_source is not None:
        field = f"{config.section}.test_source"
        held_out = _resolve_all(config.test_source, config, field, held_out=True)
        for uri in sorted({file.uri for file in files} & {file.uri for file in held_out}):
            raise DataError(f"this file is in {config.section}.source too", field=field, value=uri)
        files += held_out
    return files


def fingerprint_sources(config: SourceConfig) -> dict[str, Any]:
    """What identifies the content of the input files: how many `files` and `bytes` there are, and a `digest`.

    Local files are hashed, up to 1 GiB in all; beyond that, and for remote files, size and modification time stand
    for the content. Paths count only below the source, so moved data keep their fingerprint.
    """
    left, files = _HASHED_BYTES, resolve(config)
    digest = hashlib.sha256()
    for file in files:
        entry: dict[str, Any] = {"name": file.name, "bytes": file.bytes, "held_out": file.held_out}
        if "://" not in file.uri and file.bytes <= left:
            left -= file.bytes
            entry["sha256"] = _sha256(file)
        else:
            entry["mtime_ns"] = file.mtime_ns
        digest.update(json.dumps(entry, sort_keys=True).encode() + b"\n")
    return {"files": len(files), "bytes": sum(file.bytes for file in files), "digest": digest.hexdigest()}


def _is_compressed(file: SourceFile) -> bool:
    return file.compression is not None or file.format == "parquet"


def open_error(file: SourceFile, error: Exception) -> DataError:
    """The error for a file that is there but cannot be opened."""
    return DataError(f"cannot read the file: {error}", field=f"{file.section}.source", value=file.uri)


def _sha256(file: SourceFile) -> str:
    fs, path = filesystem(file.uri)
    digest = hashlib.sha256()
    try:
        with fs.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise open_error(file, error) from None
    return digest.hexdigest()


def _resolve_all(sources: str | list[str], config: SourceConfig, field: str, *, held_out: bool) -> list[SourceFile]:
    found: dict[str, SourceFile] = {}
    for source in [sources] if isinstance(sources, str) else sources:
        for file in _resolve_one(source, config, field, held_out):
            found.setdefault(file.uri, file)
    formats = sorted({file.format for file in found.values()})
    if len(formats) > 1 and config.label is not None:
        # The same label could be 1 in one format and "1" in another.
        raise DataError(
            "files of several formats; labelled data must have one",
            field=field,
            value=", ".join(formats),
            hint="Name the files by a glob such as data/*.parquet",
        )
    return list(found.values())


def _resolve_one(source: str, config: SourceConfig, field: str, held_out: bool) -> list[SourceFile]:
    location, query = split_uri(source)
    wildcard = None if _exists(source) else _WILDCARD.search(location)
    # Everything before the directory that holds the first wildcard is a plain path.
    base = location[: location.rfind("/", 0, wildcard.start()) + 1] or "." if wildcard else location
    fs, path = filesystem(base + query)
    try:
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise DataError("no such file or directory", field=field, value=base if wildcard else source)
        if info.type == pafs.FileType.File:
            return [_file(info, source, PurePosixPath(path).name, config, field, held_out)]
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise DataError(f"cannot be listed: {error}", field=field, value=source) from None
    prefix = path.rstrip("/") + "/"
    inside = {info.path.removeprefix(prefix): info for info in infos if info.type == pafs.FileType.File}
    names = _matching(inside, location[len(base) if base != "." else 0 :]) if wildcard else _data_files(inside, config)
    if not names:
        raise _nothing(source, sorted(inside)[:10], config, field)
    root = base + query if "://" in base else path
    return [_file(inside[name], join(root, name), name, config, field, held_out) for name in sorted(names)]


def _exists(source: str) -> bool:
    # A name may hold wildcard characters without being a pattern.
    fs, path = filesystem(source)
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    expression = re.compile(_glob_to_regex(pattern))
    return [name for name in names if expression.fullmatch(name)]


def _nothing(source: str, there: list[str], config: SourceConfig, field: str) -> DataError:
    if not there:
        return DataError("no data file is found there", field=field, value=source, valid=_suffixes(config))
    hint = f"Files that can be read end in {', '.join(_suffixes(config))}"
    return DataError("no data file is found there", field=field, value=source, valid=there, hint=hint)


def _data_files(names: Iterable[str], config: SourceConfig) -> list[str]:
    # Names with a leading dot or underscore are the side files of other tools (_SUCCESS, .part.crc).
    visible = [name for name in names if not any(part[0] in "._" for part in PurePosixPath(name).parts)]
    known = {name: config.format if config.format != "auto" else _format_of(name, config)[0] for name in visible}
    readable = {name: kind for name, kind in known.items() if kind is not None}
    return [name for name in readable if not _is_side_file(name, readable)]


def _is_side_file(name: str, known: Mapping[str, str]) -> bool:
    """Whether the file only describes the others of its directory, or is a cache that a tool left among them."""
    path = PurePosixPath(name)
    if "arrow" in known.values() and (path.name in _DATASET_FILES or path.match("cache-*.arrow")):
        return True
    about = path.name.split(".")[0].lower() in _ABOUT
    return about and any(kind != known[name] for kind in known.values())


def _glob_to_regex(pattern: str) -> str:
    """`**/` any folders, `*` and `?` within one name, `[...]` a set of characters."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(part) or (part.replace("[!", "[^") if part.startswith("[") and len(part) > 2 else re.escape(part))
        for part in parts
    )


def _file(info: pafs.FileInfo, uri: str, name: str, config: SourceConfig, field: str, held_out: bool) -> SourceFile:
    found, compression = _format_of(name, config)
    format_ = found if config.format == "auto" else config.format
    if format_ is None:
        raise DataError(
            "the format cannot be told from the file name",
            field=field,
            value=uri,
            valid=_suffixes(config),
            hint=f"Or set {config.section}.format",
        )
    if format_ == "parquet":
        compression = None
    local = uri if "://" in uri else info.path
    return SourceFile(local, name, info.size, info.mtime_ns, format_, compression, held_out, config.section)


def _format_of(name: str, config: SourceConfig) -> tuple[str | None, Compression | None]:
    suffixes = PurePosixPath(name.lower()).name.split(".")[1:]
    if not suffixes:
        return None, None
    if len(suffixes) > 1 and suffixes[-1] in _CODECS and suffixes[-2] in ("parquet", "pq"):
        return "parquet", None
    compression = _COMPRESSIONS.get(suffixes[-1])
    last = suffixes[-2] if compression and len(suffixes) > 1 else suffixes[-1]
    return _names(labelled=config.label is not None).get(last), compression


def _suffixes(config: SourceConfig) -> list[str]:
    return [f".{suffix}" for suffix in _names(labelled=config.label is not None)]


@cache
def _names(*, labelled: bool) -> dict[str, str]:
    """Suffix -> name of the format."""
    return {suffix: kind().name for kind in formats(labelled=labelled) for suffix in kind.suffixes}
