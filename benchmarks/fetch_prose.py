"""About 27 MB of English prose to pretrain on, out of Debian packages.

    python benchmarks/fetch_prose.py --out runs/prose/data

Needs apt (any Debian or derivative that has the packages; no root) and a network. Package lists are fetched into a
temporary directory; those of the system stay as they are. apt verifies the signatures of the lists, this script the
SHA-256 of every package against them. Of each source there is afterwards

    DIR/SOURCE/raw/...              files as people have them: .txt.gz, .txt.zst or .html
    DIR/SOURCE/documents.jsonl.zst  the same text without markup, one document a line: {"text", "name", "source"}
    DIR/SOURCE/source.json          package, version, SHA-256, licence and counts

A source that is there already is left alone, also if a newer package has come: delete its directory to fetch it again.
A source appears whole or not at all.

Licences. Everything comes from the `main` section of Debian, so it may be used, changed and passed on; nothing of it is
part of this project. Novels, Bible and commentaries: public domain (Jane Austen from Project Gutenberg by way of the R
package janeaustenr, MIT; World English Bible, which is a trademark; Matthew Henry 1706; C. H. Spurgeon 1885). The
Advanced Bash-Scripting Guide was given to the public domain. Debian's manuals: GPL-2+, some also under CC-BY-SA 3.0
(handbook) or a copyleft licence of their own (FAQ). Python's manuals: PSF-2. Descriptions of packages: by the
maintainers, under the licence of the packaging, mostly GPL or the licence of the program; Debian publishes them as part
of its index. What a source is under exactly is in /usr/share/doc/PACKAGE/copyright of the package.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from lspm_ray.errors import ConfigError, DataError, UserError

Members = Mapping[str, bytes]
"""Path in a package -> content."""


@dataclass(frozen=True)
class Item:
    """One raw file and the documents that are in it.

    Attributes:
        name: path of the raw file; compressed if it ends in .gz or .zst.
        raw: its content.
        documents: (name, clean text); names need not be unique.
    """

    name: str
    raw: bytes
    documents: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Where text comes from.

    Attributes:
        packages: the first of these that there is; none for the index of apt itself.
        members: matches the paths of the files in it that are needed.
        read: makes items of them, or of the index.
        licence: in a word.
        default: fetched unless others are asked for.
    """

    packages: Sequence[str]
    members: str
    read: Callable[[Members], Iterator[Item]]
    licence: str
    default: bool = True


# Text


def unwrapped(lines: Sequence[str]) -> str:
    """The lines of a paragraph as one; a word that is broken at a hyphen has no space there."""
    text = "\n".join(line.strip() for line in lines)
    return re.sub(r"\s+", " ", re.sub(r"(?<=\w-)\n(?=\w)|(?<=--)\n", "", text)).strip()


