import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.corpus.execute import Execute, Item, Step, run_serially
from lspm_ray.corpus.sources import Layout
from lspm_ray.documents.collect import collect_documents
from lspm_ray.documents.config import DocumentsConfig

Make = Callable[..., Artifact]

FINE = Layout(unit_bytes=2000, unit_growth=0, chunk_rows=7)
"""Cuts even small files into many pieces of work."""


class KilledError(Exception):
    pass


def killed_after(steps: int) -> Execute:
    """Dies after so many items, over all steps."""
    left = [steps]

    def execute(step: Step, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, result in run_serially(step, items):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            yield index, result

    return execute


def backwards(step: Step, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Another order, and every other item twice, as after a lost worker."""
    for index in reversed(range(len(items))):
        if index % 2:
            step(items[index])
        yield index, step(items[index])


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """URI of an empty directory that is on no disk."""
    folder = f"/{tmp_path.name}"
    yield f"fsspec+memory:/{folder}"
    fs = fsspec.filesystem("memory")
    if fs.exists(folder):
        fs.rm(folder, recursive=True)


@pytest.fixture
def make_documents(store: ArtifactStore) -> Make:
    """Stage `documents` without a cluster."""

    def make(
        config: dict[str, Any],
        *,
        layout: Layout = FINE,
        execute: Execute = run_serially,
        into: ArtifactStore = store,
        lines: list[str] | None = None,
    ) -> Artifact:
        say = (lines if lines is not None else []).append
        return collect_documents(DocumentsConfig.parse(config), into, say, layout=layout, execute=execute)

    return make


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of some made-up words."""
    chance = random.Random(seed)
    syllables = ["ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(300)]
    return [" ".join(chance.choices(words, k=chance.randint(8, 25))).capitalize() + "." for _ in range(count)]


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """Four files of paragraphs, 200 different ones."""
    folder = tmp_path / "prose"
    folder.mkdir()
    paragraphs = sentences(200)
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n\n".join(paragraphs[number::4]) + "\n", encoding="utf-8")
    return folder
