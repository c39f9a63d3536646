"""JSON Lines. Damage costs one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar, Literal

from lspm_ray.corpus.config import SourceConfig
from lspm_ray.corpus.content import file_lines
from lspm_ray.corpus.format import Format
from lspm_ray.corpus.lines import Line
from lspm_ray.corpus.rows import Rejected, Row, Rows, owns, shown
from lspm_ray.corpus.sources import SourceFile, Unit
from lspm_ray.errors import DataError

_LOOKED_AT = 1000


class Jsonl(Format):
    """One JSON object per line; its keys are the columns."""

    suffixes: ClassVar[tuple[str, ...]] = ("jsonl", "ndjson", "json")
    tabular: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    cut: ClassVar[Literal["anywhere"]] = "anywhere"

    def columns(self, file: SourceFile, config: SourceConfig) -> list[str]:
        """All keys in the first lines."""
        keys: dict[str, None] = {}
        array, damage = False, ""
        for index, item in enumerate(_lines(Unit(0, file, 0, 1))):
            if isinstance(item, Rejected):
                damage = damage or item.reason
            else:
                array = array or (index == 0 and item.content.startswith(b"["))
                try:
                    value = json.loads(item.content)
                except (ValueError, RecursionError):
                    value = None
                keys.update(dict.fromkeys(value) if isinstance(value, dict) else {})
            if index >= _LOOKED_AT:
                break
        if array or not keys:
            what = "the file holds one JSON array" if array else "none of its first lines is a JSON object"
            raise DataError(
                f"nothing can be read: {damage}" if damage else what,
                field=f"{file.section}.source",
                value=file.uri,
                hint="Leave the file out, or get it again" if damage else "JSON Lines has one object per line",
            )
        return list(keys)

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[Row | Rejected]:
        """By byte range, or in stripes of lines if the file is compressed."""
        make = Rows(config).make
        for item in _lines(unit):
            if isinstance(item, Rejected):
                yield item
                continue
            place = f"byte {item.offset}"
            try:
                value = json.loads(item.content.decode())
            except UnicodeDecodeError:
                yield Rejected(item.offset, place, "invalid UTF-8", raw=shown(item.content))
            except (ValueError, RecursionError):
                yield Rejected(item.offset, place, "invalid JSON", raw=shown(item.content))
            else:
                if isinstance(value, dict):
                    yield make(item.offset, place, [value.get(name) for name in config.columns])
                else:
                    yield Rejected(item.offset, place, "line is not a JSON object", raw=shown(item.content))


def _lines(unit: Unit) -> Iterator[Line | Rejected]:
    if unit.file.compression is None:
        found = file_lines(unit.file, *unit.byte_range())
        yield from (item for item in found if isinstance(item, Rejected) or item.content.strip())
        return
    for number, item in enumerate(file_lines(unit.file)):
        if owns(unit, number) and (isinstance(item, Rejected) or item.content.strip()):
            yield item