def paragraphs(lines: Sequence[str]) -> list[str]:
    """Between blank lines."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    return [text for block in blocks if (text := unwrapped(block.split("\n")))]


# R: https://cran.r-project.org/doc/manuals/r-release/R-ints.html#Serialization-Formats

_SYMBOL, _PAIRLIST, _CHARS, _INTS, _LOGICALS, _REALS, _STRINGS, _LIST = 1, 2, 9, 13, 10, 14, 16, 19
_NULL, _REFERENCE = 254, 255
_NO_VALUES = {242, 251, 252, 253}  # empty and base environments and the like


class RReader:
    """Reads what R has serialized in the format XDR, as far as lists of vectors go.

    Attributes of vectors are dropped, except the names of a list, which then becomes a dict.

    Raises:
        DataError: it is not of that format, holds something else, or is cut short.
    """

    def __init__(self, content: bytes) -> None:
        self._content, self._offset = content, 0
        self._references: list[Any] = []

    def read(self) -> Any:
        """The only value."""
        if self._take(2) != b"X\n":
            raise DataError("not serialized by R in the format XDR")
        version, _, _ = self._ints(3)
        if version == 3:
            self._take(*self._ints(1))
        return self._item()

    def _take(self, size: int) -> bytes:
        found = self._content[self._offset : self._offset + size]
        if size < 0 or len(found) < size:
            raise DataError("data serialized by R are cut short")
        self._offset += size
        return found

    def _ints(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}i", self._take(4 * count))

    def _item(self) -> Any:
        (flags,) = self._ints(1)
        kind = flags & 0xFF
        if kind == _NULL or kind in _NO_VALUES:
            return None
        if kind == _REFERENCE:
            return self._references[(flags >> 8 or self._ints(1)[0]) - 1]
        if kind == _SYMBOL:
            self._references.append(self._item())
            return self._references[-1]
        if kind == _PAIRLIST:
            return self._pairlist(flags)
        (length,) = self._ints(1)
        if kind == _CHARS:
            return None if length < 0 else self._take(length).decode(errors="replace")
        values = self._vector(kind, length)
        names = (self._item() or {}).get("names") if flags & 0x200 else None
        return dict(zip(names, values, strict=True)) if names and kind == _LIST else values

    def _vector(self, kind: int, length: int) -> list[Any]:
        if kind in (_INTS, _LOGICALS):
            return list(self._ints(length))
        if kind == _REALS:
            return list(struct.unpack(f">{length}d", self._take(8 * length)))
        if kind in (_STRINGS, _LIST):
            return [self._item() for _ in range(length)]
        raise DataError("data serialized by R have a part that is not read", value=kind)

    def _pairlist(self, flags: int) -> dict[str, Any]:
        found = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & 0x200:
                self._item()
            tag = self._item() if flags & 0x400 else None
            found[tag or ""] = self._item()
            (flags,) = self._ints(1)
        return found


def lazy_load(index: bytes, data: bytes) -> Iterator[tuple[str, Any]]:
    """(name, value) of a lazy-load database of R, the files .rdx and .rdb."""
    for name, (offset, length) in RReader(zlib.decompress(index, zlib.MAX_WBITS | 32)).read()["variables"].items():
        # Four bytes with the size come first.
        try:
            content = zlib.decompress(data[offset + 4 : offset + length])
        except zlib.error as error:
            raise DataError(f"a lazy-load database of R is not readable: {error}", value=name) from None
        yield name, RReader(content).read()


_CHAPTER = re.compile(r"\s*(?:CHAPTER|Chapter)\s+(?:[IVXLC]+|\d+)\.?\s*")


def read_novels(members: Members) -> Iterator[Item]:
    """Of Jane Austen: a raw file per novel, a document per chapter."""
    index, data = (
        next(content for name, content in sorted(members.items()) if name.endswith(end)) for end in (".rdx", ".rdb")
    )
    for name, lines in lazy_load(index, data):
        yield Item(f"{name}.txt.gz", "\n".join([*lines, ""]).encode(), list(chapters(name, lines)))


def chapters(name: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of the chapters of a novel, without underscores for emphasis; what comes before them is left out."""
    starts = [number for number, line in enumerate(lines) if _CHAPTER.fullmatch(line)]
    for chapter, (start, stop) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=False), 1):
        yield f"{name}/{chapter}", "\n\n".join(paragraphs(lines[start + 1 : stop])).replace("_", "")


# SWORD modules: OSIS markup in blocks compressed by zlib


def sword_blocks(index: bytes, data: bytes) -> Iterator[str]:
    """The blocks of a compressed module (.?zs and .?zz): an entry of the index is offset, size and size unpacked.

    Raises:
        DataError: they do not fit each other.
    """
    try:
        for offset, size, _ in struct.iter_unpack("<III", index):
            if size:
                yield zlib.decompress(data[offset : offset + size]).decode()
    except (zlib.error, struct.error, UnicodeDecodeError) as error:
        raise DataError(f"a SWORD module is not readable: {error}") from None


_PART = re.compile(
    r"<chapter\b[^>]*\bsID=\"([^\"]*)\"[^>]*>|<div\b[^>]*\bosisID=\"([^\"]*)\"[^>]*\btype=\"book\"[^>]*>"
)
_NO_PROSE = re.compile(
    r"<table\b.*?</table>|<title type=\"x-(?:IS|s2)\".*?</title>|<hi type=\"bold\">\s*Verses? [^<]*</hi>", re.DOTALL
)
_NO_PARAGRAPH = re.compile(r"Chapter Outline|\([\d ,;:-]+\)")
_NOTE = re.compile(r"\s*<note\b.*?</note>\s*", re.DOTALL)
_LINE = re.compile(r"<(?:l|lb|item)\b[^>]*>")
_PARAGRAPH = re.compile(r"</?(?:title|lg|list|div)\b(?![^>]*x-milestone)[^>]*>")
_BEFORE_STOP = re.compile(r"[ \t]+(?=[,.;:!?)])")


