"""Reading sources of documents in tests."""

from pathlib import Path
from typing import Any

from lspm_ray.corpus.read import Rejected, Row, read_unit
from lspm_ray.corpus.sources import Unit, resolve
from lspm_ray.documents.config import DocumentsConfig


def make(path: Path, **changes: Any) -> DocumentsConfig:
    return DocumentsConfig.parse({"source": str(path), **changes})


def read(config: DocumentsConfig, parts: int = 1) -> list[Row | Rejected]:
    return [
        item
        for file in resolve(config)
        for part in range(parts)
        for item in read_unit(Unit(part, file, part, parts), config)
    ]


def texts(items: list[Row | Rejected]) -> list[str | None]:
    assert all(item.label is None and item.split is None for item in items if isinstance(item, Row))
    return [item.text for item in items if isinstance(item, Row)]


def reasons(items: list[Row | Rejected]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Rejected)]