def osis_text(markup: str) -> str:
    """Paragraphs and lines of verse; notes, tables and verse numbers are left out."""
    # A note sticks to the word before it, and there is no space after it.
    text = _NOTE.sub(" ", _NO_PROSE.sub(" ", markup))
    text = _PARAGRAPH.sub("\n\n", _LINE.sub("\n", re.sub(r"\s+", " ", text)))
    text = _BEFORE_STOP.sub("", html.unescape(re.sub(r"<[^>]*>", "", text)))
    lines = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n"))
    # Every line of verse begins and ends by a tag of its own.
    blocks = (re.sub(r"\n+", "\n", block).strip() for block in re.split(r"\n{3,}", lines))
    return "\n\n".join(block for block in blocks if block and not _NO_PARAGRAPH.fullmatch(block))


def osis_documents(markup: str) -> Iterator[tuple[str, str]]:
    """(OSIS reference, text) of the chapters, and of what a book has before its first one."""
    found = list(_PART.finditer(markup))
    stops = [*(start.start() for start in found[1:]), len(markup)]
    for start, stop in zip(found, stops, strict=False):  # of no part there is still a stop
        text = osis_text(markup[start.end() : stop])
        if text:
            yield start[1] or start[2], text


def read_sword(members: Members) -> Iterator[Item]:
    """A raw file per book of the Bible, a document per chapter."""
    for name in sorted(members, key=lambda name: (Path(name).name[:2] == "nt", name)):
        if name.endswith("zs"):
            books: dict[str, list[tuple[str, str]]] = {}
            for reference, text in osis_documents("".join(sword_blocks(members[name], members[name[:-1] + "z"]))):
                books.setdefault(reference.partition(".")[0], []).append((reference, text))
            for book, texts in books.items():
                whole = "\n\n".join(text for _, text in texts) + "\n"
                yield Item(f"{book}.txt.zst", whole.encode(), texts)


# Descriptions of packages

_DESCRIPTION = re.compile(r"^Description-en: .*\n((?: .*\n?)+)", re.MULTILINE)
_SHORTEST = 400
_SHORTEST_SHARED = 100
_MOST_SHARED = 10
_LIST_ITEM = re.compile(r"\s*[*+o-]\s")


def description_paragraphs(field: str) -> list[str]:
    """Of the long description in a control file: lines are joined unless they are indented or begin a list item."""
    found: list[list[str]] = [[]]
    for line in field.splitlines():
        line = line[1:]
        if line.strip() in ("", "."):
            found.append([])
        elif not found[-1] or _LIST_ITEM.match(line) or (line.startswith(" ") and not _LIST_ITEM.match(found[-1][-1])):
            found[-1].append(line.strip())
        else:
            found[-1][-1] = unwrapped([found[-1][-1], line])
    return ["\n".join(lines) for lines in found if lines]


def descriptions(index: str) -> dict[str, str]:
    """First package -> text of all packages whose descriptions begin alike; what is short is left out.

    Packages that are built from one source share all but a sentence or two. Paragraphs that many have are left out too.
    """
    groups: dict[str, dict[str, None]] = {}
    first: dict[str, str] = {}
    for stanza in index.split("\n\n"):
        match = _DESCRIPTION.search(stanza + "\n")
        texts = description_paragraphs(match[1]) if match else []
        if texts:
            name = stanza.partition("\n")[0].removeprefix("Package: ")
            # A short beginning ("This is a library.") says nothing of where a package comes from.
            key = texts[0] if len(texts[0]) >= _SHORTEST_SHARED else name
            groups.setdefault(key, {}).update(dict.fromkeys(texts))
            first.setdefault(key, name)
    often = Counter(text for texts in groups.values() for text in texts)
    found = {
        first[key]: "\n\n".join(text for text in texts if often[text] <= _MOST_SHARED) for key, texts in groups.items()
    }
    return {name: text for name, text in found.items() if len(text) >= _SHORTEST}


def read_descriptions(members: Members) -> Iterator[Item]:
    """One raw file, the index as it is, and a document per group of packages."""
    index = "\n\n".join(content.decode() for content in members.values())
    yield Item("descriptions.txt.gz", index.encode(), list(descriptions(index).items()))


# Pages

_CHARSET = re.compile(rb"charset=[\"']?([\w-]+)")
_FOOTNOTE = re.compile(r"\s?\[\d+\]")


class _Prose(HTMLParser):
    """Collects the text of blocks; what is skipped is skipped with all that is in it."""

    _skipped: ClassVar[set[str]] = {"button", "form", "head", "nav", "pre", "script", "select", "style", "table"}
    # Or ids.
    _skipped_classes: ClassVar[set[str]] = {
        *(
            "banner",
            "docnav",
            "field-list",
            "footer",
            "headerlink",
            "longdesc-link",
            "mobile-nav",
            "navfooter",
            "navheader",
        ),
        *("refsynopsisdiv", "related", "sphinxsidebar", "toc"),
    }
    _inline: ClassVar[set[str]] = {
        *("a", "abbr", "acronym", "b", "big", "cite", "code", "del", "dfn", "em", "font", "i", "img", "ins", "kbd"),
        *("label", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "tt", "u", "var"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [""]
        self._inside: str | None = None
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._inside is not None:
            self._depth += tag == self._inside
            return
        classes = f"{dict(attrs).get('class')} {dict(attrs).get('id')}".lower().split()
        if tag in self._skipped or not self._skipped_classes.isdisjoint(classes):
            self._inside, self._depth = tag, 1
        if tag not in self._inline:
            self.blocks.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._inside is None and tag not in self._inline:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._inside is None:
            if tag not in self._inline:
                self.blocks.append("")
        elif tag == self._inside:
            self._depth -= 1
            if not self._depth:
                self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.blocks[-1] += data


def page_text(page: str) -> str:
    """The prose of an HTML page: headings, paragraphs and list items, without navigation, listings and tables."""
    parser = _Prose()
    parser.feed(page)
    parser.close()
    lines = (" ".join(_FOOTNOTE.sub("", block).split()) for block in parser.blocks)
    return "\n\n".join(line for line in lines if any(map(str.isalpha, line)))


def read_pages(members: Members) -> Iterator[Item]:
    """A raw file and a document per page."""
    common = os.path.commonpath([str(Path(name).parent) for name in members])
    for name, content in sorted(members.items()):
        declared = _CHARSET.search(content)
        text = page_text(content.decode(declared[1].decode() if declared else "utf-8", errors="replace"))
        path = Path(name).relative_to(common).as_posix()
        yield Item(path, content, [(path, text)] if text else [])


def _pages(packages: str, members: str, licence: str) -> Source:
    return Source(packages.split(), members, read_pages, licence)


_NO_CONTENT = r"(?!index|genindex|search|changelog|license|copyright|contributed-scripts|gpl|gfdl)"

SOURCES = {
    "austen": Source(["r-cran-janeaustenr"], r".*/data/Rdata\.rd[bx]", read_novels, "public domain"),
    "bible": Source(["sword-text-web"], r".*/[on]t\.[bc]z[sz]", read_sword, "public domain"),
    "henry": Source(["sword-comm-mhcc"], r".*/[on]t\.[bc]z[sz]", read_sword, "public domain"),
    "spurgeon": Source(["sword-comm-tdavid"], r".*/[on]t\.[bc]z[sz]", read_sword, "public domain", default=False),
    "descriptions": Source([], "", read_descriptions, "of each package"),
    "python": _pages(
        "python3.11-doc python3.12-doc python3.13-doc python3.14-doc",
        rf".*/html/(?:faq|howto|tutorial|using|whatsnew)/{_NO_CONTENT}[^/]*\.html",
        "PSF-2",
    ),
    "handbook": _pages("debian-handbook", rf".*/html/en-US/{_NO_CONTENT}[^/]*\.html", "GPL-2+ or CC-BY-SA-3.0"),
    "reference": _pages("debian-reference-en", rf".*/{_NO_CONTENT}[^/]*\.en\.html", "GPL-2+"),
    "developers": _pages("developers-reference", rf".*/(?!developers-reference\.){_NO_CONTENT}[^/]*\.html", "GPL-2+"),
    "policy": _pages("debian-policy", rf".*/policy\.html/{_NO_CONTENT}[^/]*\.html", "GPL-2+"),
    "faq": _pages("debian-faq", rf".*/{_NO_CONTENT}[^/]*\.en\.html", "copyleft of its own"),
    "history": _pages("debian-history", rf".*/docs/{_NO_CONTENT}[^/]*\.en\.html", "GPL-2+"),
    "installation": _pages("installation-guide-amd64", rf".*/en/{_NO_CONTENT}[^/]*\.html", "GPL-2+"),
    "maintainers": _pages("debmake-doc", rf".*/html/{_NO_CONTENT}[^/]*\.en\.html", "MIT"),
    "securing": _pages("harden-doc", rf".*/html/en-US/{_NO_CONTENT}[^/]*\.html", "GPL-2+"),
    "aptitude": _pages("aptitude-doc-en", rf".*/html/en/{_NO_CONTENT}[^/]*\.html", "GPL-2+"),
    "bash": _pages("abs-guide", rf".*/html/{_NO_CONTENT}[^/]*\.html", "public domain"),
}


# apt


class Apt:
    """apt with package lists of its own.

    Args:
        folder: for the lists and packages; empty.

    Raises:
        ConfigError: apt is not there, or cannot fetch the lists.
    """

    def __init__(self, folder: Path) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise ConfigError("this needs Debian's package tools", value=tool, hint="Run it on Debian or Ubuntu")
        self._folder = folder
        lists, cache = folder / "lists", folder / "cache"
        for path in (lists / "partial", cache / "archives" / "partial"):
            path.mkdir(parents=True)
        found = {"Acquire::Languages": "en", "Dir::State::Lists": f"{lists}/", "Dir::Cache": f"{cache}/"}
        self._options = [part for key, value in found.items() for part in ("-o", f"{key}={value}")]
        done = self._run("apt-get", "-qq", "update")
        if done.returncode or not any(lists.glob("*Packages*")):
            raise ConfigError(
                f"cannot fetch the lists of packages: {_last_line(done.stderr)}",
                hint="Does `apt-get update` work on this machine?",
            )

    def _run(self, *command: str, folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [command[0], *self._options, *command[1:]], cwd=folder, env=environment, capture_output=True, check=False
        )

    def newest(self, packages: Sequence[str]) -> dict[str, str]:
        """Fields of the first of these packages that there is.

        Raises:
            DataError: there is none.
        """
        for package in packages:
            done = self._run("apt-cache", "show", "--no-all-versions", package)
            fields = dict(re.findall(r"^([\w-]+): (.*)$", done.stdout.decode(errors="replace"), re.MULTILINE))
            if "SHA256" in fields:
                return fields
        raise DataError(
            "apt knows no such package",
            value=" or ".join(packages),
            hint="Leave the source out: --sources names those wanted",
        )

    def download(self, fields: Mapping[str, str]) -> Path:
        """The package as a file, verified.

        Raises:
            DataError: it cannot be had, or is not what the list says.
        """
        name = fields["Package"]
        folder = self._folder / name
        folder.mkdir()
        done = self._run("apt-get", "-qq", "download", f"{name}={fields['Version']}", folder=folder)
        files = list(folder.glob("*.deb"))
        if done.returncode or len(files) != 1:
            raise DataError(f"the package cannot be had: {_last_line(done.stderr)}", value=name)
        digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
        if digest != fields["SHA256"]:
            raise DataError(f"the package is not what the list says: its SHA-256 is {digest}", value=name)
        return files[0]

    def translations(self) -> dict[str, bytes]:
        """File -> its content, of the English descriptions of all packages.

        Raises:
            DataError: the archive has none.
        """
        done = self._run("apt-get", "indextargets", "--format", "$(FILENAME)", "Identifier: Translations")
        found = {}
        for name in sorted(done.stdout.decode().split()):
            content = self._run("/usr/lib/apt/apt-helper", "cat-file", name)
            if content.returncode == 0 and content.stdout:
                found[Path(name).name] = content.stdout
        if not found:
            raise DataError("the archive has no English descriptions of packages", value="Translation-en")
        return found


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no message"])[-1]


def package_members(file: Path, pattern: str) -> dict[str, bytes]:
    """The regular files in a package whose whole path matches.

    Raises:
        DataError: none does, or the package cannot be unpacked.
    """
    wanted, found = re.compile(pattern), {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() and wanted.fullmatch(member.name) else None
                    if content is not None:
                        found[member.name] = content.read()
        except tarfile.TarError as error:
            raise DataError(f"the package cannot be unpacked: {error}", value=file.name) from None
    if not found:
        raise DataError("the package does not have the files that it had", value=file.name, hint=pattern)
    return found


# Everything together


def write_source(name: str, items: Iterator[Item], about: Mapping[str, Any], out: Path) -> None:
    """Write `out`/`name`, whole or not at all.

    Raises:
        DataError: there is no document.
    """
    draft = out / f".{name}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    lines, raw_bytes, files = [], 0, 0
    for item in items:
        path = draft / "raw" / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compressed(item.name, item.raw))
        raw_bytes, files = raw_bytes + len(item.raw), files + 1
        lines += [{"text": text, "name": found, "source": name} for found, text in item.documents]
    if not lines:
        raise DataError("no text is found in this source", value=name)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    (draft / "documents.jsonl.zst").write_bytes(compressed("documents.jsonl.zst", content))
    summary = {
        **about,
        "raw_files": files,
        "raw_bytes": raw_bytes,
        "documents": len(lines),
        "text_bytes": sum(len(line["text"].encode()) for line in lines),
    }
    (draft / "source.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draft.rename(out / name)


def compressed(name: str, content: bytes) -> bytes:
    """As the suffix of the name says; the same bytes every time."""
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return bytes(pa.compress(content, codec="zstd", asbytes=True)) if name.endswith(".zst") else content


def fetch(name: str, apt: Apt, out: Path) -> None:
    """Fetch and write one source."""
    source = SOURCES[name]
    if source.packages:
        fields = apt.newest(source.packages)
        about = {"package": fields["Package"], "version": fields["Version"], "sha256": fields["SHA256"]}
        file = apt.download(fields)
        members = package_members(file, source.members)
    else:
        members = apt.translations()
        digest = hashlib.sha256(b"".join(members.values())).hexdigest()
        about = {"package": "Translation-en", "version": "", "sha256": digest}
    write_source(name, source.read(members), {**about, "licence": source.licence}, out)


def fetch_all(names: Sequence[str], out: Path) -> dict[str, dict[str, Any]]:
    """Source -> what its source.json says; what is missing is fetched.

    Raises:
        UserError: see `Apt` and `fetch`.
    """
    missing = [name for name in names if not (out / name / "source.json").is_file()]
    for name in missing:
        if (out / name).exists():
            raise ConfigError("something else is there", field="--out", value=str(out / name), hint="Take it away")
    if missing:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            apt = Apt(Path(folder))
            for name in missing:
                started = time.monotonic()
                fetch(name, apt, out)
                print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return {name: json.loads((out / name / "source.json").read_text(encoding="utf-8")) for name in names}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per source and one for all."""
    rows = [["source", "package", "licence", "raw bytes", "documents", "text bytes"]]
    for name, source in found.items():
        package = f"{source['package']} {source['version']}".strip()
        counts = [f"{source[key]:,}" for key in ("raw_bytes", "documents", "text_bytes")]
        rows.append([name, package, source["licence"], *counts])
    sums = [f"{sum(one[key] for one in found.values()):,}" for key in ("raw_bytes", "documents", "text_bytes")]
    rows.append(["all", "", "", *sums])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < 3 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument(
        "--sources",
        nargs="+",
        choices=SOURCES,
        default=[name for name, source in SOURCES.items() if source.default],
        help="which to fetch; without it all but spurgeon",
        metavar="SOURCE",
    )
    options = parser.parse_args(arguments)
    try:
        print(table(fetch_all(options.sources, options.out)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
